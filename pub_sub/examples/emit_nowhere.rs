//! Chapter 3, what goes wrong: publishes to an exchange that does not exist.
//!
//!     cargo run --example emit_nowhere

use amqprs::{BasicProperties, channel::BasicPublishArguments};
use clap::Parser;
use common::{ConnectionManager, cli};

/// Publishes to the exchange `lgos`, which no program declares.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example emit_nowhere")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("emit_nowhere").await?;

    let to = BasicPublishArguments::new("lgos", "");
    channel.publish(to, BasicProperties::default(), "Is anybody there?").await?;
    println!(" [x] Sent");

    connections.close_all().await?;
    Ok(())
}
