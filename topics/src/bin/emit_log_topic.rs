//! Chapter 5, the producer: publishes one log message with a routing key of several words, and ends.
//!
//!     cargo run --bin emit_log_topic -- kern.critical A critical kernel error

use amqprs::{
    BasicProperties,
    channel::{BasicPublishArguments, ExchangeDeclareArguments},
};
use clap::Parser;
use common::{ConnectionManager, cli};

/// Publishes a log message to the receivers whose binding key matches its routing key.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --bin emit_log_topic -- kern.critical A critical kernel error")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// The routing key: words with dots between them, such as kern.critical
    #[arg(default_value = "anonymous.info")]
    key: String,

    /// The message
    #[arg(default_value = "Hello World!")]
    words: Vec<String>,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();
    let (key, message) = (args.key, args.words.join(" "));

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("emit_log_topic").await?;
    channel.exchange_declare(ExchangeDeclareArguments::new("topic_logs", "topic")).await?;

    // A topic exchange compares the routing key, word by word, with the binding keys.
    let to = BasicPublishArguments::new("topic_logs", &key);
    channel.publish(to, BasicProperties::default(), message.as_str()).await?;
    println!(" [x] Sent {key}:{message}");

    connections.close_all().await?;
    Ok(())
}
