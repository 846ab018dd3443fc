//! Chapter 5, the consumer: prints the log messages whose routing key matches a binding key, until Ctrl-C.
//!
//!     cargo run --bin receive_logs_topic -- "kern.*" "*.critical"

use amqprs::channel::{BasicConsumeArguments, ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments};
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli, escaped};

/// Prints the log messages that match the given binding keys until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --bin receive_logs_topic -- \"kern.*\" \"*.critical\" (with the quotes)")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// What to print: `*` stands for one word, `#` for any number
    #[arg(required = true, value_name = "BINDING_KEY")]
    binding_keys: Vec<String>,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("receive_logs_topic").await?;

    let mut logs = channel.consume_with(args.binding_keys, subscribe).await?;
    println!(" [*] Waiting for logs. To exit press CTRL+C");

    while let Some(log) = logs.try_next().await? {
        println!(" [x] {}:{}", escaped(&log.routing_key), log.display());
    }
    Ok(())
}

/// Binds a new queue, once for each binding key. Runs again after every loss of the connection.
async fn subscribe(channel: SetupChannel, binding_keys: Vec<String>) -> Result<BasicConsumeArguments> {
    channel.exchange_declare(ExchangeDeclareArguments::new("topic_logs", "topic")).await?;
    let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;

    // A message that matches several of these keys still comes once, because all of them bind the same queue.
    for binding_key in &binding_keys {
        channel.queue_bind(QueueBindArguments::new(&queue.name, "topic_logs", binding_key)).await?;
    }

    Ok(BasicConsumeArguments::new(&queue.name, "").auto_ack(true).finish())
}
