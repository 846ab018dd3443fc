//! Chapter 2, the first worker: acknowledges automatically, so it loses tasks when it dies.
//!
//!     cargo run --example auto_ack_worker

use std::time::Duration;

use amqprs::channel::BasicConsumeArguments;
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli, quorum_queue};

/// Works on tasks until Ctrl-C, and loses the tasks that it has not finished.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example auto_ack_worker")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("auto_ack_worker").await?;

    let mut tasks = channel.consume(subscribe).await?;
    println!(" [*] Waiting for messages. To exit press CTRL+C");

    while let Some(task) = tasks.try_next().await? {
        println!(" [x] Received {}", task.display());

        let dots = task.text().matches('.').count() as u64;
        tokio::time::sleep(Duration::from_secs(dots)).await;
        println!(" [x] Done");
    }
    Ok(())
}

async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    channel.queue_declare(quorum_queue("task_queue")).await?;

    Ok(BasicConsumeArguments::new("task_queue", "").auto_ack(true).finish())
}
