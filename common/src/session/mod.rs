//! One AMQP channel, from its opening until its end: the raw amqprs channel, the confirms that it waits for, and its end.

pub(crate) mod confirms;
pub(crate) mod declared_arguments;
pub(crate) mod message_number;
pub(crate) mod own_queues;
pub(crate) mod queue;
pub(crate) mod refused_message;
pub(crate) mod reopen;
pub(crate) mod setup;
pub(crate) mod setup_channel;

use std::{
    future::Future,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use amqprs::{
    Ack, BasicProperties, Cancel, CloseChannel, Nack, Return,
    callbacks::ChannelCallback,
    channel::{Channel as RawChannel, ConfirmSelectArguments},
};
use async_trait::async_trait;
use tokio::{
    runtime::Handle,
    sync::{Mutex, MutexGuard},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    connection::{
        channel_numbers::Number,
        live::{Health, LiveConnection},
    },
    encoding::nesting::shallow,
    error::{Error, Result, Returned},
    session::{
        confirms::{PendingConfirms, Verdict},
        message_number::take_number,
    },
};

/// How long a channel that the broker closed lingers before it is answered and amqprs's dispatcher ends. Deliveries may
/// follow the close: in RabbitMQ they come from another process, and a quorum queue goes on until the prefetch is used
/// up. One that finds no dispatcher ends the whole connection, and on a busy machine 20 ms were too short.
const LINGER: Duration = Duration::from_secs(1);

pub(crate) struct Session {
    open: Open,
    pub pending_confirms: Arc<PendingConfirms>,
    /// Held while numbering and publishing a message, or while settling a delivery: both depend on the order.
    pub turn: Arc<Mutex<Settled>>,
    /// The prefetch, once one was chosen; 0 is no bound.
    pub prefetch: std::sync::Mutex<Option<u16>>,
    /// The last queue declared, which AMQP lets the name "" stand for (`queue.bind`, `basic.consume`).
    pub last_queue: std::sync::Mutex<String>,
    /// For a consumer's setup: the exclusive queues that the broker named for it. They stay until the connection ends, and
    /// nobody else can know them.
    pub own_queues: std::sync::Mutex<Option<Vec<String>>>,
    /// The broker has cancelled the consumer.
    pub cancelled: CancellationToken,
    pub health: Arc<Health>,
    /// The largest frame that the broker takes; 0 is no limit.
    pub frame_max: usize,
    pub timeout: Duration,
}

/// An open channel. Dropped, it is closed.
struct Open {
    // An option only so that `drop` can take it.
    raw: Option<RawChannel>,
    /// Its number, until it is closed.
    number: std::sync::Mutex<Option<Number>>,
    /// Held, by the task that runs it, during a synchronous call: two at once kill amqprs's dispatcher.
    calls: Arc<Mutex<()>>,
    runtime: Handle,
}

/// What was settled of a session's deliveries.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Everything up to this delivery tag was settled at once (`basic.ack` with `multiple`).
    pub up_to: u64,
    /// Whether anything was.
    pub any: bool,
}

impl Session {
    /// Opens a channel on the link. `confirms`: in confirm mode.
    pub async fn open(link: &LiveConnection, confirms: bool, deadline: Duration) -> Result<Arc<Self>> {
        let doing = || "cannot open a channel".to_owned();
        let lost = || link.health.loss.reason().unwrap_or(Error::lost("it is being closed"));
        let Some(connection) = link.connection() else { return Err(lost()) };
        let frame_max = connection.frame_max().try_into().unwrap_or(usize::MAX);
        let runtime = link.runtime.clone();
        let open = async {
            let number = link.health.take_number().await?;
            // In a task of its own: dropping the call half-way would kill amqprs's reader (AMQPRS.md, "Dropped calls").
            let task = link.runtime.spawn(async move {
                let raw = connection.open_channel(Some(number.id)).await?;
                Ok(Open { raw: Some(raw), number: Some(number).into(), calls: Arc::default(), runtime })
            });
            match task.await {
                Ok(Ok(open)) => Ok(open),
                Ok(Err(error)) => Err(link.health.failed(error).await),
                Err(_) => Err(lost()),
            }
        };
        let open = tokio::select! {
            open = open => open,
            error = link.health.loss.wait() => Err(error),
            () = sleep(deadline) => Err(no_answer(&doing(), deadline)),
        };
        // RabbitMQ closes the whole connection when a user has too many channels. It was this one.
        let open = open.map_err(|error| error.blame(doing, "channels"))?;
        let (pending_confirms, turn) = (Arc::new(PendingConfirms::default()), Arc::new(Mutex::default()));
        let cancelled = CancellationToken::new();
        let raw = open.raw.clone();
        let session = Arc::new(Self {
            open,
            pending_confirms: pending_confirms.clone(),
            turn: turn.clone(),
            prefetch: std::sync::Mutex::default(),
            last_queue: std::sync::Mutex::default(),
            own_queues: std::sync::Mutex::default(),
            cancelled: cancelled.clone(),
            health: link.health.clone(),
            frame_max,
            timeout: deadline,
        });
        link.runtime.spawn(end_with_connection(pending_confirms.clone(), link.health.clone()));
        let callback = SessionEvents { pending_confirms, turn, cancelled, health: link.health.clone() };
        if let Some(raw) = raw
            && let Err(error) = raw.register_callback(callback).await
        {
            return Err(session.failed(error).await);
        }
        if confirms {
            session.confirm_select().await?;
        }
        Ok(session)
    }

