//! Chapter 4, the consumer: prints the log messages of the given severities, until Ctrl-C.
//!
//!     cargo run --bin receive_logs_direct -- warning error

use amqprs::channel::{BasicConsumeArguments, ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments};
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli, escaped};

/// Prints the log messages of the given severities until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --bin receive_logs_direct -- warning error")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// The severities to print
    #[arg(required = true, value_name = "SEVERITY")]
    severities: Vec<String>,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("receive_logs_direct").await?;

    let mut logs = channel.consume_with(args.severities, subscribe).await?;
    println!(" [*] Waiting for logs. To exit press CTRL+C");

    while let Some(log) = logs.try_next().await? {
        println!(" [x] {}:{}", escaped(&log.routing_key), log.display());
    }
    Ok(())
}

/// Binds a new queue, once for each severity. Runs again after every loss of the connection.
async fn subscribe(channel: SetupChannel, severities: Vec<String>) -> Result<BasicConsumeArguments> {
    channel.exchange_declare(ExchangeDeclareArguments::new("direct_logs", "direct")).await?;
    let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;

    for severity in &severities {
        channel.queue_bind(QueueBindArguments::new(&queue.name, "direct_logs", severity)).await?;
    }

    Ok(BasicConsumeArguments::new(&queue.name, "").auto_ack(true).finish())
}
