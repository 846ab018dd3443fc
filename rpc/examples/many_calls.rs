//! Chapter 6, exercise 1: many calls at once, through one client and its one reply queue.
//!
//!     cargo run --example many_calls

use std::{sync::Arc, time::Duration};

use clap::Parser;
use common::{ConnectionManager, Error, Result, cli, rpc::RpcClient};
use tokio::task::JoinSet;

/// Asks a server for the first Fibonacci numbers, all at once.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example many_calls")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let client = Arc::new(RpcClient::new(&connections.channel("many_calls").await?).await?);

    println!(" [x] Requesting fib(0) to fib(9)");
    let mut calls = JoinSet::new();
    for n in 0..10 {
        let client = client.clone();
        calls.spawn(async move {
            let reply = client.call("rpc_queue", n.to_string(), Duration::from_secs(10)).await?;
            Ok::<_, Error>((n, reply.display().to_string()))
        });
    }
    println!(" [.] {} calls are on their way", calls.len());

    // The answers came in any order. Sorted, they are easy to compare.
    let mut answers = calls.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    answers.sort();
    for (n, answer) in answers {
        println!(" [.] fib({n}) is {answer}");
    }

    connections.close_all().await?;
    Ok(())
}
