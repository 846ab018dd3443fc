//! Chapter 3, the consumer: prints every log message published from now on, until Ctrl-C.
//!
//!     cargo run --bin receive_logs

use amqprs::channel::{BasicConsumeArguments, ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments};
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli};

/// Prints all log messages until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --bin receive_logs > logs_from_rabbit.log")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("receive_logs").await?;

    let mut logs = channel.consume(subscribe).await?;
    println!(" [*] Waiting for logs. To exit press CTRL+C");

    while let Some(log) = logs.try_next().await? {
        println!(" [x] {}", log.display());
    }
    Ok(())
}

/// Binds a new queue to the exchange. Runs again after every loss of the connection, each time with another queue.
async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    channel.exchange_declare(ExchangeDeclareArguments::new("logs", "fanout")).await?;

    // The broker names this queue. Only this connection can use it, and it is deleted with the connection.
    let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;
    channel.queue_bind(QueueBindArguments::new(&queue.name, "logs", "")).await?;

    Ok(BasicConsumeArguments::new(&queue.name, "").auto_ack(true).finish())
}
