//! Chapter 4, the producer: publishes one log message with a severity, and ends.
//!
//!     cargo run --bin emit_log_direct -- error Run. Run. Or it will explode.

use amqprs::{
    BasicProperties,
    channel::{BasicPublishArguments, ExchangeDeclareArguments},
};
use clap::Parser;
use common::{ConnectionManager, cli};

/// Publishes a log message to the receivers that want its severity.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --bin emit_log_direct -- error Run. Run. Or it will explode.")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// The routing key, such as info, warning or error
    #[arg(default_value = "info")]
    severity: String,

    /// The message
    #[arg(default_value = "Hello World!")]
    words: Vec<String>,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();
    let (severity, message) = (args.severity, args.words.join(" "));

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("emit_log_direct").await?;
    channel.exchange_declare(ExchangeDeclareArguments::new("direct_logs", "direct")).await?;

    // A direct exchange puts the message into each queue that is bound with an equal key.
    let to = BasicPublishArguments::new("direct_logs", &severity);
    channel.publish(to, BasicProperties::default(), message.as_str()).await?;
    println!(" [x] Sent {severity}:{message}");

    connections.close_all().await?;
    Ok(())
}
