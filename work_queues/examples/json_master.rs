//! Sends tasks as JSON. The worker can also be a Python program with aio-pika (`JsonMaster`).
//!
//!     cargo run -p work_queues --example json_master -- resize '{"picture":"cat.png"}'

use clap::Parser;
use common::{ConnectionManager, cli, tasks::Master};
use serde_json::{Map, Value};

/// Sends tasks: one for each JSON object.
#[derive(Parser)]
#[command(after_help = "Example: cargo run -p work_queues --example json_master -- resize '{\"picture\":\"cat.png\"}'")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// The queue, which a worker has declared
    queue: String,

    /// The arguments of a task, a JSON object
    #[arg(required = true, value_parser = |text: &str| serde_json::from_str::<Map<String, Value>>(text))]
    tasks: Vec<Map<String, Value>>,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let master = Master::new(&connections.channel("json_master").await?);

    for task in args.tasks {
        // Persistent, and mandatory: without the queue this is an error.
        master.create_task(&args.queue, &task).await?;
        println!(" [x] Sent {}", Value::from(task));
    }

    connections.close_all().await?;
    Ok(())
}
