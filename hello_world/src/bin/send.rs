//! Chapter 1, the producer: puts one message into the queue `hello`, and ends.
//!
//!     cargo run --bin send

use amqprs::{BasicProperties, channel::BasicPublishArguments};
use clap::Parser;
use common::{ConnectionManager, cli, quorum_queue};

/// Sends "Hello World!" to the queue `hello`.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --bin send")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("send").await?;

    // RabbitMQ drops a message to a queue that does not exist. Declaring twice does no harm, so both programs declare:
    // the one that starts first creates the queue.
    channel.queue_declare(quorum_queue("hello")).await?;

    // The empty name is the default exchange: it uses the routing key as the name of a queue.
    let to = BasicPublishArguments::new("", "hello");
    channel.publish(to, BasicProperties::default(), "Hello World!").await?;
    println!(" [x] Sent 'Hello World!'");

    connections.close_all().await?;
    Ok(())
}
