//! Chapter 2, exercise 2: a worker that puts every task back into the queue.
//!
//!     cargo run --example rejecting_worker

use amqprs::channel::{BasicConsumeArguments, BasicQosArguments};
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli, quorum_queue};

/// Takes tasks, fails, and puts them back into the queue.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example rejecting_worker")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("rejecting_worker").await?;

    let mut tasks = channel.consume(subscribe).await?;
    println!(" [*] Waiting for messages. To exit press CTRL+C");

    let mut count = 0;
    while let Some(task) = tasks.try_next().await? {
        count += 1;
        println!(" [x] Rejected {} (delivery {count})", task.display());
        task.reject(true).await?;
    }
    Ok(())
}

async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    channel.queue_declare(quorum_queue("task_queue")).await?;
    channel.basic_qos(BasicQosArguments::new(0, 1, false)).await?;
    Ok(BasicConsumeArguments::new("task_queue", ""))
}
