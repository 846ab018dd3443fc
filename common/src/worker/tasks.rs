//! Tasks for workers: the Master/Worker pattern over JSON, on the wire the same as
//! [aio-pika's `JsonMaster`](https://docs.aio-pika.com/patterns.html).
//!
//! A task is a persistent message whose body is a JSON object, with the content type `application/json`. It is
//! published as mandatory to the queue of its workers. The workers declare the queue; the master does not.

use std::{
    collections::HashMap,
    fmt::Display,
    future::{Future, pending, ready},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use amqprs::{
    BasicProperties, DELIVERY_MODE_PERSISTENT,
    channel::{BasicConsumeArguments, BasicPublishArguments},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    Channel, Consumer, Delivery, Message, Outcome, ProcessOptions, Result, SetupChannel,
    consumer::delivery::SettleMethod,
    json::object,
    worker::{
        acks::Done,
        concurrent::{with_manual_ack, work},
        handler::decide,
    },
};

/// Sends tasks.
///
/// ```no_run
/// # async fn example(connections: common::ConnectionManager) -> common::Result<()> {
/// use common::tasks::Master;
/// use serde_json::json;
///
/// let master = Master::new(&connections.channel("master").await?);
/// master.create_task("resize", &json!({"picture": "cat.png", "width": 640})).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Master(Channel);

impl Master {
    /// A master that publishes on `channel`.
    pub fn new(channel: &Channel) -> Self {
        Self(channel.clone())
    }

    /// Puts a task into the queue of its workers. When this returns, the broker has it, on disk if the queue is
    /// durable. `task` is anything that serde turns into a JSON object. A worker in Python gets it as named arguments.
    ///
    /// # Errors
    /// [`Unroutable`](crate::Error::Unroutable): there is no such queue. [`Invalid`](crate::Error::Invalid): the task
    /// is not a JSON object, or it contains a number that JSON does not have (infinite, or not a number). Otherwise
    /// those of [`Channel::publish`].
    pub async fn create_task(&self, queue: &str, task: &impl Serialize) -> Result<()> {
        let mut properties = BasicProperties::default();
        properties.with_content_type("application/json").with_delivery_mode(DELIVERY_MODE_PERSISTENT);
        let to = BasicPublishArguments::new("", queue).mandatory(true).finish();
        self.0.publish(to, properties, object(task)?).await
    }
}

/// Works on tasks from a queue.
///
/// The handler's result decides. `Ok` acknowledges, or does what its [`Outcome`] says. `Err` or a panic puts the task
/// back, unless [`options`](Self::options) says otherwise. A body that is not the JSON of a task can never succeed, so
/// it is rejected.
///
/// The first time, a task that fails goes back at once. After each further failure it is held longer before it goes
/// back: 1 s, then 2 s, 4 s, and so on up to 30 s. Meanwhile it counts towards the prefetch. A classic queue delivers
/// it again without end. A quorum queue may count the deliveries, and at last drop the task: see
/// [`ProcessOptions`](ProcessOptions#how-often-a-message-may-come-back), and give the queue a dead-letter exchange.
///
/// There are never more running tasks than the prefetch. After a lost connection, tasks that still run count, although
/// RabbitMQ delivers them again. So a handler that hangs uses up one of them for good, and as many as the prefetch stop
/// the worker (a warning says so). Give a handler that may hang a `tokio::time::timeout`.
///
/// ```no_run
/// use amqprs::channel::{BasicConsumeArguments, BasicQosArguments};
/// use common::{Error, Result, SetupChannel, quorum_queue, tasks::Worker};
///
/// #[derive(serde::Deserialize)]
/// struct Resize {
///     picture: String,
///     width: u32,
/// }
///
/// # async fn example(connections: common::ConnectionManager) -> Result<()> {
/// let worker = Worker::new(&connections.channel("worker").await?, tasks).await?;
/// worker.run(|Resize { picture, width }| async move {
///     println!("resizing {picture} to {width}");
///     Ok::<_, Error>(())
/// })
/// .await
/// # }
///
/// async fn tasks(channel: SetupChannel) -> Result<BasicConsumeArguments> {
///     channel.queue_declare(quorum_queue("resize")).await?;
///     channel.basic_qos(BasicQosArguments::new(0, 1, false)).await?; // tasks at a time
///     Ok(BasicConsumeArguments::new("resize", ""))
/// }
/// ```
pub struct Worker {
    tasks: Consumer,
    options: ProcessOptions,
}

impl Worker {
    /// Starts consuming tasks. `subscribe` says from where, with manual acknowledgement. Its prefetch is the number of
    /// tasks that run at the same time.
    ///
    /// # Errors
    /// Those of [`Channel::consume`]; [`Invalid`](crate::Error::Invalid) with automatic acknowledgement.
    pub async fn new<F, Fut>(channel: &Channel, subscribe: F) -> Result<Self>
    where
        F: Fn(SetupChannel) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<BasicConsumeArguments>> + Send + 'static,
    {
        let options = ProcessOptions { requeue: true, reject_on_redelivered: false };
        Ok(Self { tasks: channel.consume(with_manual_ack(subscribe)).await?, options })
    }

    /// Sets what happens to a task whose handler fails. Default: it always goes back to the queue, with growing pauses.
    #[must_use]
    pub fn options(mut self, options: ProcessOptions) -> Self {
        self.options = options;
        self
    }

    /// Works on tasks until this program closes the connection manager. Each task runs in a tokio task of its own.
    ///
    /// # Errors
    /// Why consuming ended for good.
    pub async fn run<T, H, Fut, O, E>(self, handler: H) -> Result<()>
    where
        T: DeserializeOwned + Send + 'static,
        H: Fn(T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, E>> + Send + 'static,
        O: Into<Outcome> + 'static,
        E: Display + 'static,
    {
        self.run_until(handler, pending::<()>()).await
    }

    /// Works on tasks until `stop` resolves. Then it takes no more tasks, gives back those that it has not begun, and
    /// ends when the others are done. `stop` can be any future; its result does not matter.
    ///
    /// ```no_run
    /// # async fn example(worker: common::tasks::Worker) -> common::Result<()> {
    /// use common::{Error, Result};
    /// use serde_json::Value;
    ///
    /// async fn print(task: Value) -> Result<()> {
    ///     println!("{task}");
    ///     Ok(())
    /// }
    ///
    /// worker.run_until(print, tokio::signal::ctrl_c()).await // tokio's feature `signal`
    /// # }
    /// ```
    ///
    /// # Errors
    /// Why consuming ended for good.
    pub async fn run_until<T, H, Fut, O, E>(self, handler: H, stop: impl Future) -> Result<()>
    where
        T: DeserializeOwned + Send + 'static,
        H: Fn(T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, E>> + Send + 'static,
        O: Into<Outcome> + 'static,
        E: Display + 'static,
    {
        // What waits before it goes back does so at once when this worker stops.
        let stopped = self.tasks.core().stop_receiving.child_token();
        let stop = async {
            stop.await;
            stopped.cancel();
        };
        let returns = Returns { failures: Mutex::default(), hasher: RandomState::new(), stopped: stopped.clone() };
        let options = self.options;
        let shared = Arc::new((handler, returns));
        let perform = move |task| {
            let shared = shared.clone();
            async move { perform(task, options, &shared.0, &shared.1).await }
        };
        work(self.tasks, stop, perform, ready).await
    }
}

async fn perform<T, H, Fut, O, E>(task: Delivery, options: ProcessOptions, handler: &H, returns: &Returns) -> Done
where
    T: DeserializeOwned,
    H: Fn(T) -> Fut,
    Fut: Future<Output = Result<O, E>>,
    O: Into<Outcome>,
    E: Display,
{
    let (message, receipt) = task.split();
    let (known, redelivered) = (returns.key(&message), message.redelivered);
    let handle = |message: Message| async move {
        let task = match message.json() {
            Ok(task) => task,
            Err(error) => {
                tracing::error!("task {} is rejected: {error}", message.delivery_tag);
                return Ok(Outcome::Reject);
            }
        };
        handler(task).await.map(Into::into).map_err(|error| error.to_string())
    };
    let how = decide(message, options, handle).await;
    match how {
        SettleMethod::Nack { requeue: true } => returns.pause(known, redelivered).await,
        _ => returns.forget(known),
    }
    (receipt, how)
}

/// How often tasks have failed here. Without pauses, one that always fails would go round as fast as the machine can, and
/// use up a quorum queue's delivery limit in a moment.
struct Returns {
    failures: Mutex<HashMap<u64, u32>>,
    hasher: RandomState,
    stopped: CancellationToken,
}

impl Returns {
    /// More tasks than this do not fail for long; if they do, counting begins again.
    const MOST: usize = 10_000;
    const LONGEST: Duration = Duration::from_secs(30);

    /// A delivery has no number that stays: tasks that say the same count as one.
    fn key(&self, task: &Message) -> u64 {
        self.hasher.hash_one((&task.body, task.properties.message_id()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, task: u64) {
        self.lock().remove(&task);
    }

    /// Before a task goes back.
    async fn pause(&self, task: u64, redelivered: bool) {
        if !redelivered {
            return;
        }
        let pause = {
            let mut failures = self.lock();
            if failures.len() >= Self::MOST {
                failures.clear();
            }
            let before = failures.entry(task).or_default();
            let pause = Duration::from_secs(1 << (*before).min(5)).min(Self::LONGEST);
            *before += 1;
            pause
        };
        let _ = timeout(pause, self.stopped.cancelled()).await;
    }
}
