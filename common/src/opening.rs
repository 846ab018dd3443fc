//! One opening of a channel: the raw amqprs channel, its ledger of confirms, and its end.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use amqprs::{
    Ack, BasicProperties, Cancel, CloseChannel, FieldValue, Nack, Return,
    callbacks::ChannelCallback,
    channel::{Channel as RawChannel, ConfirmSelectArguments},
};
use async_trait::async_trait;
use tokio::{
    runtime::Handle,
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    deep::shallow,
    error::{Error, Result, Returned},
    ledger::{Ledger, Verdict},
    link::{Health, Link, Number},
};

/// Carries the number of a mandatory message: the broker returns it without one.
const NUMBER_HEADER: &str = "x-publish-number";

/// Its size among the headers: the name with its length, the type, the number.
pub(crate) const NUMBER_FIELD: usize = 1 + NUMBER_HEADER.len() + 1 + 8;

/// How long a channel that the broker closed lingers before it is answered and amqprs's dispatcher ends. Deliveries may
/// follow the close: in RabbitMQ they come from another process, and a quorum queue goes on until the prefetch is used
/// up. One that finds no dispatcher ends the whole connection, and on a busy machine 20 ms were too short.
const LINGER: Duration = Duration::from_secs(1);

/// How long the reason of a failed call may take: it comes from another task.
const REASON: Duration = Duration::from_secs(1);

pub(crate) struct Opening {
    // An option only so that `drop` can take it.
    raw: Option<RawChannel>,
    _number: Number,
    pub ledger: Arc<Ledger>,
    /// Held while numbering and publishing a message, or while settling a delivery: both depend on the order.
    pub turn: Arc<Mutex<Settled>>,
    /// Held, by the task that runs it, during a synchronous call: two at once kill amqprs's dispatcher.
    calls: Arc<Mutex<()>>,
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
    runtime: Handle,
}

/// What was settled of an opening's deliveries.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Everything up to this delivery tag was settled at once (`basic.ack` with `multiple`).
    pub up_to: u64,
    /// Whether anything was.
    pub any: bool,
}

impl Opening {
    /// Opens a channel on the link. `confirms`: in confirm mode.
    pub async fn open(link: &Link, confirms: bool, deadline: Duration) -> Result<Arc<Self>> {
        let lost = || link.health.loss.reason().unwrap_or(Error::lost("it is being closed"));
        let Some(connection) = link.connection() else { return Err(lost()) };
        let number = link.health.take_number(&connection)?;
        let frame_max = connection.frame_max().try_into().unwrap_or(usize::MAX);
        // In a task of its own: dropping the call half-way would kill amqprs's reader (AMQPRS.md, "Dropped calls").
        let task = link.runtime.spawn(async move { connection.open_channel(None).await.map(|raw| (raw, number)) });
        let (raw, number) = tokio::select! {
            opened = task => match opened {
                Ok(Ok(opened)) => opened,
                Ok(Err(_)) | Err(_) => return Err(lost()),
            },
            error = link.health.loss.wait() => return Err(error),
            () = sleep(deadline) => return Err(no_answer("cannot open a channel", deadline)),
        };
        let (ledger, turn) = (Arc::new(Ledger::default()), Arc::new(Mutex::default()));
        let cancelled = CancellationToken::new();
        let opening = Arc::new(Self {
            raw: Some(raw.clone()),
            _number: number,
            ledger: ledger.clone(),
            turn: turn.clone(),
            calls: Arc::default(),
            prefetch: std::sync::Mutex::default(),
            last_queue: std::sync::Mutex::default(),
            own_queues: std::sync::Mutex::default(),
            cancelled: cancelled.clone(),
            health: link.health.clone(),
            frame_max,
            timeout: deadline,
            runtime: link.runtime.clone(),
        });
        raw.register_callback(Callback { ledger, turn, cancelled, health: link.health.clone() }).await?;
        if confirms {
            opening.confirm_select().await?;
        }
        Ok(opening)
    }

    pub async fn confirm_select(&self) -> Result<()> {
        let select = |raw: RawChannel| async move { raw.confirm_select(ConfirmSelectArguments::default()).await };
        self.call(|| "cannot switch publisher confirms on".into(), select).await
    }

