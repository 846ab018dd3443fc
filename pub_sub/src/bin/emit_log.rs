//! Chapter 3, the producer: publishes one log message to all receivers, and ends.
//!
//!     cargo run --bin emit_log -- warning: the disk is nearly full

use amqprs::{
    BasicProperties,
    channel::{BasicPublishArguments, ExchangeDeclareArguments},
};
use clap::Parser;
use common::{ConnectionManager, cli};

/// Publishes a log message to all running receivers.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --bin emit_log -- warning: the disk is nearly full")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// The message
    #[arg(default_value = "info: Hello World!")]
    words: Vec<String>,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();
    let message = args.words.join(" ");

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("emit_log").await?;

    // Publishing to an exchange that does not exist is an error, so it is declared first.
    channel.exchange_declare(ExchangeDeclareArguments::new("logs", "fanout")).await?;

    // A fanout exchange ignores the routing key. Not `mandatory`: a log message without a receiver is not an error.
    let to = BasicPublishArguments::new("logs", "");
    channel.publish(to, BasicProperties::default(), message.as_str()).await?;
    println!(" [x] Sent {message}");

    connections.close_all().await?;
    Ok(())
}
