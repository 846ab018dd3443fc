//! Chapter 2, the producer: puts one task into the queue `task_queue`, and ends. Each dot in the text is one
//! second of work.
//!
//!     cargo run --bin new_task -- A task of three seconds...

use amqprs::{BasicProperties, DELIVERY_MODE_PERSISTENT, channel::BasicPublishArguments};
use clap::Parser;
use common::{ConnectionManager, cli, quorum_queue};

/// Sends a task to the workers; each dot is a second of work.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --bin new_task -- A task of three seconds...")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// The task's text
    #[arg(default_value = "Hello World!")]
    words: Vec<String>,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();
    let message = args.words.join(" ");

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("new_task").await?;
    channel.queue_declare(quorum_queue("task_queue")).await?;

    // `mandatory`: if the queue did not exist, we would get an error instead of losing the task.
    let to = BasicPublishArguments::new("", "task_queue").mandatory(true).finish();
    // A durable queue survives a restart of the broker; for its messages to survive too, they must be persistent.
    let properties = BasicProperties::default().with_delivery_mode(DELIVERY_MODE_PERSISTENT).finish();

    // A persistent message is safe only once it is on disk: `publish` returns when the broker confirms that.
    channel.publish(to, properties, message.as_str()).await?;
    println!(" [x] Sent {message}");

    connections.close_all().await?;
    Ok(())
}
