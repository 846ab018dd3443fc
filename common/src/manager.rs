//! The connection manager: one connection, shared, lazy, and back after every loss.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    Channel, ConnectOptions, Error, Event, Events, Result,
    channel_core::ChannelCore,
    deep::{STACK, stack_size},
    supervisor::{Core, LinkState, Request, supervise},
};

/// How long those who work on deliveries may take to settle what is done, at the end: no longer than writing does.
const LAST_ACKS: Duration = Duration::from_secs(1);

/// Owns the connection to one broker, and hands out named channels on it.
///
/// Cheap to clone; all clones share the connection. Nothing is dialled before the first channel is asked for.
/// After a loss the connection comes back by itself, with everything that the channels' setups declare.
///
/// A program that publishes and consumes should have two, one for each: while RabbitMQ is short of memory or disk, it
/// [reads nothing](https://www.rabbitmq.com/docs/alarms) from a connection that publishes. Consumers on the same connection
/// cannot acknowledge then, and soon get nothing more.
///
/// Call [`close_all`](Self::close_all) at the end. Dropping the last clone, and the channels and consumers made
/// from it, ends the tasks and the connection too, but does not wait for anything.
///
/// ```no_run
/// # async fn example() -> common::Result<()> {
/// use amqprs::{BasicProperties, channel::BasicPublishArguments};
/// use common::{ConnectOptions, ConnectionManager, quorum_queue};
///
/// let connections = ConnectionManager::new(ConnectOptions::default());
/// let channel = connections.channel("send").await?;
/// channel.queue_declare(quorum_queue("hello")).await?;
/// channel.publish(BasicPublishArguments::new("", "hello"), BasicProperties::default(), "Hello World!").await?;
/// connections.close_all().await
/// # }
/// ```
#[derive(Clone)]
pub struct ConnectionManager {
    pub(crate) handle: Arc<ManagerHandle>,
}

/// Held by everything a user holds, and by no task: when the last one goes, all tasks end.
pub(crate) struct ManagerHandle {
    pub core: Arc<Core>,
    requests: mpsc::UnboundedSender<Request>,
    /// The supervisor's end of `requests`, until the first use starts it.
    supervisor: Mutex<Option<mpsc::UnboundedReceiver<Request>>>,
    channels: Mutex<HashMap<String, Arc<ChannelCore>>>,
    runtime: Mutex<Option<Runtime>>,
}

impl Drop for ManagerHandle {
    fn drop(&mut self) {
        self.core.closing.cancel();
        self.core.stop.cancel();
        self.end_runtime();
    }
}

impl ConnectionManager {
    /// A manager for the broker described by `options`. Dials nothing yet.
    pub fn new(options: ConnectOptions) -> Self {
        let (requests, supervisor) = mpsc::unbounded_channel();
        let handle = ManagerHandle {
            core: Arc::new(Core::new(options)),
            requests,
            supervisor: Mutex::new(Some(supervisor)),
            channels: Mutex::default(),
            runtime: Mutex::default(),
        };
        Self { handle: Arc::new(handle) }
    }

    /// The channel of that name: the open one, or a new one if it was closed or never asked for. Channels are in
    /// [confirm mode](https://www.rabbitmq.com/docs/confirms#publisher-confirms).
    ///
    /// The first channel opens the connection; however many tasks ask at once, there is one connection, and one
    /// channel for each name.
    ///
    /// # Errors
    /// [`Connect`](Error::Connect) or [`Refused`](Error::Refused) when the first connection cannot be made (with
    /// `fail_fast`), [`Shutdown`](Error::Shutdown) after [`close_all`](Self::close_all), [`Timeout`](Error::Timeout)
    /// when there is no connection for longer than the operation timeout.
    pub async fn channel(&self, name: &str) -> Result<Channel> {
        self.named_channel(name, true).await
    }

    /// A channel without publisher confirms, for messages whose loss does no harm: publishing resolves when the message
    /// is handed to the connection. Otherwise as [`channel`](Self::channel), whose names it shares: ask for a name in
    /// one way only.
    ///
    /// # Errors
    /// As [`channel`](Self::channel).
    pub async fn channel_without_confirms(&self, name: &str) -> Result<Channel> {
        self.named_channel(name, false).await
    }

    async fn named_channel(&self, name: &str, confirms: bool) -> Result<Channel> {
        self.handle.connect().await?;
        let core = {
            let mut channels = self.handle.channels.lock().unwrap_or_else(PoisonError::into_inner);
            match channels.get(name).filter(|core| !core.is_closed()) {
                Some(core) if core.confirms != confirms => {
                    return Err(Error::Invalid(format!("channel `{name}` is open with the other kind of confirms")));
                }
                Some(core) => core.clone(),
                None => {
                    // Names may be made up for one use each.
                    channels.retain(|_, core| !core.has_ended());
                    let core = ChannelCore::start(name, &self.handle.core, confirms);
                    channels.insert(name.to_owned(), core.clone());
                    core
                }
            }
        };
        let channel = Channel::new(core, self.handle.clone());
        channel.opening().await?;
        Ok(channel)
    }

