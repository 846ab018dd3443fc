//! Chapter 2, exercise 2: prints the tasks of the dead-letter queue `failed_tasks`.
//!
//!     cargo run --example failed_tasks

use amqprs::channel::BasicConsumeArguments;
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli, quorum_queue};

/// Prints failed tasks until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example failed_tasks")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("failed_tasks").await?;

    let mut tasks = channel.consume(subscribe).await?;
    println!(" [*] Waiting for failed tasks. To exit press CTRL+C");

    while let Some(task) = tasks.try_next().await? {
        println!(" [x] Failed: {}", task.display());
        task.ack().await?;
    }
    Ok(())
}

async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    channel.queue_declare(quorum_queue("failed_tasks")).await?;
    Ok(BasicConsumeArguments::new("failed_tasks", ""))
}