    pub async fn confirm_select(&self) -> Result<()> {
        let select = |raw: RawChannel| async move { raw.confirm_select(ConfirmSelectArguments::default()).await };
        self.call(|| "cannot switch publisher confirms on".into(), select).await
    }

    /// The raw channel, for the calls that only send: publish and settle.
    pub fn raw(&self) -> Result<&RawChannel> {
        self.open.raw.as_ref().ok_or(Error::Stale)
    }

    /// Runs one synchronous call: alone on its channel, within the deadline, ended early by the channel's loss, and
    /// in a task of its own, so that the caller can be dropped at any point.
    pub async fn call<T, F, Fut>(&self, doing: impl Fn() -> String, call: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(RawChannel) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, amqprs::error::Error>> + Send + 'static,
    {
        let deadline = Instant::now() + self.timeout;
        let raw = self.raw()?.clone();
        let turn = tokio::select! {
            turn = timeout_at(deadline, self.open.calls.clone().lock_owned()) => turn,
            // Nothing was sent, so this call did not cause it.
            error = self.pending_confirms.loss.wait() => return Err(match error {
                Error::Shutdown(_) => error,
                _ => Error::Stale,
            }),
        };
        let Ok(turn) = turn else { return Err(self.discard(&doing)) };
        let task = self.open.runtime.spawn(async move {
            let answer = call(raw).await;
            drop(turn);
            answer
        });
        tokio::select! {
            biased;
            answer = task => match answer {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(self.blame(&doing, self.failed(error).await)),
                Err(_) => Err(self.discard(&doing)),
            },
            reason = self.pending_confirms.loss.wait() => Err(self.blame(&doing, reason)),
            () = sleep_until(deadline) => Err(self.discard(&doing)),
        }
    }

    /// amqprs has failed to send something: why. The reason is with the callbacks, here a moment earlier or later.
    pub async fn failed(&self, error: amqprs::error::Error) -> Error {
        tokio::select! {
            biased;
            reason = self.pending_confirms.loss.wait() => reason,
            reason = self.health.failed(error) => reason,
        }
    }

    /// The reason why a call that was sent has no answer, with what was being done in front of the broker's words.
    fn blame(&self, doing: &impl Fn() -> String, reason: Error) -> Error {
        match reason {
            // The broker saw the bad message first, and has ignored the call.
            Error::Closed { .. } if self.pending_confirms.by_message.load(Ordering::Relaxed) => Error::Stale,
            Error::Closed { code, text, .. } => Error::Closed { doing: doing(), code, text },
            reason => reason,
        }
    }

    /// After a call without an answer the channel cannot be trusted: give it up, its owner opens another.
    fn discard(&self, doing: &impl Fn() -> String) -> Error {
        let error = no_answer(&doing(), self.timeout);
        self.pending_confirms.end(error.clone());
        error
    }

    /// Closes the channel in an orderly way; what was published before is flushed. Bounded by the deadline.
    pub async fn close(&self) {
        let deadline = Instant::now() + self.timeout;
        // Whoever is publishing or settling has sent it when this is free, and whoever comes later finds the channel
        // closed: RabbitMQ ends the whole connection (504) for a message or an ack that follows the close.
        let _turn = timeout_at(deadline, self.turn.lock()).await;
        if !self.pending_confirms.loss.is_lost()
            && let Some(closing) = self.open.close()
        {
            tokio::select! {
                _ = timeout_at(deadline, closing) => {}
                // RabbitMQ was faster, and does not answer any more.
                _ = self.pending_confirms.loss.wait() => {}
            }
        }
        self.pending_confirms.end(Error::Shutdown("channel"));
    }

    /// Waits for the end of this session, and tells its reason.
    pub async fn lost(&self) -> Error {
        self.pending_confirms.loss.wait().await
    }

    pub fn is_lost(&self) -> bool {
        self.pending_confirms.loss.is_lost()
    }

    pub async fn turn(&self) -> MutexGuard<'_, Settled> {
        self.turn.lock().await
    }

    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
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
            let _turn = calls.lock().await;
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

/// A channel ends with its connection, also when amqprs does not tell it so.
async fn end_with_connection(pending_confirms: Arc<PendingConfirms>, health: Arc<Health>) {
    tokio::select! {
        reason = health.loss.wait() => pending_confirms.end(reason),
        _ = pending_confirms.loss.wait() => {}
    }
}

fn no_answer(doing: &str, after: Duration) -> Error {
    Error::Timeout { doing: doing.into(), after, reason: "the connection stands, but RabbitMQ is silent".into() }
}

/// Hears what the broker says on this channel. It runs inside amqprs's dispatcher, so it never calls the channel,
/// and it holds the pending confirms but not the session, which it would keep alive.
struct SessionEvents {
    pending_confirms: Arc<PendingConfirms>,
    turn: Arc<Mutex<Settled>>,
    cancelled: CancellationToken,
    health: Arc<Health>,
}

impl Drop for SessionEvents {
    fn drop(&mut self) {
        let reason = self.health.loss.reason().unwrap_or(Error::lost("the channel ended"));
        self.pending_confirms.end(reason);
    }
}

#[async_trait]
impl ChannelCallback for SessionEvents {
    async fn close(&mut self, raw: &RawChannel, close: CloseChannel) -> Result<(), amqprs::error::Error> {
        self.health.numbers.lose(raw.channel_id());
        let (code, text) = (close.reply_code(), close.reply_text().clone());
        // basic.publish; basic.ack, reject, nack.
        let refused = (close.class_id(), close.method_id()) == (60, 40);
        let unsettled = matches!((close.class_id(), close.method_id()), (60, 80 | 90 | 120));
        self.pending_confirms.by_message.store(refused || unsettled, Ordering::Relaxed);
        match refused {
            true => self.pending_confirms.refuse(code, &text),
            false => {
                self.pending_confirms.end(Error::Closed { doing: "RabbitMQ closed the channel".into(), code, text })
            }
        }
        // The answer has to wait: else what is still on its way, in either direction, costs the whole connection. And it
        // has to come: a quorum queue keeps what was delivered on this channel, unacknowledged, until then.
        let quiet = async {
            sleep(LINGER).await;
            // Whoever is publishing or settling has sent it when this is free; whoever comes later sees the loss.
            drop(self.turn.lock().await);
        };
        tokio::select! {
            () = self.health.ended() => {}
            () = quiet => {}
        }
        // When the connection has ended, or will in a moment, nobody is there to be answered, and amqprs would panic. Its
        // writer may end before anybody is told of the loss.
        if raw.is_connection_open() && !self.health.is_ending() {
            Ok(())
        } else {
            Err(amqprs::error::Error::ChannelCloseError("closed by RabbitMQ".into()))
        }
    }

