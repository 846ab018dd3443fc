//! Chapter 5, exercise 3: an exchange bound to another one. A fanout exchange gets the critical messages, for all its
//! receivers.
//!
//!     cargo run --example alarm

use amqprs::channel::{
    BasicConsumeArguments, ExchangeBindArguments, ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments,
};
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli, escaped};

/// Prints the critical log messages until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example alarm")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("alarm").await?;

    let mut logs = channel.consume(subscribe).await?;
    println!(" [*] Waiting for alarms. To exit press CTRL+C");

    while let Some(log) = logs.try_next().await? {
        println!(" [x] {}:{}", escaped(&log.routing_key), log.display());
    }
    Ok(())
}

/// topic_logs ── *.critical ──► alarms (fanout) ──► our queue. Runs again after every loss of the connection.
async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    channel.exchange_declare(ExchangeDeclareArguments::new("topic_logs", "topic")).await?;
    channel.exchange_declare(ExchangeDeclareArguments::new("alarms", "fanout")).await?;
    channel.exchange_bind(ExchangeBindArguments::new("alarms", "topic_logs", "*.critical")).await?;

    let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;
    channel.queue_bind(QueueBindArguments::new(&queue.name, "alarms", "")).await?;

    Ok(BasicConsumeArguments::new(&queue.name, "").auto_ack(true).finish())
}
