//! Works on tasks in JSON until Ctrl-C. The sender can also be a Python program with aio-pika (`JsonMaster`).
//!
//!     cargo run -p work_queues --example json_worker -- resize

use amqprs::channel::{BasicConsumeArguments, BasicQosArguments};
use clap::Parser;
use common::{ConnectionManager, Error, Result, SetupChannel, classic_queue, cli, escaped, tasks::Worker};
use serde_json::Value;

/// Prints tasks until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Example: cargo run -p work_queues --example json_worker -- resize")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// The queue, which is declared as durable
    queue: String,

    /// Fail on tasks that contain this text, and put them back into the queue
    #[arg(long, value_name = "TEXT")]
    fail_on: Option<String>,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("json_worker").await?;

    let queue = args.queue;
    let worker = Worker::new(&channel, move |channel| tasks(channel, queue.clone())).await?;
    eprintln!(" [*] Waiting for tasks. To exit press CTRL+C");

    // `Ok` acknowledges the task, an error puts it back.
    worker
        .run(move |task: Value| {
            let task = task.to_string();
            println!("{}", escaped(&task));
            let fails = args.fail_on.as_ref().is_some_and(|text| task.contains(text));
            async move { if fails { Err(Error::other("failed as asked")) } else { Ok(()) } }
        })
        .await?;
    Ok(())
}

/// Declares the queue and says what to consume. Runs again after every loss of the connection.
async fn tasks(channel: SetupChannel, queue: String) -> Result<BasicConsumeArguments> {
    // As Python's `create_worker(…, durable=True)` does. RabbitMQ refuses another queue type for the same name (406).
    channel.queue_declare(classic_queue(&queue)).await?;

    // One task at a time.
    channel.basic_qos(BasicQosArguments::new(0, 1, false)).await?;

    Ok(BasicConsumeArguments::new(&queue, ""))
}
