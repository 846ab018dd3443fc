//! Chapter 1, the consumer: prints the messages of the queue `hello` until Ctrl-C.
//!
//!     cargo run --bin receive

use amqprs::channel::BasicConsumeArguments;
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli, quorum_queue};

/// Prints the messages of the queue `hello` until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --bin receive -- --properties")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// Print each message's properties too
    #[arg(long)]
    properties: bool,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("receive").await?;

    let mut messages = channel.consume(subscribe).await?;
    println!(" [*] Waiting for messages. To exit press CTRL+C");

    while let Some(message) = messages.try_next().await? {
        println!(" [x] Received {}", message.display());
        if args.properties {
            println!("{}", message.info());
        }
    }
    Ok(())
}

/// Declares the queue and says what to consume. Runs again after every loss of the connection.
async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    channel.queue_declare(quorum_queue("hello")).await?;

    // RabbitMQ forgets each message as soon as it has sent it to us. Chapter 2 shows what that costs.
    Ok(BasicConsumeArguments::new("hello", "").auto_ack(true).finish())
}
