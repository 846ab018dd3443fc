//! Chapter 2, what goes wrong: a worker that never acknowledges.
//!
//!     cargo run --example forgetful_worker

use amqprs::channel::BasicConsumeArguments;
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli, quorum_queue};

/// Takes tasks and forgets to acknowledge them.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example forgetful_worker")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("forgetful_worker").await?;

    let mut tasks = channel.consume(subscribe).await?;
    println!(" [*] Waiting for messages. To exit press CTRL+C");

    while let Some(task) = tasks.try_next().await? {
        println!(" [x] Received {}, redelivered: {}", task.display(), task.redelivered);
    }
    Ok(())
}

async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    channel.queue_declare(quorum_queue("task_queue")).await?;
    Ok(BasicConsumeArguments::new("task_queue", ""))
}
