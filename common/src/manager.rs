//! The connection manager: one connection, shared, lazy, and back after every loss.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Channel, ConnectOptions, Error, Result, channel::ChannelCore, link::Link};

/// amqprs loses a channel number each time the broker closes a channel, and panics at 2,047: start afresh before.
const MOST_CLOSED_CHANNELS: u32 = 1_500;

/// Owns the connection to one broker, and hands out named channels on it.
///
/// Cheap to clone; all clones share the connection. Nothing is dialled before the first channel is asked for.
/// After a loss the connection comes back by itself, with everything that the channels' setups declare.
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
    handle: Arc<ManagerHandle>,
}

/// Held by everything a user holds, and by no task: when the last one goes, all tasks end.
pub(crate) struct ManagerHandle {
    pub core: Arc<Core>,
    requests: mpsc::UnboundedSender<Request>,
    /// The supervisor's end of `requests`, until the first use starts it.
    supervisor: Mutex<Option<mpsc::UnboundedReceiver<Request>>>,
    channels: Mutex<HashMap<String, Arc<ChannelCore>>>,
}

impl Drop for ManagerHandle {
    fn drop(&mut self) {
        self.core.closing.cancel();
        self.core.stop.cancel();
    }
}

/// What the tasks share.
pub(crate) struct Core {
    pub options: ConnectOptions,
    pub link: watch::Sender<LinkState>,
    /// Everything above the connection has to end, in an orderly way.
    pub closing: CancellationToken,
    /// Everything has to end.
    pub stop: CancellationToken,
    /// The tasks of channels and consumers.
    pub tasks: TaskTracker,
    supervisor: TaskTracker,
}

#[derive(Clone)]
pub(crate) enum LinkState {
    Up(Arc<Link>),
    /// Not there (yet, or any more), with the last error.
    Down(Option<Error>),
}

/// Somebody wants a connection: the answer is the outcome of an attempt made for it.
type Request = oneshot::Sender<Result<()>>;

impl ConnectionManager {
    /// A manager for the broker described by `options`. Dials nothing yet.
    pub fn new(options: ConnectOptions) -> Self {
        let (requests, supervisor) = mpsc::unbounded_channel();
        let core = Core {
            options,
            link: watch::Sender::new(LinkState::Down(None)),
            closing: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            supervisor: TaskTracker::new(),
        };
        let handle = ManagerHandle {
            core: Arc::new(core),
            requests,
            supervisor: Mutex::new(Some(supervisor)),
            channels: Mutex::default(),
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
        self.handle.connect().await?;
        let core = {
            let mut channels = self.handle.channels.lock().unwrap_or_else(PoisonError::into_inner);
            match channels.get(name).filter(|core| !core.is_closed()) {
                Some(core) => core.clone(),
                None => {
                    let core = ChannelCore::start(name, &self.handle.core);
                    channels.insert(name.to_owned(), core.clone());
                    core
                }
            }
        };
        let channel = Channel::new(core, self.handle.clone());
        channel.opening().await?;
        Ok(channel)
    }

    /// Ends everything, in order: consumers are cancelled, outstanding confirms awaited, channels closed, then the
    /// connection. Each step is bounded by the operation timeout. Afterwards this manager is of no more use.
    ///
    /// Called by several tasks at once, or again, it waits for the same end.
    ///
    /// # Errors
    /// [`Unconfirmed`](Error::Unconfirmed) when messages were still without a confirm at the end.
    pub async fn close_all(&self) -> Result<()> {
        let core = &self.handle.core;
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
        if let Some(requests) = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner).take() {
            core.supervisor.spawn(supervise(core.clone(), requests));
        }
        let (request, answer) = oneshot::channel();
        let _ = self.requests.send(request);
        // One attempt has its own deadline; this one matters when attempts follow each other.
        let patience = core.options.operation_timeout.max(core.options.connection_timeout + Duration::from_secs(1));
        match timeout(patience, answer).await {
            Ok(answer) => answer.unwrap_or(Err(Error::Shutdown("connection manager"))),
            Err(_) => Err(core.timed_out("cannot connect to RabbitMQ")),
        }
    }
}

impl Core {
    /// Waits for a living connection; `None` when everything has to end.
    pub async fn living_link(&self) -> Option<Arc<Link>> {
        let mut state = self.link.subscribe();
        loop {
            if let LinkState::Up(link) = &*state.borrow_and_update()
                && !link.health.loss.is_lost()
            {
                return Some(link.clone());
            }
            tokio::select! {
                () = self.closing.cancelled() => return None,
                changed = state.changed() => changed.ok()?,
            }
        }
    }

