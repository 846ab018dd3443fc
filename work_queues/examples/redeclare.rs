//! Chapter 2, what goes wrong: declares the queue `task_queue` with other settings than the lesson does.
//!
//!     cargo run --example redeclare

use clap::Parser;
use common::{ConnectionManager, classic_queue, cli};

/// Declares `task_queue` as a classic queue.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example redeclare")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("redeclare").await?;

    // This queue is durable, too, but it has another type.
    channel.queue_declare(classic_queue("task_queue")).await?;
    println!(" [x] Declared");

    connections.close_all().await?;
    Ok(())
}
