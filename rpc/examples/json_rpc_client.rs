//! Calls a function by name, with JSON, and prints its result. The server may be Python's aio-pika (`JsonRPC`).
//!
//!     cargo run -p rpc --example json_rpc_client -- multiply '{"x":6,"y":7}'

use std::time::Duration;

use clap::Parser;
use common::{ConnectionManager, cli, escaped, rpc::JsonRpcClient};
use serde_json::{Map, Value};

/// Calls a function and prints its result.
#[derive(Parser)]
#[command(after_help = "Example: cargo run -p rpc --example json_rpc_client -- multiply '{\"x\":6,\"y\":7}'")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// The function's name
    method: String,

    /// Its arguments, a JSON object
    #[arg(value_parser = |text: &str| serde_json::from_str::<Map<String, Value>>(text))]
    arguments: Map<String, Value>,

    /// Seconds to wait for the result
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let client = JsonRpcClient::new(&connections.channel("json_rpc_client").await?).await?;

    // This program takes any JSON. A program that knows the function asks for the result's type instead.
    let result = client.call::<Value>(&args.method, &args.arguments, Duration::from_secs(args.timeout)).await;
    connections.close_all().await?;
    println!("{}", escaped(&result?.to_string()));
    Ok(())
}
