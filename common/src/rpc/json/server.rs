//! The server of functions over JSON.

use std::{
    collections::{HashMap, hash_map::Entry},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicQosArguments},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{DEAD_LETTERS, ErrorBody, NOBODY, bind_dead_letters, bound, describe};
use crate::{
    Channel, Error, Message, RemoteError, Result, SetupChannel, classic_queue,
    json::to_json,
    rpc::{RpcServer, TYPE_ERROR, TYPE_RESULT},
};

/// Offers functions that others call by name, with named arguments, over JSON.
///
/// Each function has all promises of an [`RpcServer`]: every call gets its result or an error, also after a panic.
///
/// ```no_run
/// use common::{RemoteError, rpc::JsonRpcServer};
///
/// #[derive(serde::Deserialize)]
/// struct Operands {
///     x: f64,
///     y: f64,
/// }
///
/// # async fn example(connections: common::ConnectionManager) -> common::Result<()> {
/// let server = JsonRpcServer::new(&connections.channel("server").await?);
/// server.register("multiply", |Operands { x, y }| async move { Ok(x * y) }).await?;
/// server.register("divide", divide).await?;
/// server.serve().await
/// # }
///
/// async fn divide(Operands { x, y }: Operands) -> Result<f64, RemoteError> {
///     if y == 0.0 {
///         return Err(RemoteError::new("ZeroDivisionError", "division by zero"));
///     }
///     Ok(x / y)
/// }
/// ```
///
/// Dropping it stops all functions, as [`unregister`](Self::unregister) does.
pub struct JsonRpcServer {
    channel: Channel,
    functions: Mutex<HashMap<String, Function>>,
    /// How a function ended that was not stopped.
    ended: watch::Sender<Option<Result<()>>>,
}

struct Function {
    stop: DropGuard,
    task: JoinHandle<()>,
}

/// The options of a function's queue. All its servers, in any language, have to agree on the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionOptions {
    /// Whether the queue survives a restart of the broker. Default: yes. RabbitMQ 4.3 can be configured to refuse
    /// shared queues that are not durable, and later versions always refuse them. A server in Python says
    /// `durable=True`.
    pub durable: bool,
    /// Whether the queue is deleted with its last server, so that callers get an error at once. Default: yes.
    pub auto_delete: bool,
    /// How many calls this server works on at the same time. 0 means no limit. Default: 100.
    pub prefetch: u16,
}

impl Default for FunctionOptions {
    fn default() -> Self {
        Self { durable: true, auto_delete: true, prefetch: 100 }
    }
}

impl JsonRpcServer {
    /// A server without functions. Their replies are published on `channel`.
    pub fn new(channel: &Channel) -> Self {
        Self { channel: channel.clone(), functions: Mutex::default(), ended: watch::Sender::new(None) }
    }

