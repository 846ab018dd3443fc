//! Chapter 2, exercise 1: a worker whose prefetch can be chosen.
//!
//!     cargo run --example greedy_worker -- --prefetch 10

use std::time::Duration;

use amqprs::channel::{BasicConsumeArguments, BasicQosArguments};
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli, quorum_queue};

/// Works on tasks until Ctrl-C; the broker sends it several of them in advance.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example greedy_worker -- --prefetch 10")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// How many tasks the broker may send before the first is acknowledged; 0 means no limit
    #[arg(long, default_value_t = 10)]
    prefetch: u16,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("greedy_worker").await?;

    let mut tasks = channel.consume_with(args.prefetch, subscribe).await?;
    println!(" [*] Waiting for messages. To exit press CTRL+C");

    while let Some(task) = tasks.try_next().await? {
        println!(" [x] Received {}", task.display());
        tokio::time::sleep(Duration::from_secs(task.text().matches('.').count() as u64)).await;
        println!(" [x] Done");
        task.ack().await?;
    }
    Ok(())
}

async fn subscribe(channel: SetupChannel, prefetch: u16) -> Result<BasicConsumeArguments> {
    channel.queue_declare(quorum_queue("task_queue")).await?;
    channel.basic_qos(BasicQosArguments::new(0, prefetch, false)).await?;
    Ok(BasicConsumeArguments::new("task_queue", ""))
}