    /// The operation timeout is over; says why nothing happened.
    pub fn timed_out(&self, doing: &str) -> Error {
        let reason = match &*self.link.borrow() {
            LinkState::Down(Some(error)) => error.to_string(),
            _ => String::new(),
        };
        Error::Timeout { doing: doing.into(), after: self.options.operation_timeout, reason }
    }

    pub fn deadline(&self) -> Instant {
        Instant::now() + self.options.operation_timeout
    }
}

/// Owns the connection: dials when first asked, and again after every loss, until the end.
async fn supervise(core: Arc<Core>, mut requests: mpsc::UnboundedReceiver<Request>) {
    let Some(mut link) = first_connection(&core, &mut requests).await else { return };
    let address = core.options.address();
    tracing::debug!("connected to RabbitMQ at {address}");
    loop {
        core.link.send_replace(LinkState::Up(link.clone()));
        let reason = watch_over(&core, &link, &mut requests).await;
        let Some(reason) = reason else { return close(&core, link).await };
        core.link.send_replace(LinkState::Down(Some(reason.clone())));
        drop(link);
        tracing::warn!("{reason}; connecting again to {address}");
        let mut pauses = backoff(&core.options);
        link = loop {
            sleep_or_stop(&core, pauses.next()).await;
            let dialled = tokio::select! {
                dialled = Link::dial(&core.options) => dialled,
                () = core.stop.cancelled() => return,
            };
            match dialled {
                Ok(link) => break Arc::new(link),
                Err(error) => {
                    tracing::debug!("{error}");
                    core.link.send_replace(LinkState::Down(Some(error)));
                }
            }
        };
        tracing::info!("connected again to RabbitMQ at {address}");
    }
}

/// With `fail_fast`, each request gets one attempt and its outcome; without, the attempts go on until one succeeds.
async fn first_connection(core: &Core, requests: &mut mpsc::UnboundedReceiver<Request>) -> Option<Arc<Link>> {
    loop {
        let mut waiting = tokio::select! {
            request = requests.recv() => vec![request?],
            () = core.stop.cancelled() => return None,
        };
        let mut pauses = backoff(&core.options);
        let dialled = loop {
            let dialled = tokio::select! {
                dialled = Link::dial(&core.options) => dialled,
                () = core.stop.cancelled() => return None,
            };
            match &dialled {
                Err(error) if !core.options.fail_fast => {
                    tracing::warn!("{error}; trying again");
                    core.link.send_replace(LinkState::Down(Some(error.clone())));
                    sleep_or_stop(core, pauses.next()).await;
                }
                _ => break dialled,
            }
        };
        while let Ok(request) = requests.try_recv() {
            waiting.push(request);
        }
        let outcome = dialled.as_ref().map(|_| ()).map_err(Clone::clone);
        let link = dialled.ok().map(Arc::new);
        if let Some(link) = &link {
            core.link.send_replace(LinkState::Up(link.clone()));
        }
        for request in waiting {
            let _ = request.send(outcome.clone());
        }
        if link.is_some() {
            return link;
        }
    }
}

/// Until the connection is lost or used up: the reason. `None` when everything has to end.
async fn watch_over(core: &Core, link: &Link, requests: &mut mpsc::UnboundedReceiver<Request>) -> Option<Error> {
    let mut wear = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = core.stop.cancelled() => return None,
            reason = link.health.loss.wait() => return Some(reason),
            request = requests.recv() => {
                let _ = request?.send(Ok(()));
            }
            _ = wear.tick() => if link.closed_channels() > MOST_CLOSED_CHANNELS {
                let reason = Error::Lost { reason: format!("{MOST_CLOSED_CHANNELS} channels were closed on it") };
                link.health.loss.signal(reason.clone());
                return Some(reason);
            }
        }
    }
}

async fn close(core: &Core, link: Arc<Link>) {
    core.link.send_replace(LinkState::Down(Some(Error::Shutdown("connection manager"))));
    if let Some(connection) = link.connection() {
        // In a task of its own: dropping the call half-way would kill amqprs's reader.
        let closing = tokio::spawn(connection.close());
        let deadline = Instant::now() + core.options.operation_timeout;
        let _ = timeout_at(deadline, closing).await;
        // The broker has answered; the socket and its tasks end now.
        let _ = timeout_at(deadline, link.health.loss.wait()).await;
    }
}

/// Pauses between attempts, growing from a tenth of a second, with jitter so that clients do not return as one.
pub(crate) fn backoff(options: &ConnectOptions) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100).min(options.reconnect_interval))
        .with_max_delay(options.reconnect_interval)
        .with_jitter()
        .without_max_times()
        .build()
}

async fn sleep_or_stop(core: &Core, pause: Option<Duration>) {
    tokio::select! {
        () = sleep(pause.unwrap_or(core.options.reconnect_interval)) => {}
        () = core.stop.cancelled() => {}
    }
}
