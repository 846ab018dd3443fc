//! One AMQP channel, from its opening until its end.

pub(crate) mod confirms;
pub(crate) mod declared_arguments;
mod events;
pub(crate) mod message_number;
pub(crate) mod own_queues;
pub(crate) mod publish;
pub(crate) mod queue;
pub(crate) mod refused_message;
pub(crate) mod reopen;
pub(crate) mod setup;
pub(crate) mod setup_channel;
pub(crate) mod state;

use std::{
    future::Future,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use amqprs::channel::{Channel as RawChannel, ConfirmSelectArguments};
use tokio::{
    runtime::Handle,
    sync::{Mutex, MutexGuard},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use crate::{
    broker_words,
    connection::{
        channel_numbers::Number,
        live::{ConnectionState, LiveConnection},
    },
    deadline::by,
    error::{Error, Result},
    session::{events::SessionEvents, state::SessionState},
};

pub(crate) struct Session {
    open: Open,
    pub state: Arc<SessionState>,
    /// In confirm mode.
    confirms: AtomicBool,
    /// This program is closing it.
    is_closing: AtomicBool,
    /// The prefetch, once it has been set. 0 means no limit.
    pub prefetch: std::sync::Mutex<Option<u16>>,
    /// The last declared queue. In AMQP the name "" stands for it (`queue.bind`, `basic.consume`).
    pub last_queue: std::sync::Mutex<String>,
    /// For a consumer's setup: the exclusive queues that the broker has named for it. They remain until the connection
    /// ends, and no other program can know their names.
    own_queues: std::sync::Mutex<Option<Vec<String>>>,
    pub connection: Arc<ConnectionState>,
    /// The largest frame that the broker accepts. 0 means no limit.
    pub frame_max: usize,
    pub timeout: Duration,
}

/// An open channel. It is closed when this is dropped.
struct Open {
    // An option only so that `drop` can take it.
    raw: Option<RawChannel>,
    /// Its number, until it is closed.
    number: std::sync::Mutex<Option<Number>>,
    /// The task that makes a synchronous call holds this lock, because two calls at the same time make amqprs's
    /// dispatcher panic.
    calls: Arc<Mutex<()>>,
    runtime: Handle,
}

impl Session {
    /// Opens a channel on the connection. `confirms`: in confirm mode.
    pub async fn open(connection: &LiveConnection, confirms: bool, deadline: Duration) -> Result<Arc<Self>> {
        let doing = || "cannot open a channel".to_owned();
        let lost = || connection.state.closed.reason().unwrap_or(Error::lost("it is being closed"));
        let Some(raw_connection) = connection.raw() else { return Err(lost()) };
        let frame_max = raw_connection.frame_max().try_into().unwrap_or(usize::MAX);
        let runtime = connection.runtime.clone();
        let open = async {
            let number = connection.state.channel_number().await?;
            // In a task of its own: if this call were dropped half-way, amqprs's reader would panic (AMQPRS.md,
            // "Dropped calls").
            let task = connection.runtime.spawn(async move {
                let raw = raw_connection.open_channel(Some(number.id)).await?;
                Ok(Open { raw: Some(raw), number: Some(number).into(), calls: Arc::default(), runtime })
            });
            match task.await {
                Ok(Ok(open)) => Ok(open),
                Ok(Err(error)) => Err(connection.state.failed(error).await),
                Err(_) => Err(lost()),
            }
        };
        let open = tokio::select! {
            open = open => open,
            error = connection.state.closed.wait() => Err(error),
            () = sleep(deadline) => Err(no_answer(&doing(), deadline)),
        };
        // RabbitMQ closes the whole connection when a user has too many channels. This channel was the reason.
        let open = open.map_err(|error| error.blame(doing, broker_words::CHANNELS))?;
        let session = Arc::new(Self {
            open,
            state: Arc::default(),
            confirms: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            prefetch: std::sync::Mutex::default(),
            last_queue: std::sync::Mutex::default(),
            own_queues: std::sync::Mutex::default(),
            connection: connection.state.clone(),
            frame_max,
            timeout: deadline,
        });
        connection.runtime.spawn(end_with_connection(session.state.clone(), connection.state.clone()));
        let events = SessionEvents { state: session.state.clone(), connection: connection.state.clone() };
        if let Err(error) = session.raw()?.register_callback(events).await {
            return Err(session.failed(error).await);
        }
        if confirms {
            session.confirm_select().await?;
        }
        Ok(session)
    }

    pub async fn confirm_select(&self) -> Result<()> {
        let select = |raw: RawChannel| async move { raw.confirm_select(ConfirmSelectArguments::default()).await };
        self.call(|| "cannot switch publisher confirms on".into(), select).await?;
        self.confirms.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The raw channel, for the calls that only send: publish and settle.
    pub fn raw(&self) -> Result<&RawChannel> {
        self.open.raw.as_ref().ok_or(Error::Stale)
    }

    /// Runs one synchronous call: alone on its channel, within the deadline, and ended early if the channel is lost. It
    /// runs in a task of its own, so that the caller can be dropped at any point.
    pub async fn call<T, F, Fut>(&self, doing: impl Fn() -> String, call: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(RawChannel) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, amqprs::error::Error>> + Send + 'static,
    {
        let deadline = Instant::now() + self.timeout;
        let raw = self.raw()?.clone();
        let alone = tokio::select! {
            alone = timeout_at(deadline, self.open.calls.clone().lock_owned()) => alone,
            // Nothing was sent, so this call did not cause the loss.
            error = self.lost() => return Err(match error {
                Error::Shutdown(_) => error,
                _ => Error::Stale,
            }),
        };
        let Ok(alone) = alone else { return Err(self.discard(&doing)) };
        let task = self.open.runtime.spawn(async move {
            let answer = call(raw).await;
            drop(alone);
            answer
        });
        tokio::select! {
            biased;
            answer = task => match answer {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(self.blame(&doing, self.failed(error).await)),
                Err(_) => Err(self.discard(&doing)),
            },
            reason = self.lost() => Err(self.blame(&doing, reason)),
            () = sleep_until(deadline) => Err(self.discard(&doing)),
        }
    }

    /// amqprs has failed to send something. Returns the reason, which the callbacks know a moment earlier or later.
    pub async fn failed(&self, error: amqprs::error::Error) -> Error {
        tokio::select! {
            biased;
            reason = self.lost() => reason,
            reason = self.connection.failed(error) => reason,
        }
    }

    /// Why a call that was sent has no answer: what the program was doing, and the broker's words.
    fn blame(&self, doing: &impl Fn() -> String, reason: Error) -> Error {
        match reason {
            // The broker saw a bad message first, and has ignored the call.
            Error::Closed { .. } if self.state.closed_by_message() => Error::Stale,
            Error::Closed { code, text, .. } => Error::Closed { doing: doing(), code, text },
            reason => reason,
        }
    }

    /// After a call without an answer the channel cannot be trusted. Gives it up; its owner opens another one.
    fn discard(&self, doing: &impl Fn() -> String) -> Error {
        let error = no_answer(&doing(), self.timeout);
        self.state.end(error.clone());
        error
    }

    /// Closes the channel cleanly: messages published before are sent. Limited by the deadline.
    pub async fn close(&self) {
        let deadline = Instant::now() + self.timeout;
        // When this lock is free, tasks that published or settled have sent everything. Later ones find the channel
        // closed: RabbitMQ closes the whole connection (504) if a message or an ack follows the close.
        self.is_closing.store(true, Ordering::Relaxed);
        let _in_order = by(deadline, self.state.order.lock()).await;
        if !self.is_lost()
            && let Some(closing) = self.open.close()
        {
            tokio::select! {
                _ = timeout_at(deadline, closing) => {}
                // RabbitMQ has closed it first, and does not answer any more.
                _ = self.lost() => {}
            }
        }
        self.state.end(Error::Shutdown("channel"));
    }

    /// Waits for the end of this session, and returns its reason.
    pub async fn lost(&self) -> Error {
        self.state.closed.wait().await
    }

    pub fn is_lost(&self) -> bool {
        self.state.closed.is_lost()
    }

    /// For publishing and settling, one at a time, in the order on the wire. `None` after the deadline, or when the session has
    /// ended because this program closed it.
    pub async fn in_order(&self, deadline: Instant) -> Option<MutexGuard<'_, ()>> {
        let guard = by(deadline, self.state.order.lock()).await;
        if guard.is_some() || !self.is_closing.load(Ordering::Relaxed) {
            return guard;
        }
        // `close` has it or waits for it, and is itself limited by a deadline. Then the end of the session is the reason.
        self.lost().await;
        None
    }

    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// The exclusive queues that the broker has named for a consumer's setup, once they are recorded.
    pub fn own_queues(&self) -> std::sync::MutexGuard<'_, Option<Vec<String>>> {
        self.own_queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Closes the channel, once.
    fn close(&self) -> Option<JoinHandle<()>> {
        let raw = self.raw.clone()?;
        let number = self.number.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        number.closing();
        let calls = self.calls.clone();
        Some(self.runtime.spawn(async move {
            let _alone = calls.lock().await;
            let was_open = raw.is_open() && raw.is_connection_open();
            if raw.close().await.is_ok() && was_open {
                number.free();
            }
        }))
    }
}

/// Dropping the last clone of an open amqprs channel spawns a task, so it must happen inside a runtime.
impl Drop for Open {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        drop(self.close());
        self.raw.take();
    }
}

/// A channel ends with its connection, even if amqprs does not say so.
async fn end_with_connection(session: Arc<SessionState>, connection: Arc<ConnectionState>) {
    tokio::select! {
        reason = connection.closed.wait() => session.end(reason),
        _ = session.closed.wait() => {}
    }
}

fn no_answer(doing: &str, after: Duration) -> Error {
    Error::Timeout { doing: doing.into(), after, reason: "the connection stands, but RabbitMQ is silent".into() }
}
