//! Chapter 1, what goes wrong: sends to a queue that does not exist.
//!
//!     cargo run --example nowhere -- --mandatory

use amqprs::{BasicProperties, channel::BasicPublishArguments};
use clap::Parser;
use common::{ConnectionManager, cli};

/// Sends "Hello World!" to the queue `helo`, which no program declares.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example nowhere -- --mandatory")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// Ask the broker to return the message if no queue gets it
    #[arg(long)]
    mandatory: bool,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("nowhere").await?;

    let to = BasicPublishArguments::new("", "helo").mandatory(args.mandatory).finish();
    channel.publish(to, BasicProperties::default(), "Hello World!").await?;
    println!(" [x] Sent 'Hello World!'");

    connections.close_all().await?;
    Ok(())
}