    /// What happens to the connection from now on. The first event is its present state, if it was ever up.
    pub fn events(&self) -> Events {
        let mut latest = self.handle.core.events.subscribe();
        latest.mark_changed();
        Events(latest)
    }

    /// Whether [`close_all`](Self::close_all) was called.
    pub fn is_closed(&self) -> bool {
        self.handle.core.closing.is_cancelled()
    }

    /// Ends everything, in order: what workers and RPC servers have done is settled, consumers are cancelled, outstanding
    /// confirms awaited, channels closed, then the connection. Each step is bounded, by the operation timeout at most.
    /// Afterwards this manager is of no more use.
    ///
    /// Called by several tasks at once, or again, it waits for the same end.
    ///
    /// # Errors
    /// [`Unconfirmed`](Error::Unconfirmed) when messages were still without a confirm at the end.
    pub async fn close_all(&self) -> Result<()> {
        let core = &self.handle.core;
        core.resting.cancel();
        core.workers.close();
        let _ = timeout(LAST_ACKS, core.workers.wait()).await;
        core.closing.cancel();
        let channels: Vec<_> = {
            let mut channels = self.handle.channels.lock().unwrap_or_else(PoisonError::into_inner);
            channels.drain().map(|(_, channel)| channel).collect()
        };
        // Every step of the tasks is bounded: the confirms, closing a channel, closing the connection.
        let patience = core.options.operation_timeout * 3;
        let unconfirmed = timeout(patience, async {
            let mut unconfirmed = 0;
            for channel in channels {
                unconfirmed += channel.closed().await;
            }
            core.tasks.close();
            core.tasks.wait().await;
            unconfirmed
        })
        .await;
        core.stop.cancel();
        core.supervisor.close();
        let ended = timeout(patience, core.supervisor.wait()).await;
        // Where nothing was ever dialled, no supervisor says it.
        core.events.send_if_modified(|event| match event {
            Some(Event::Closed) => false,
            event => {
                *event = Some(Event::Closed);
                true
            }
        });
        self.handle.end_runtime();
        match (unconfirmed, ended) {
            (Ok(0), Ok(())) => Ok(()),
            (Ok(count @ 1..), _) => {
                Err(Error::Unconfirmed { reason: format!("the connection was closed with {count} unconfirmed") })
            }
            _ => Err(Error::Timeout {
                doing: "cannot close the connection in an orderly way".into(),
                after: patience,
                reason: "RabbitMQ is silent".into(),
            }),
        }
    }
}

impl ManagerHandle {
    /// Waits until there is a connection, asking for the first one.
    pub async fn connect(&self) -> Result<()> {
        let core = &self.core;
        if core.closing.is_cancelled() {
            return Err(Error::Shutdown("connection manager"));
        }
        if matches!(*core.link.borrow(), LinkState::Up(_)) {
            return Ok(());
        }
        self.start_supervisor()?;
        let (request, answer) = oneshot::channel();
        let _ = self.requests.send(request);
        // One attempt has its own deadline; this one matters when attempts follow each other.
        let patience = core.options.operation_timeout.max(core.options.time_to_connect() + Duration::from_secs(1));
        match timeout(patience, answer).await {
            Ok(answer) => answer.unwrap_or(Err(Error::Shutdown("connection manager"))),
            Err(_) => Err(core.timed_out("cannot connect to RabbitMQ")),
        }
    }

    /// Starts the supervisor, at the first use, on a runtime of one thread that belongs to this manager alone.
    ///
    /// A task of amqprs panics when another one that it has to answer is dropped half-way. With everything on one thread
    /// that is never shut down between the two, as the program's own runtime would be at the end of `main`, none does. It
    /// also ends what amqprs cannot abort, a write to a peer that has stopped reading; and heartbeats go on while the
    /// program's own threads are busy.
    fn start_supervisor(&self) -> Result<()> {
        let mut supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner);
        if supervisor.is_none() {
            return Ok(());
        }
        let stack = stack_size().map_err(|error| {
            let stack = STACK >> 20;
            Error::Other(format!("cannot start a thread with {stack} MiB of address space for its stack: {error}"))
        })?;
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("rabbitmq").thread_stack_size(stack).enable_all();
        let runtime = builder.build().map_err(|error| {
            // EMFILE, which has no `ErrorKind`.
            let too_many_files = cfg!(unix) && error.raw_os_error() == Some(24);
            let hint = if too_many_files { "; `ulimit -n 1024` allows more" } else { "" };
            Error::Other(format!("cannot start what the connection runs on: {error}{hint}"))
        })?;
        let handle = self.core.runtime.get_or_init(|| runtime.handle().clone());
        if let Some(requests) = supervisor.take() {
            self.core.supervisor.spawn_on(supervise(self.core.clone(), requests), handle);
        }
        *self.runtime.lock().unwrap_or_else(PoisonError::into_inner) = Some(runtime);
        Ok(())
    }

    fn end_runtime(&self) {
        if let Some(runtime) = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Waits for nothing, and so may be called anywhere.
            runtime.shutdown_background();
        }
    }
}
