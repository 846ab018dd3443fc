//! The client of functions over JSON.

use std::time::Duration;

use amqprs::{BasicProperties, DELIVERY_MODE_PERSISTENT, DELIVERY_MODE_TRANSIENT, channel::BasicConsumeArguments};
use serde::{Serialize, de::DeserializeOwned};

use super::{ErrorBody, FROM, TYPE_CALL, bind_dead_letters, bound, describe};
use crate::{
    Channel, Error, Message, RemoteError, Result, SetupChannel,
    encoding::table::table,
    exclusive_queue,
    json::object,
    rpc::{RpcClient, TYPE_ERROR, client::milliseconds},
};

/// Calls functions by name, with named arguments, over JSON.
///
/// It has all promises of an [`RpcClient`]: many calls at the same time, and each of them ends.
///
/// ```no_run
/// # async fn example(connections: common::ConnectionManager) -> common::Result<()> {
/// use common::{Error, rpc::JsonRpcClient};
/// use serde_json::json;
/// use std::time::Duration;
///
/// let client = JsonRpcClient::new(&connections.channel("client").await?).await?;
/// let patience = Duration::from_secs(10);
/// let product: i64 = client.call("multiply", &json!({"x": 6, "y": 7}), patience).await?;
/// match client.call::<f64>("divide", &json!({"x": 6, "y": 0}), patience).await {
///     Err(Error::Remote(error)) if error.kind == "ZeroDivisionError" => println!("not by zero"),
///     quotient => println!("{}", quotient?),
/// }
/// # Ok(())
/// # }
/// ```
pub struct JsonRpcClient(RpcClient);

/// The options of a call. A [`Duration`] becomes options with this timeout.
///
/// ```no_run
/// # async fn example(client: common::rpc::JsonRpcClient) -> common::Result<()> {
/// use common::rpc::CallOptions;
/// use serde_json::json;
/// use std::time::Duration;
///
/// // Worth doing later, too, but not after an hour:
/// let options = CallOptions { expiration: Some(Duration::from_secs(3600)), persistent: true, ..Duration::from_secs(10).into() };
/// client.call::<()>("send_report", &json!({"month": 11}), options).await
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallOptions {
    /// How long to wait for the reply. Default: 10 seconds.
    pub timeout: Duration,
    /// How long the call may wait in its queue for a server. Default: as long as the timeout.
    pub expiration: Option<Duration>,
    /// Its priority, if the function's queue has priorities. Default: 5.
    pub priority: u8,
    /// Whether the call survives a restart of the broker, if its queue is durable. Default: no.
    pub persistent: bool,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), expiration: None, priority: 5, persistent: false }
    }
}

impl From<Duration> for CallOptions {
    fn from(timeout: Duration) -> Self {
        Self { timeout, ..Self::default() }
    }
}

impl JsonRpcClient {
    /// Declares a reply queue that is exclusive to this connection, and binds it for calls that are dead-lettered.
    /// Calls are published on `channel`.
    ///
    /// # Errors
    /// Those of [`Channel::consume`].
    pub async fn new(channel: &Channel) -> Result<Self> {
        bound(|| RpcClient::start(channel, false, replies)).await.map(Self)
    }

    /// Calls a function and waits for its result. `arguments` is anything that serde turns into a JSON object: a
    /// struct, a map, `json!({…})`, or `()`.
    ///
    /// # Errors
    /// - [`Remote`](Error::Remote): the function failed.
    /// - [`Unroutable`](Error::Unroutable): no server has declared the function's queue.
    /// - [`Timeout`](Error::Timeout): no reply in time, or the call expired in the queue.
    /// - [`Lost`](Error::Lost), [`Unconfirmed`](Error::Unconfirmed): the connection was lost meanwhile; the function may or
    ///   may not have run.
    /// - [`Invalid`](Error::Invalid): the arguments are not a JSON object, or they contain a number that JSON does not
    ///   have (infinite, or not a number). [`Other`](Error::Other): the result is not an `R`.
    pub async fn call<R: DeserializeOwned>(
        &self,
        function: &str,
        arguments: &impl Serialize,
        options: impl Into<CallOptions>,
    ) -> Result<R> {
        let options = options.into();
        let properties = |reply_queue: &str, left| {
            let mut properties = BasicProperties::default();
            describe(&mut properties, TYPE_CALL);
            properties
                .with_headers(table([(FROM, reply_queue)])?)
                .with_expiration(&milliseconds(options.expiration.unwrap_or(left)))
                .with_priority(options.priority)
                .with_delivery_mode(if options.persistent {
                    DELIVERY_MODE_PERSISTENT
                } else {
                    DELIVERY_MODE_TRANSIENT
                });
            Ok(properties)
        };
        let reply = self.0.request(function, object(arguments)?, options.timeout, properties).await?;
        match reply.properties.message_type().map(String::as_str) {
            Some(TYPE_ERROR) => Err(Error::Remote(remote_error(&reply))),
            Some(TYPE_CALL) if first_death(&reply).is_some_and(|reason| reason == "rejected") => {
                Err(Error::Remote(RemoteError::new("Rejected", "the server rejected the call")))
            }
            Some(TYPE_CALL) => Err(Error::Timeout {
                doing: format!("the call to function `{function}` expired in its queue"),
                after: options.expiration.unwrap_or(options.timeout),
                reason: "is a server running, and not too busy?".into(),
            }),
            _ => reply.json(),
        }
    }

    /// How many calls wait for their reply.
    pub fn pending(&self) -> usize {
        self.0.pending()
    }
}

/// An error reply that is not in the usual form is still an error.
fn remote_error(reply: &Message) -> RemoteError {
    reply.json().map_or_else(|_| RemoteError::new("", reply.text()), |body: ErrorBody| body.error)
}

/// Why a call was dead-lettered ([headers](https://www.rabbitmq.com/docs/dlx#effects)).
fn first_death(reply: &Message) -> Option<String> {
    let name = "x-first-death-reason".try_into().ok()?;
    reply.properties.headers()?.get(&name).map(ToString::to_string)
}

async fn replies(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    let queue = channel.queue_declare(exclusive_queue()).await?.name;
    bind_dead_letters(&channel, &queue, &queue).await?;
    Ok(BasicConsumeArguments::new(&queue, "").auto_ack(true).finish())
}
