//! Chapter 6, the client: asks a server for a Fibonacci number, and prints the answer.
//!
//!     cargo run --bin rpc_client -- 30

use std::time::Duration;

use clap::Parser;
use common::{ConnectionManager, cli, rpc::RpcClient};

/// Asks a server for a Fibonacci number.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --bin rpc_client -- 30")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// Which Fibonacci number; sent as it is, for the server to check
    #[arg(default_value = "30", allow_negative_numbers = true)]
    n: String,

    /// Seconds to wait for the answer
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();
    let n = args.n;

    let connections = ConnectionManager::new(args.broker.options()?);
    // The client declares its own reply queue. Each request names this queue in `reply_to`.
    let client = RpcClient::new(&connections.channel("rpc_client").await?).await?;

    println!(" [x] Requesting fib({n})");
    let reply = client.call("rpc_queue", n, Duration::from_secs(args.timeout)).await?;
    println!(" [.] Got {}", reply.display());

    connections.close_all().await?;
    Ok(())
}