    /// The raw channel, for the calls that only send: publish and settle.
    pub fn raw(&self) -> Result<&RawChannel> {
        self.raw.as_ref().ok_or(Error::Stale)
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
            turn = timeout_at(deadline, self.calls.clone().lock_owned()) => turn,
            // Nothing was sent, so it is no fault of this call.
            error = self.ledger.loss.wait() => return Err(match error {
                Error::Shutdown(_) => error,
                _ => Error::Stale,
            }),
        };
        let Ok(turn) = turn else { return Err(self.discard(&doing)) };
        let task = self.runtime.spawn(async move {
            let answer = call(raw).await;
            drop(turn);
            answer
        });
        tokio::select! {
            biased;
            answer = task => match answer {
                Ok(Ok(answer)) => Ok(answer),
                // The broker's reason is with the callback, here a moment earlier or later.
                Ok(Err(_)) | Err(_) => match timeout(REASON, self.ledger.loss.wait()).await {
                    Ok(reason) => Err(self.blame(&doing, reason)),
                    Err(_) => Err(self.discard(&doing)),
                },
            },
            reason = self.ledger.loss.wait() => Err(self.blame(&doing, reason)),
            () = sleep_until(deadline) => Err(self.discard(&doing)),
        }
    }

    /// The reason why a call that was sent has no answer, with what was being done in front of the broker's words.
    fn blame(&self, doing: &impl Fn() -> String, reason: Error) -> Error {
        match reason {
            // The broker saw the bad message first, and has ignored the call.
            Error::Closed { .. } if self.ledger.by_message.load(Ordering::Relaxed) => Error::Stale,
            Error::Closed { code, text, .. } => Error::Closed { doing: doing(), code, text },
            reason => reason,
        }
    }

    /// After a call without an answer the channel cannot be trusted: give it up, its owner opens another.
    fn discard(&self, doing: &impl Fn() -> String) -> Error {
        let error = no_answer(&doing(), self.timeout);
        self.ledger.end(error.clone());
        error
    }

    /// Closes the channel in an orderly way; what was published before is flushed. Bounded by the deadline.
    pub async fn close(&self) {
        let Ok(raw) = self.raw() else { return };
        let deadline = Instant::now() + self.timeout;
        // Whoever is publishing or settling has sent it when this is free, and whoever comes later finds the channel
        // closed: RabbitMQ ends the whole connection (504) for a message or an ack that follows the close.
        let _turn = timeout_at(deadline, self.turn.lock()).await;
        if !self.ledger.loss.is_lost() {
            let (raw, calls) = (raw.clone(), self.calls.clone());
            let closing = self.runtime.spawn(async move {
                let _turn = calls.lock().await;
                raw.close().await
            });
            tokio::select! {
                _ = timeout_at(deadline, closing) => {}
                // RabbitMQ was faster, and does not answer any more.
                _ = self.ledger.loss.wait() => {}
            }
        }
        self.ledger.end(Error::Shutdown("channel"));
    }

    /// Waits for the end of this opening, and tells its reason.
    pub async fn lost(&self) -> Error {
        self.ledger.loss.wait().await
    }

    pub fn is_lost(&self) -> bool {
        self.ledger.loss.is_lost()
    }

    pub async fn turn(&self) -> MutexGuard<'_, Settled> {
        self.turn.lock().await
    }

    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }
}

/// Dropping the last clone of an open amqprs channel spawns a task, so it must happen inside a runtime.
impl Drop for Opening {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        self.raw.take();
    }
}

fn no_answer(doing: &str, after: Duration) -> Error {
    Error::Timeout { doing: doing.into(), after, reason: "the connection stands, but RabbitMQ is silent".into() }
}

/// Hears what the broker says on this channel. It runs inside amqprs's dispatcher, so it never calls the channel,
/// and it holds the ledger but not the opening, which it would keep alive.
struct Callback {
    ledger: Arc<Ledger>,
    turn: Arc<Mutex<Settled>>,
    cancelled: CancellationToken,
    health: Arc<Health>,
}

impl Drop for Callback {
    fn drop(&mut self) {
        let reason = self.health.loss.reason().unwrap_or(Error::lost("the channel ended"));
        self.ledger.end(reason);
    }
}

#[async_trait]
impl ChannelCallback for Callback {
    async fn close(&mut self, raw: &RawChannel, close: CloseChannel) -> Result<(), amqprs::error::Error> {
        self.health.channel_closed();
        let (code, text) = (close.reply_code(), close.reply_text().clone());
        // basic.publish; basic.ack, reject, nack.
        let refused = (close.class_id(), close.method_id()) == (60, 40);
        let unsettled = matches!((close.class_id(), close.method_id()), (60, 80 | 90 | 120));
        self.ledger.by_message.store(refused || unsettled, Ordering::Relaxed);
        match refused {
            true => self.ledger.refuse(code, &text),
            false => self.ledger.end(Error::Closed { doing: "RabbitMQ closed the channel".into(), code, text }),
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
        self.ledger.settle(ack.delivery_tag(), ack.mutiple(), Verdict::Ack);
    }

    async fn publish_nack(&mut self, _: &RawChannel, nack: Nack) {
        self.ledger.settle(nack.delivery_tag(), nack.multiple(), Verdict::Nack);
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
            (Some(number), _) => self.ledger.returned(number, message),
            (None, Some(call)) => self.ledger.returned_call(call, message),
            (None, None) => tracing::warn!("a returned message is none of ours: {message}"),
        }
    }
}

/// Marks a mandatory message with its number.
pub(crate) fn put_number(properties: &mut BasicProperties, number: u64) {
    let (Ok(name), Ok(number)) = (NUMBER_HEADER.try_into(), i64::try_from(number)) else { return };
    let mut headers = properties.headers().cloned().unwrap_or_default();
    // Inserting a key twice corrupts the table (AMQPRS.md, "Header tables").
    headers.remove(&name);
    headers.insert(name, FieldValue::l(number));
    properties.with_headers(headers);
}

fn take_number(mut properties: BasicProperties) -> (BasicProperties, Option<u64>) {
    let number = NUMBER_HEADER.try_into().ok().and_then(|name| {
        let mut headers = properties.headers()?.clone();
        let FieldValue::l(number) = headers.remove(&name)? else { return None };
        properties.with_headers(headers);
        number.try_into().ok()
    });
    (properties, number)
}
