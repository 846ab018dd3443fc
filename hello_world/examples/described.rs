//! Chapter 1, what a message carries: sends a message with six properties.
//!
//!     cargo run --example described

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amqprs::{BasicProperties, channel::BasicPublishArguments};
use clap::Parser;
use common::{ConnectionManager, Error, cli, quorum_queue};

/// Sends a message with properties to the queue `hello`.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example described")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("described").await?;
    channel.queue_declare(quorum_queue("hello")).await?;

    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(Error::other)?;
    let properties = BasicProperties::default()
        .with_content_type("text/plain")
        .with_content_encoding("utf-8")
        .with_message_id("greeting-1")
        .with_app_id("hello_world")
        .with_timestamp(now.as_secs()) // whole seconds since 1970
        .with_expiration(&Duration::from_secs(60).as_millis().to_string()) // milliseconds, as text
        .finish();
    channel.publish(BasicPublishArguments::new("", "hello"), properties, "Hello World!").await?;
    println!(" [x] Sent 'Hello World!'");

    connections.close_all().await?;
    Ok(())
}
