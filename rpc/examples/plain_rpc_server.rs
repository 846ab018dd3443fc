//! Chapter 6, by hand: a server that computes Fibonacci numbers, without the RPC helper of `common`.
//!
//!     cargo run --example plain_rpc_server

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicPublishArguments, BasicQosArguments},
};
use clap::Parser;
use common::{ConnectionManager, Result, SetupChannel, cli, quorum_queue};

/// Answers requests for Fibonacci numbers until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example plain_rpc_server")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,
}

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("plain_rpc_server").await?;

    let mut requests = channel.consume(subscribe).await?;
    println!(" [x] Awaiting RPC requests");

    while let Some(request) = requests.try_next().await? {
        // fib(186) is the last one that fits into 128 bits.
        let number = request.text().parse::<u32>().ok().filter(|n| *n <= 186);
        let (Some(n), Some(reply_to)) = (number, request.properties.reply_to()) else {
            eprintln!(" [.] Rejected a request: its body or its `reply_to` is wrong");
            request.reject(false).await?;
            continue;
        };
        println!(" [.] fib({n})");

        // The reply goes to the client's queue, with the id of the request.
        let mut properties = BasicProperties::default();
        if let Some(id) = request.properties.correlation_id() {
            properties.with_correlation_id(id);
        }
        let to = BasicPublishArguments::new("", reply_to);
        channel.publish(to, properties, fib(n).to_string()).await?;

        // Acknowledge only now: if the server dies before this line, another server gets the request.
        request.ack().await?;
    }
    Ok(())
}

/// Declares the queue and says what to consume. Runs again after every loss of the connection.
async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    channel.queue_declare(quorum_queue("rpc_queue")).await?;

    // One request at a time, so that several servers share the work fairly.
    channel.basic_qos(BasicQosArguments::new(0, 1, false)).await?;

    Ok(BasicConsumeArguments::new("rpc_queue", ""))
}

/// A loop of `n` steps, so short that it does not block the runtime.
fn fib(n: u32) -> u128 {
    // The loop also computes fib(n + 1). fib(187) does not fit, so this addition may wrap around.
    (0..n).fold((0_u128, 1), |(a, b), _| (b, a.wrapping_add(b))).0
}
