//! Chapter 2, the consumer: works on tasks from the queue `task_queue` until Ctrl-C. Start several of them.
//!
//!     cargo run --bin worker

use std::time::Duration;

use amqprs::channel::{BasicConsumeArguments, BasicQosArguments};
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli, quorum_queue};

/// Works on tasks until Ctrl-C: one second for each dot.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --bin worker (in two terminals)")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("worker").await?;

    let mut tasks = channel.consume(subscribe).await?;
    println!(" [*] Waiting for messages. To exit press CTRL+C");

    while let Some(task) = tasks.try_next().await? {
        println!(" [x] Received {}", task.display());

        let dots = task.text().matches('.').count() as u64;
        tokio::time::sleep(Duration::from_secs(dots)).await;
        println!(" [x] Done");

        // Acknowledge only now: if the worker dies before this line, another worker gets the task.
        task.ack().await?;
    }
    Ok(())
}

/// Declares the queue and says what to consume. Runs again after every loss of the connection.
async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    channel.queue_declare(quorum_queue("task_queue")).await?;

    // One task at a time: the next task goes to a free worker, not to the worker whose turn it is.
    channel.basic_qos(BasicQosArguments::new(0, 1, false)).await?;

    Ok(BasicConsumeArguments::new("task_queue", ""))
}
