//! A named channel, as its users see it.

pub(crate) mod channel_core;
pub(crate) mod get;
pub(crate) mod publish;
pub(crate) mod topology;
pub(crate) mod transaction;
pub(crate) mod unconfirmed;

use std::{future::Future, sync::Arc};

use amqprs::channel::{BasicConsumeArguments, BasicGetArguments};
use tokio::{
    sync::oneshot,
    time::{timeout, timeout_at},
};

use crate::{
    Delivery, Error, Result, SetupChannel,
    channel::{
        channel_core::{ChannelCore, NewStep},
        get::get,
    },
    connection::handle::ConnectionHandle,
    consumer::{self, Consumer},
    encoding::short_string::check_name,
    session::{
        Session,
        setup::{FirstRun, Function, check_outside},
    },
};

/// A channel: declares, publishes, consumes and gets. Cheap to clone; all clones are the same channel.
///
/// Made by [`ConnectionManager::channel`](crate::ConnectionManager::channel). When the connection is lost, or the
/// broker closes the channel, the channel is reopened in confirm mode, and its [`setup`](Self::setup) steps run again.
///
/// You may drop any call at any point, for instance by `tokio::time::timeout`. Every call has the operation timeout of
/// the options as its deadline.
#[derive(Clone)]
pub struct Channel {
    pub(crate) core: Arc<ChannelCore>,
    handle: Arc<ConnectionHandle>,
}

impl Channel {
    pub(crate) fn new(core: Arc<ChannelCore>, handle: Arc<ConnectionHandle>) -> Self {
        Self { core, handle }
    }

    /// The name of the channel.
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Whether it was closed, by [`close`](Self::close) or with its connection manager.
    ///
    /// ```no_run
    /// # async fn example(channel: common::Channel) -> common::Result<()> {
    /// channel.close().await?;
    /// assert!(channel.is_closed());
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_closed(&self) -> bool {
        self.core.is_closed()
    }

