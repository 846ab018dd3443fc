//! Chapter 4, exercise 2: keeps the errors in a named queue. All running copies of this program share them.
//!
//!     cargo run --example store_errors

use amqprs::channel::{BasicConsumeArguments, BasicQosArguments, ExchangeDeclareArguments, QueueBindArguments};
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli, escaped, quorum_queue};

/// Takes errors out of the queue `errors` until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example store_errors")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("store_errors").await?;

    let mut errors = channel.consume(subscribe).await?;
    println!(" [*] Waiting for errors. To exit press CTRL+C");

    while let Some(error) = errors.try_next().await? {
        println!(" [x] {}:{}", escaped(&error.routing_key), error.display());
        error.ack().await?;
    }
    Ok(())
}

/// Binds one queue, which all running copies of this program use. Runs again after every loss of the connection.
async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    channel.exchange_declare(ExchangeDeclareArguments::new("direct_logs", "direct")).await?;
    channel.queue_declare(quorum_queue("errors")).await?;
    channel.queue_bind(QueueBindArguments::new("errors", "direct_logs", "error")).await?;
    channel.basic_qos(BasicQosArguments::new(0, 1, false)).await?;

    Ok(BasicConsumeArguments::new("errors", ""))
}
