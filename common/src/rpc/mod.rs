//! Remote procedure calls over two queues: requests go to the server's, replies come to the client's own
//! ([tutorial](https://www.rabbitmq.com/tutorials/tutorial-six-python)).
//!
//! On the wire: the request carries `reply_to`, the client's reply queue, and `correlation_id`, a UUID; the reply
//! goes to that queue through the default exchange and carries the same `correlation_id`. A reply of type
//! `error` ([`TYPE_ERROR`]) has the error's text for its body; any other reply is a result, so that programs which
//! know nothing of types can be on either side.
//!
//! [`RpcClient`] and [`RpcServer`] are that, and no more. On top of them, [`JsonRpcClient`] and [`JsonRpcServer`] call
//! functions by their names with arguments and results in JSON, and understand aio-pika's `JsonRPC` in Python:
//! each function has a queue of its name.

mod calls;
mod client;
pub(crate) mod json;
mod server;

pub use client::RpcClient;
pub use json::{CallOptions, FunctionOptions, JsonRpcClient, JsonRpcServer};
pub use server::RpcServer;

/// The message property `type` of a reply that is an error.
pub const TYPE_ERROR: &str = "error";

/// The message property `type` of a reply that is a result.
pub const TYPE_RESULT: &str = "result";
