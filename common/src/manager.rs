//! The connection manager: one shared connection, which is opened when it is first needed and reopened after every
//! loss.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{timeout, timeout_at};

use crate::{
    Channel, ConnectOptions, Error, Event, Events, Result, channel::channel_core::ChannelCore,
    connection::handle::ConnectionHandle,
};

/// How long workers and RPC servers may take at the end to settle what is done. Not longer than a write may take.
const LAST_ACKS: Duration = Duration::from_secs(1);

/// Owns the connection to one broker, and hands out named channels on it.
///
/// Cheap to clone; all clones share the connection. It connects when the first channel is asked for. After a loss it
/// reconnects automatically, and restores everything that the channels' setups declare.
///
/// A program that publishes and consumes should have two connection managers, one for each. While RabbitMQ is short of
/// memory or disk, it [reads nothing](https://www.rabbitmq.com/docs/alarms) from a connection that publishes. Then
/// consumers on the same connection cannot acknowledge, and soon get no more messages.
///
/// Call [`close_all`](Self::close_all) at the end. If you drop the last clone, and the channels and consumers made from
/// it, the tasks and the connection end, too. But this does not wait for anything.
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
    handle: Arc<ConnectionHandle>,
    /// The channels by name. Each is kept alive by its own task.
    channels: Arc<Mutex<HashMap<String, Arc<ChannelCore>>>>,
}

impl ConnectionManager {
    /// A manager for the broker described by `options`. It does not connect yet.
    pub fn new(options: ConnectOptions) -> Self {
        Self { handle: ConnectionHandle::new(options), channels: Arc::default() }
    }

    /// The channel with this name: the open one, or a new one if it was closed or never asked for. Channels are in
    /// [confirm mode](https://www.rabbitmq.com/docs/confirms#publisher-confirms).
    ///
    /// The first channel opens the connection. Even if many tasks ask at the same time, there is only one connection,
    /// and one channel for each name.
    ///
    /// # Errors
    /// [`Connect`](Error::Connect) or [`LoginRefused`](Error::LoginRefused) when the first connection cannot be made (with
    /// `fail_fast`), [`Shutdown`](Error::Shutdown) after [`close_all`](Self::close_all), [`Timeout`](Error::Timeout)
    /// when there is no connection for longer than the operation timeout.
    pub async fn channel(&self, name: &str) -> Result<Channel> {
        self.named_channel(name, true).await
    }

    /// A channel without publisher confirms, for messages that may be lost without harm: publishing ends when the
    /// message is handed to the connection. Otherwise like [`channel`](Self::channel). Both share their names, so ask
    /// for a name always in the same way.
    ///
    /// ```no_run
    /// use common::amqprs::{BasicProperties, channel::BasicPublishArguments};
    ///
    /// # async fn example(connections: common::ConnectionManager) -> common::Result<()> {
    /// let channel = connections.channel_without_confirms("temperature").await?;
    /// channel.publish(BasicPublishArguments::new("sensors", "attic"), BasicProperties::default(), "21.5").await
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`channel`](Self::channel).
    pub async fn channel_without_confirms(&self, name: &str) -> Result<Channel> {
        self.named_channel(name, false).await
    }

    async fn named_channel(&self, name: &str, confirms: bool) -> Result<Channel> {
        self.handle.connect().await?;
        let core = {
            let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
            match channels.get(name).filter(|core| !core.is_closed()) {
                Some(core) if core.confirms != confirms => {
                    return Err(Error::Invalid(format!("channel `{name}` is open with the other kind of confirms")));
                }
                Some(core) => core.clone(),
                None => {
                    // A program may make up names that it uses only once.
                    channels.retain(|_, core| !core.has_ended());
                    let core = ChannelCore::start(name, &self.handle.core, confirms);
                    channels.insert(name.to_owned(), core.clone());
                    core
                }
            }
        };
        let channel = Channel::new(core, self.handle.clone());
        channel.session().await?;
        Ok(channel)
    }

    /// What happens to the connection from now on. If it was ever up, the first event is its present state.
    pub fn events(&self) -> Events {
        Events::of(&self.handle.core.events)
    }

    /// Whether [`close_all`](Self::close_all) was called.
    ///
    /// ```no_run
    /// # async fn example(connections: common::ConnectionManager) -> common::Result<()> {
    /// connections.close_all().await?;
    /// assert!(connections.is_closed());
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_closed(&self) -> bool {
        self.handle.core.closing.is_cancelled()
    }

    /// Waits until the connection is up, and every channel and consumer made from this manager is set up on it.
    /// Connects if there was no connection yet.
    ///
    /// [`Event::Recovered`](crate::Event::Recovered) only reports the connection, which is restored first.
    ///
    /// ```no_run
    /// # async fn example(connections: common::ConnectionManager) -> common::Result<()> {
    /// let mut events = connections.events();
    /// while let Some(event) = events.next().await {
    ///     if matches!(event, common::Event::Recovered) && connections.ready().await.is_ok() {
    ///         println!("all channels and consumers are back");
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Timeout`](Error::Timeout) after the operation timeout, for instance because a setup fails again and again;
    /// [`Shutdown`](Error::Shutdown) after [`close_all`](Self::close_all); those of the first connection.
    pub async fn ready(&self) -> Result<()> {
        let core = &self.handle.core;
        let deadline = core.deadline();
        self.handle.connect().await?;
        let wait = async {
            loop {
                let connection = core.live_connection().await.ok_or(Error::Shutdown("connection manager"))?;
                let (mut owners, mut ready) = (core.owners.0.subscribe(), connection.state.ready.0.subscribe());
                while !connection.state.closed.is_lost() {
                    if *ready.borrow_and_update() >= *owners.borrow_and_update() {
                        return Ok(());
                    }
                    tokio::select! {
                        _ = owners.changed() => {}
                        _ = ready.changed() => {}
                        _ = connection.state.closed.wait() => {}
                        () = core.closing.cancelled() => return Err(Error::Shutdown("connection manager")),
                    }
                }
            }
        };
        timeout_at(deadline, wait)
            .await
            .unwrap_or_else(|_| Err(core.timed_out("not all channels and consumers are ready")))
    }

    /// Ends everything in order. Workers and RPC servers settle what they have done. Consumers are cancelled,
    /// outstanding confirms awaited, channels closed, and then the connection. Each step has a deadline, at most the
    /// operation timeout. Afterwards this manager cannot be used any more.
    ///
    /// If several tasks call it, or it is called again, all calls wait for the same end.
    ///
    /// # Errors
    /// [`Unconfirmed`](Error::Unconfirmed) when messages were still without a confirm at the end.
    pub async fn close_all(&self) -> Result<()> {
        let core = &self.handle.core;
        core.stop_receiving.cancel();
        core.workers.close();
        let _ = timeout(LAST_ACKS, core.workers.wait()).await;
        core.closing.cancel();
        let channels: Vec<_> = {
            let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
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
        // If it never connected, there is no supervisor that reports the end.
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
                doing: "cannot close the connection cleanly".into(),
                after: patience,
                reason: "RabbitMQ is silent".into(),
            }),
        }
    }
}