    /// Adds a step to the setup of this channel. It runs now, and again after the earlier steps each time the channel
    /// is reopened.
    ///
    /// ```no_run
    /// # async fn example(channel: common::Channel) -> common::Result<()> {
    /// use amqprs::channel::ExchangeDeclareArguments;
    ///
    /// channel.setup(|channel| async move {
    ///     channel.exchange_declare(ExchangeDeclareArguments::new("logs", "fanout")).await
    /// })
    /// .await
    /// # }
    /// ```
    ///
    /// It runs in a task on the Tokio runtime that `setup` is called on. The deadline of each run is the operation
    /// timeout. A step is kept until the channel is closed. So call this once for each thing that the channel needs,
    /// not once for each message. What is needed only once can be declared on the channel itself. The step declares
    /// with its [`SetupChannel`]. It must not use the channel that it sets up, because that channel waits for it.
    ///
    /// # Errors
    /// The step's own error, or that it panicked or did not end in time. Then the step is not kept. It is not kept
    /// either if this call is dropped. Later failures are logged and retried. [`Invalid`](Error::Invalid) outside a
    /// Tokio runtime.
    pub async fn setup<F, Fut>(&self, step: F) -> Result<()>
    where
        F: Fn(SetupChannel) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        let step = Function::new(step, Some(self.core.number))?;
        self.session().await?;
        let (answer, answered) = oneshot::channel();
        let _ = self.core.steps.send(NewStep { step, first_run: FirstRun::default(), answer });
        // Each run has its own deadline. This deadline is for the time between the runs.
        match timeout(self.core.connection.options.operation_timeout * 2, answered).await {
            Ok(answer) => answer.unwrap_or(Err(Error::Shutdown("channel"))),
            Err(_) => Err(self.core.timed_out("cannot run a setup")),
        }
    }

    /// Starts consuming, on a separate AMQP channel. `subscribe` declares what it needs and returns what to consume. It
    /// runs now, and again each time the consumer is reopened.
    ///
    /// If `subscribe` calls no `basic_qos`, a consumer with manual acknowledgement gets a prefetch of 100.
    ///
    /// `subscribe` runs in a task on the Tokio runtime that `consume` is called on. The deadline of each run is the
    /// operation timeout. Exclusive queues that RabbitMQ has named for it are deleted when the [`Consumer`] is dropped.
    ///
    /// ```no_run
    /// use amqprs::channel::BasicConsumeArguments;
    /// use common::{Result, SetupChannel, quorum_queue};
    ///
    /// # async fn example(channel: common::Channel) -> Result<()> {
    /// let mut messages = channel.consume(subscribe).await?;
    /// while let Some(message) = messages.try_next().await? {
    ///     println!("{}", message.display());
    ///     message.ack().await?;
    /// }
    /// # Ok(())
    /// # }
    ///
    /// async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    ///     channel.queue_declare(quorum_queue("hello")).await?;
    ///     Ok(BasicConsumeArguments::new("hello", ""))
    /// }
    /// ```
    ///
    /// # Errors
    /// The error of the first run, or that it panicked or did not end in time. Later failures are logged and retried.
    /// [`Invalid`](Error::Invalid) outside a Tokio runtime.
    pub async fn consume<F, Fut>(&self, subscribe: F) -> Result<Consumer>
    where
        F: Fn(SetupChannel) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<BasicConsumeArguments>> + Send + 'static,
    {
        check_outside(self.core.number)?;
        consumer::start(self.handle.clone(), self.name(), Function::new(subscribe, None)?).await
    }

    /// Like [`consume`](Self::consume), for a `subscribe` that takes a value. The value is cloned for each run.
    ///
    /// # Errors
    /// As [`consume`](Self::consume).
    pub async fn consume_with<T, F, Fut>(&self, value: T, subscribe: F) -> Result<Consumer>
    where
        T: Clone + Send + Sync + 'static,
        F: Fn(SetupChannel, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<BasicConsumeArguments>> + Send + 'static,
    {
        self.consume(move |setup| subscribe(setup, value.clone())).await
    }

    /// Fetches one message, or `None` if the queue is empty (`basic.get`). For many messages, consume instead.
    ///
    /// If you drop it before it returns, a message that comes too late goes back to its queue. With `no_ack` that
    /// message is lost, because RabbitMQ has already forgotten it.
    ///
    /// # Errors
    /// [`Closed`](Error::Closed) with 404 when there is no such queue. [`Lost`](Error::Lost) when the connection broke: with
    /// `no_ack` a message may be lost, too.
    pub async fn get(&self, arguments: BasicGetArguments) -> Result<Option<Delivery>> {
        check_name("queue name", &arguments.queue)?;
        self.on_session(|session| get(self.core.connection.clone(), session, arguments.clone())).await
    }

    /// Waits for outstanding confirms, at most for the operation timeout, and closes the channel. Its consumers have
    /// their own AMQP channels and continue. If you ask the manager for this name again, it opens a new channel.
    ///
    /// # Errors
    /// [`Unconfirmed`](Error::Unconfirmed) when messages were still without a confirm at the end.
    pub async fn close(&self) -> Result<()> {
        self.core.closing.cancel();
        match self.core.closed().await {
            0 => Ok(()),
            count => Err(Error::Unconfirmed { reason: format!("the channel was closed with {count} unconfirmed") }),
        }
    }

    /// A separate AMQP channel without confirms, for one use.
    pub(crate) async fn extra_session(&self) -> Result<Arc<Session>> {
        let core = &self.core.connection;
        let open = async {
            let connection = core.live_connection().await.ok_or(Error::Shutdown("connection manager"))?;
            Session::open(&connection, false, core.options.operation_timeout).await
        };
        timeout_at(core.deadline(), open).await.unwrap_or_else(|_| Err(core.timed_out("cannot open a channel")))
    }

    /// Runs a call on the current session. If the session ended for another reason and before the call was carried out,
    /// runs the call on the next session.
    async fn on_session<T, Fut>(&self, call: impl Fn(Arc<Session>) -> Fut) -> Result<T>
    where
        Fut: Future<Output = Result<T>>,
    {
        let repeat = async {
            loop {
                match call(self.core.session().await?).await {
                    Err(Error::Stale) => {}
                    outcome => return outcome,
                }
            }
        };
        // Each call has its own deadline. This deadline is for the time between them.
        let patience = self.core.connection.options.operation_timeout * 2;
        timeout(patience, repeat).await.unwrap_or_else(|_| Err(self.core.timed_out("cannot use the channel")))
    }

    /// Waits for the current session.
    pub(crate) async fn session(&self) -> Result<Arc<Session>> {
        timeout_at(self.core.connection.deadline(), self.core.session())
            .await
            .unwrap_or_else(|_| Err(self.core.timed_out("cannot use the channel")))
    }
}
