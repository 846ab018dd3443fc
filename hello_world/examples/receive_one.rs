//! Chapter 1, exercise 2: takes one message out of the queue `hello`, if there is one, and ends.
//!
//!     cargo run --example receive_one

use amqprs::channel::BasicGetArguments;
use clap::Parser;
use common::{ConnectionManager, cli, quorum_queue};

/// Prints one message of the queue `hello`.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example receive_one")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("receive_one").await?;
    channel.queue_declare(quorum_queue("hello")).await?;

    match channel.get(BasicGetArguments::new("hello")).await? {
        Some(message) => {
            println!(" [x] Received {}", message.display());
            message.ack().await?;
        }
        None => println!(" [.] The queue is empty"),
    }

    connections.close_all().await?;
    Ok(())
}
