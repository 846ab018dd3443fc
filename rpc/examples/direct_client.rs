//! Chapter 6, exercise 2: the client without a reply queue.
//!
//!     cargo run --example direct_client -- 30

use std::time::Duration;

use clap::Parser;
use common::{ConnectionManager, cli, rpc::RpcClient};

/// Asks a server for a Fibonacci number; the answer comes by direct reply-to.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example direct_client -- 30")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// Which Fibonacci number
    #[arg(default_value = "30")]
    n: String,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();
    let n = args.n;

    let connections = ConnectionManager::new(args.broker.options()?);
    let client = RpcClient::direct(&connections.channel("direct_client").await?).await?;

    println!(" [x] Requesting fib({n})");
    let reply = client.call("rpc_queue", n, Duration::from_secs(10)).await?;
    println!(" [.] Got {}", reply.display());

    connections.close_all().await?;
    Ok(())
}