    async fn cancel(&mut self, _: &RawChannel, _: Cancel) -> Result<(), amqprs::error::Error> {
        // The channel lives, and what it has delivered can be settled.
        self.cancelled.cancel();
        Ok(())
    }

    async fn flow(&mut self, _: &RawChannel, active: bool) -> Result<bool, amqprs::error::Error> {
        Ok(active)
    }

    async fn publish_ack(&mut self, _: &RawChannel, ack: Ack) {
        self.pending_confirms.settle(ack.delivery_tag(), ack.mutiple(), Verdict::Ack);
    }

    async fn publish_nack(&mut self, _: &RawChannel, nack: Nack) {
        self.pending_confirms.settle(nack.delivery_tag(), nack.multiple(), Verdict::Nack);
    }

    async fn publish_return(&mut self, _: &RawChannel, ret: Return, properties: BasicProperties, body: Vec<u8>) {
        let (properties, number) = take_number(shallow(properties, || format!("a returned message ({ret})")));
        let message = Returned {
            code: ret.reply_code(),
            text: ret.reply_text().clone(),
            exchange: ret.exchange().clone(),
            routing_key: ret.routing_key().clone(),
            properties,
            body,
        };
        let call = || Uuid::parse_str(message.properties.correlation_id()?).ok();
        match (number, call()) {
            (Some(number), _) => self.pending_confirms.returned(number, message),
            (None, Some(call)) => self.pending_confirms.returned_call(call, message),
            (None, None) => tracing::warn!("a returned message is none of ours: {message}"),
        }
    }
}
