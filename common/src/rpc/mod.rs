//! Remote procedure calls over two queues: requests go to the server's, replies come to the client's own
//! ([tutorial](https://www.rabbitmq.com/tutorials/tutorial-six-python)).
//!
//! A request carries `reply_to`, the client's reply queue, and `correlation_id`, a UUID. The reply goes to that queue
//! through the default exchange and carries the same `correlation_id`. If a reply has the type `error`
//! ([`TYPE_ERROR`]), its body is the text of the error. Any other reply is a result, so that a program that does not
//! use types can be on either side.
//!
//! [`RpcClient`] and [`RpcServer`] do only this. [`JsonRpcClient`] and [`JsonRpcServer`] build on them: they call
//! functions by name, with arguments and results in JSON, and work with aio-pika's `JsonRPC` in Python. Each function
//! has a queue with its name.

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
