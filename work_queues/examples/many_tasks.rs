//! Chapter 2, in production: puts many tasks into the queue, without waiting for each confirm before the next task.
//!
//!     cargo run --release --example many_tasks -- 10000

use std::time::Instant;

use amqprs::{BasicProperties, DELIVERY_MODE_PERSISTENT, channel::BasicPublishArguments};
use clap::Parser;
use common::{ConnectionManager, cli, quorum_queue};

/// Sends many tasks.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example many_tasks -- 10000")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// How many tasks
    #[arg(default_value_t = 1000)]
    count: u32,

    /// Wait for the confirm of each task before sending the next one
    #[arg(long)]
    one_by_one: bool,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("many_tasks").await?;
    channel.queue_declare(quorum_queue("task_queue")).await?;
    let properties = BasicProperties::default().with_delivery_mode(DELIVERY_MODE_PERSISTENT).finish();

    let start = Instant::now();
    let mut confirms = Vec::new();
    for number in 1..=args.count {
        let to = BasicPublishArguments::new("", "task_queue").mandatory(true).finish();
        let confirm = channel.publish_with_deferred_confirm(to, properties.clone(), format!("task {number}")).await?;
        if args.one_by_one {
            confirm.await?;
        } else {
            confirms.push(confirm);
        }
    }
    for confirm in confirms {
        confirm.await?;
    }
    println!(" [x] {} tasks confirmed in {} ms", args.count, start.elapsed().as_millis());

    connections.close_all().await?;
    Ok(())
}
