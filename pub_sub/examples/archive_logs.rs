//! Chapter 3, exercise 2: a receiver that misses no message while it is not running, because its queue stays.
//!
//!     cargo run --example archive_logs

use amqprs::channel::{BasicConsumeArguments, ExchangeDeclareArguments, QueueBindArguments};
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli, quorum_queue};

/// Prints all log messages, including those sent while it was not running.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example archive_logs")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("archive_logs").await?;

    let mut logs = channel.consume(subscribe).await?;
    println!(" [*] Waiting for logs. To exit press CTRL+C");

    while let Some(log) = logs.try_next().await? {
        println!(" [x] {}", log.display());
        log.ack().await?;
    }
    Ok(())
}

/// Binds a queue that has a name and stays. Runs again after every loss of the connection.
async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    channel.exchange_declare(ExchangeDeclareArguments::new("logs", "fanout")).await?;
    channel.queue_declare(quorum_queue("log_archive")).await?;
    channel.queue_bind(QueueBindArguments::new("log_archive", "logs", "")).await?;

    Ok(BasicConsumeArguments::new("log_archive", ""))
}
