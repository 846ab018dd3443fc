//! Chapter 3, exercise 1: publishes a log message, and says whether a queue got it.
//!
//!     cargo run --example emit_heard

use amqprs::{
    BasicProperties,
    channel::{BasicPublishArguments, ExchangeDeclareArguments},
};
use clap::Parser;
use common::{ConnectionManager, Error, cli};

/// Publishes a log message, and says whether a queue got it.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example emit_heard")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("emit_heard").await?;
    channel.exchange_declare(ExchangeDeclareArguments::new("logs", "fanout")).await?;

    let to = BasicPublishArguments::new("logs", "").mandatory(true).finish();
    match channel.publish(to, BasicProperties::default(), "info: Can you hear me?").await {
        Ok(()) => println!(" [x] A queue has it"),
        Err(Error::Unroutable(returned)) => println!(" [.] No queue has it: {} {}", returned.code, returned.text),
        Err(other) => return Err(other.into()),
    }

    connections.close_all().await?;
    Ok(())
}
