//! Named functions over JSON, on the wire the same as
//! [aio-pika's `JsonRPC`](https://docs.aio-pika.com/patterns.html): a Python program and a Rust program can call each
//! other.
//!
//! - Each function has a queue of its name, from which its servers consume: classic, with
//!   `x-dead-letter-exchange=rpc.dlx`; whether it is durable or deleted with its last server is for them to agree on.
//! - A call is mandatory and has type `call`, the arguments as a JSON object, `reply_to`, `correlation_id`, and a header
//!   `From` with the reply queue's name.
//! - A reply has type `result` and the result as JSON, or type `error` and
//!   `{"error": {"type": …, "message": …, "args": […]}}`.
//! - A call that expires in its queue, or is rejected, comes back to its client: dead letters go to the headers exchange
//!   `rpc.dlx`, to which each reply queue is bound by its `From`.

mod client;
mod server;

use std::time::{SystemTime, UNIX_EPOCH};

use amqprs::BasicProperties;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use client::{CallOptions, JsonRpcClient};
pub use server::{FunctionOptions, JsonRpcServer};

use crate::{Error, RemoteError, Result};

/// Brings dead calls back.
const DEAD_LETTERS: &str = "rpc.dlx";

/// The message property `type` of a call, also of one that comes back.
const TYPE_CALL: &str = "call";

#[derive(Serialize, Deserialize)]
struct ErrorBody {
    error: RemoteError,
}

/// What all these messages have.
fn describe(properties: &mut BasicProperties, message_type: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    properties.with_content_type("application/json").with_timestamp(now).with_message_type(message_type);
}

/// Named arguments as JSON, which have to be an object; none (`()`) are an empty one.
pub(crate) fn object(arguments: &impl Serialize) -> Result<Vec<u8>> {
    match serde_json::to_value(arguments) {
        Ok(Value::Null) => Ok(b"{}".to_vec()),
        Ok(arguments @ Value::Object(_)) => Ok(arguments.to_string().into_bytes()),
        Ok(other) => Err(Error::Invalid(format!("the arguments must be a JSON object, with names, and not {other}"))),
        Err(error) => Err(Error::Invalid(format!("the arguments cannot be written as JSON: {error}"))),
    }
}
