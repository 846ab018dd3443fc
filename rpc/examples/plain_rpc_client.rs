//! Chapter 6, by hand: a client that asks for a Fibonacci number, without the RPC helper of `common`.
//!
//!     cargo run --example plain_rpc_client -- 30

use std::{collections::HashMap, sync::Arc};

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicPublishArguments, QueueDeclareArguments},
};
use clap::Parser;
use common::{ConnectionManager, Consumer, Delivery, Error, Result, SetupChannel, cli};
use tokio::sync::{Mutex, oneshot};
use uuid::Uuid;

/// Asks a server for a Fibonacci number. Without an answer, it waits until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Example: cargo run --example plain_rpc_client -- 30")]
struct Args {
    #[command(flatten)]
    broker: cli::BrokerArgs,

    /// Which Fibonacci number; sent as it is, for the server to check
    #[arg(default_value = "30", allow_negative_numbers = true)]
    n: String,
}

/// The waiting calls: the correlation id of each, and where its reply goes.
type Calls = Arc<Mutex<HashMap<String, oneshot::Sender<Delivery>>>>;

#[tokio::main]
async fn main() -> cli::MainResult {
    let args: Args = cli::parse();
    args.broker.log_to_stderr();
    let n = args.n;

    let connections = ConnectionManager::new(args.broker.options()?);
    let channel = connections.channel("plain_rpc_client").await?;

    let replies = channel.consume(reply_queue).await?;
    let reply_to = replies.queue();
    let calls = Calls::default();
    let receiver = tokio::spawn(receive(replies, calls.clone()));

    // Put the call into the table before you send the request: the reply may come at once.
    let id = Uuid::new_v4().to_string();
    let (sender, reply) = oneshot::channel();
    calls.lock().await.insert(id.clone(), sender);

    println!(" [x] Requesting fib({n})");
    let properties = BasicProperties::default().with_reply_to(&reply_to).with_correlation_id(&id).finish();
    channel.publish(BasicPublishArguments::new("", "rpc_queue"), properties, n).await?;

    let reply = tokio::select! {
        reply = reply => reply.map_err(Error::other)?,
        Ok(Err(error)) = receiver => return Err(error.into()),
    };
    println!(" [.] Got {}", reply.display());

    connections.close_all().await?;
    Ok(())
}

/// Declares a queue that only this connection can use. Runs again after every loss of the connection.
async fn reply_queue(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;
    Ok(BasicConsumeArguments::new(&queue.name, "").auto_ack(true).finish())
}

/// Gives each reply to the call that waits for it.
async fn receive(mut replies: Consumer, calls: Calls) -> Result<()> {
    while let Some(reply) = replies.try_next().await? {
        let id = reply.properties.correlation_id().cloned().unwrap_or_default();
        match calls.lock().await.remove(&id) {
            // This fails if the call has ended, and then its reply is not needed.
            Some(call) => drop(call.send(reply)),
            None => eprintln!(" [.] Ignored a reply with an unknown correlation id"),
        }
    }
    Ok(())
}
