//! Offers functions to be called by name, with JSON, until Ctrl-C. Python's aio-pika (`JsonRPC`) can call them, too.
//!
//!     cargo run -p rpc --example json_rpc_server

use std::time::Duration;

use clap::Parser;
use common::{ConnectionManager, RemoteError, Result, cli, rpc::JsonRpcServer};
use serde::Deserialize;

/// Offers the functions multiply {x, y}, divide {x, y} and sleep {seconds} until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Example: cargo run -p rpc --example json_rpc_server")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let server = JsonRpcServer::new(&connections.channel("json_rpc_server").await?);

    // Each function has a queue with its name.
    server.register("multiply", multiply).await?;
    server.register("divide", divide).await?;
    server.register("sleep", sleep).await?;
    println!(" [x] Awaiting RPC requests");
    server.serve().await?;
    Ok(())
}

#[derive(Deserialize)]
struct Factors {
    x: i64,
    y: i64,
}

async fn multiply(Factors { x, y }: Factors) -> Result<i64, RemoteError> {
    println!(" [.] multiply({x}, {y})");
    x.checked_mul(y).ok_or_else(|| RemoteError::new("OverflowError", "the product does not fit into 64 bits"))
}

#[derive(Deserialize)]
struct Quotient {
    x: f64,
    y: f64,
}

/// The caller gets the error's kind and message.
async fn divide(Quotient { x, y }: Quotient) -> Result<f64, RemoteError> {
    println!(" [.] divide({x}, {y})");
    if y == 0.0 {
        return Err(RemoteError::new("ZeroDivisionError", "division by zero"));
    }
    Ok(x / y)
}

#[derive(Deserialize)]
struct Sleep {
    seconds: f64,
}

async fn sleep(Sleep { seconds }: Sleep) -> Result<(), RemoteError> {
    println!(" [.] sleep({seconds})");
    // `?` turns any error into a remote error, here the error for a negative duration.
    tokio::time::sleep(Duration::try_from_secs_f64(seconds)?).await;
    Ok(())
}