    /// Registers a function. When this returns, it can be called. Its argument is anything that serde makes from a JSON
    /// object (`()`: from an empty one). Its result is anything that serde turns into JSON. A result that JSON does not
    /// have, such as an infinite number, becomes an error reply of the kind `InvalidResult`.
    ///
    /// The function's queue is durable and is deleted with its last server ([`FunctionOptions`]).
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) if this server already has a function with that name. Otherwise those of
    /// [`Channel::consume`], such as [`Closed`](Error::Closed) with 406 if another server has declared the function's
    /// queue differently: the words name the argument on which the two servers do not agree.
    pub async fn register<A, R, F, Fut>(&self, name: &str, function: F) -> Result<()>
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize + 'static,
        F: Fn(A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, RemoteError>> + Send + 'static,
    {
        self.register_with(name, FunctionOptions::default(), function).await
    }

    /// Like [`register`](Self::register), with another kind of queue.
    ///
    /// ```no_run
    /// # async fn example(server: common::rpc::JsonRpcServer) -> common::Result<()> {
    /// use common::rpc::FunctionOptions;
    ///
    /// // As a server in Python with `auto_delete=True` and nothing else:
    /// let transient = FunctionOptions { durable: false, ..FunctionOptions::default() };
    /// server.register_with("now", transient, |()| async { Ok("noon") }).await
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`register`](Self::register). [`Closed`](Error::Closed) with 541 if the queue is not durable and this
    /// RabbitMQ refuses such queues.
    pub async fn register_with<A, R, F, Fut>(&self, name: &str, options: FunctionOptions, function: F) -> Result<()>
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize + 'static,
        F: Fn(A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, RemoteError>> + Send + 'static,
    {
        if name.is_empty() {
            return Err(Error::Invalid("a function needs a name".into()));
        }
        let taken = || Error::Invalid(format!("this server already has a function `{name}`"));
        if self.functions().contains_key(name) {
            return Err(taken());
        }
        let queue = name.to_owned();
        let subscribe = move |channel| calls(channel, queue.clone(), options);
        let server = bound(|| RpcServer::new(&self.channel, subscribe.clone())).await?;
        // Another task may have registered the name meanwhile.
        match self.functions().entry(name.to_owned()) {
            Entry::Occupied(_) => Err(taken()),
            Entry::Vacant(entry) => {
                let (stop, ended) = (CancellationToken::new(), self.ended.clone());
                let (stopped, function) = (stop.clone(), Arc::new(function));
                let task = tokio::spawn(async move {
                    let answering = move |request| call(function.clone(), request);
                    let outcome = server.answer(encode, answering, stopped.cancelled()).await;
                    if !stopped.is_cancelled() {
                        ended.send_replace(Some(outcome));
                    }
                });
                entry.insert(Function { stop: stop.drop_guard(), task });
                Ok(())
            }
        }
    }

    /// Stops a function. Calls that it has not begun go to its other servers or wait. Returns when the others are
    /// answered.
    ///
    /// ```no_run
    /// # async fn example(server: common::rpc::JsonRpcServer) -> common::Result<()> {
    /// server.register("now", |()| async { Ok("noon") }).await?;
    /// server.unregister("now").await
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) when this server has no function of that name.
    pub async fn unregister(&self, name: &str) -> Result<()> {
        let function = self.functions().remove(name);
        let Some(Function { stop, task }) = function else {
            return Err(Error::Invalid(format!("this server has no function `{name}`")));
        };
        drop(stop);
        let _ = task.await;
        Ok(())
    }

    /// Waits until this program closes the connection manager.
    ///
    /// # Errors
    /// Why a function's consuming ended for good.
    pub async fn serve(&self) -> Result<()> {
        let mut ended = self.ended.subscribe();
        let outcome = ended.wait_for(Option::is_some).await;
        outcome.ok().and_then(|outcome| outcome.clone()).unwrap_or(Ok(()))
    }

    fn functions(&self) -> MutexGuard<'_, HashMap<String, Function>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call of a function.
async fn call<A, R, F, Fut>(function: Arc<F>, request: Message) -> Result<Vec<u8>, RemoteError>
where
    A: DeserializeOwned,
    R: Serialize,
    F: Fn(A) -> Fut,
    Fut: Future<Output = Result<R, RemoteError>>,
{
    let arguments = serde_json::from_slice::<Value>(&request.body).and_then(|arguments| match arguments {
        // No arguments: a struct without fields is made from the one, `()` from the other.
        none if none == json!({}) => {
            A::deserialize(none).or_else(|error| A::deserialize(Value::Null).map_err(|_| error))
        }
        some => A::deserialize(some),
    });
    let arguments = arguments.map_err(|error| RemoteError::new("InvalidArguments", error.to_string()))?;
    let result = function(arguments).await?;
    to_json(&result).map_err(|error| RemoteError::new("InvalidResult", error.to_string()))
}

/// A reply in the form of aio-pika's `JsonRPC`.
fn encode(outcome: Result<Vec<u8>, RemoteError>, mode: Option<u8>, reply: &mut BasicProperties) -> Vec<u8> {
    describe(reply, if outcome.is_ok() { TYPE_RESULT } else { TYPE_ERROR });
    if let Some(mode) = mode {
        reply.with_delivery_mode(mode);
    }
    // An error consists of text and JSON values, so it can always be written.
    outcome.unwrap_or_else(|error| serde_json::to_vec(&ErrorBody { error }).unwrap_or_default())
}

async fn calls(channel: SetupChannel, queue: String, options: FunctionOptions) -> Result<BasicConsumeArguments> {
    let declare = classic_queue(&queue)
        .durable(options.durable)
        .auto_delete(options.auto_delete)
        .with("x-dead-letter-exchange", DEAD_LETTERS);
    channel.queue_declare(declare).await?;
    // No message comes this way. But the exchange is deleted with its last binding. If another program binds just then,
    // RabbitMQ 4.3 can be left with a broken exchange (from then on, it answers each declaration with 541). So this
    // binding stays as long as a server.
    bind_dead_letters(&channel, &queue, NOBODY).await?;
    channel.basic_qos(BasicQosArguments::new(0, options.prefetch, false)).await?;
    Ok(BasicConsumeArguments::new(&queue, ""))
}
