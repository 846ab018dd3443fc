//! Functions over JSON. The messages are the same as those of [aio-pika's
//! `JsonRPC`](https://docs.aio-pika.com/patterns.html), so a Python program and a Rust program can call each other.
//!
//! - Each function has a queue of its name, from which its servers consume: classic, with
//!   `x-dead-letter-exchange=rpc.dlx`; whether it is durable or deleted with its last server is for them to agree on. Here it
//!   is both; in Python, say `register(…, durable=True, auto_delete=True)`, and `create(…, durable=True)` for its replies.
//! - A call is mandatory and has type `call`, the arguments as a JSON object, `reply_to`, `correlation_id`, and a header
//!   `From` with the reply queue's name.
//! - A reply has type `result` and the result as JSON, or type `error` and
//!   `{"error": {"type": …, "message": …, "args": […]}}`.
//! - A call that expires in its queue, or is rejected, comes back to its client: dead letters go to the headers exchange
//!   `rpc.dlx`, to which each reply queue is bound by its `From`. Function queues are bound, too, with one that no call
//!   has: the exchange then lives as long as a server.

mod client;
mod server;

use std::{
    future::Future,
    time::{SystemTime, UNIX_EPOCH},
};

use amqprs::{
    BasicProperties,
    channel::{ExchangeDeclareArguments, ExchangeType, QueueBindArguments},
};
use serde::{Deserialize, Serialize};

pub use client::{CallOptions, JsonRpcClient};
pub use server::{FunctionOptions, JsonRpcServer};

use crate::{Error, RemoteError, Result, SetupChannel, encoding::table::table};

/// The exchange that brings dead-lettered calls back.
const DEAD_LETTERS: &str = "rpc.dlx";

/// The message property `type` of a call, and also of a call that comes back.
const TYPE_CALL: &str = "call";

/// The header with the name of the reply queue of a call.
const FROM: &str = "From";

/// This is never the name of a reply queue.
const NOBODY: &str = "nobody";

#[derive(Serialize, Deserialize)]
struct ErrorBody {
    error: RemoteError,
}

/// The properties that all these messages have.
fn describe(properties: &mut BasicProperties, message_type: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    properties.with_content_type("application/json").with_timestamp(now).with_message_type(message_type);
}

/// Binds a queue for dead-lettered calls from this reply queue.
async fn bind_dead_letters(channel: &SetupChannel, queue: &str, from: &str) -> Result<()> {
    let exchange = ExchangeDeclareArguments::of_type(DEAD_LETTERS, ExchangeType::Headers).auto_delete(true).finish();
    channel.exchange_declare(exchange).await?;
    let calls = table([(FROM, from), ("x-match", "any")])?;
    channel.queue_bind(QueueBindArguments::new(queue, DEAD_LETTERS, "").arguments(calls).finish()).await
}

/// Runs `start`, which binds a queue for dead letters. It may have to run again: the exchange is deleted with its last
/// binding, and this may happen between declaring and binding.
async fn bound<T, Fut: Future<Output = Result<T>>>(start: impl Fn() -> Fut) -> Result<T> {
    let mut attempts = 0..5;
    loop {
        match start().await {
            Err(Error::Closed { code: 404, .. }) if attempts.next().is_some() => {}
            outcome => return outcome,
        }
    }
}
