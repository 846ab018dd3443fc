//! Chapter 6, the server: computes Fibonacci numbers for its clients, until Ctrl-C.
//!
//!     cargo run --bin rpc_server

use amqprs::channel::{BasicConsumeArguments, BasicQosArguments};
use clap::Parser;
use common::{ConnectionManager, Error, Message, Result, SetupChannel, cli, quorum_queue, rpc::RpcServer};

/// Answers requests for Fibonacci numbers until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --bin rpc_server")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("rpc_server").await?;

    let server = RpcServer::new(&channel, requests).await?;
    println!(" [x] Awaiting RPC requests");
    server.serve(answer).await?;
    Ok(())
}

/// Declares the queue and says what to consume. Runs again after every loss of the connection.
async fn requests(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    channel.queue_declare(quorum_queue("rpc_queue")).await?;

    // One request at a time, so that several servers share the work fairly.
    channel.basic_qos(BasicQosArguments::new(0, 1, false)).await?;

    Ok(BasicConsumeArguments::new("rpc_queue", ""))
}

/// The remote procedure. The server sends its result or error to the queue named in the request's `reply_to`, with the
/// request's `correlation_id`. Then the server acknowledges the request.
async fn answer(request: Message) -> Result<String> {
    // fib(186) is the last one that fits into 128 bits.
    match request.text().parse() {
        Ok(n @ 0..=186) => {
            println!(" [.] fib({n})");
            Ok(fib(n).to_string())
        }
        _ => Err(Error::other("fib takes a whole number from 0 to 186")),
    }
}

fn fib(n: u32) -> u128 {
    // The loop also computes fib(n + 1). fib(187) does not fit, so this addition may wrap around.
    (0..n).fold((0_u128, 1), |(a, b), _| (b, a.wrapping_add(b))).0
}
