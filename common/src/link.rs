//! One connection to the broker, until its loss.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use amqprs::{Close, callbacks::ConnectionCallback, connection::Connection};
use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{ConnectOptions, Error, Result, deep::check_frame_max, dial::dial, loss::Loss, ready::Count};

/// amqprs loses a channel number each time the broker closes a channel, and panics when they run out, usually at 2,047:
/// start afresh well before.
const MOST_CLOSED_CHANNELS: u32 = 1_500;

const RESERVE: u32 = 32;

/// A connection that was up at least once.
pub(crate) struct Link {
    // An option only so that `drop` can take it.
    connection: Option<Connection>,
    pub health: Arc<Health>,
    pub runtime: Handle,
}

/// What a link shares with the channels opened on it; it does not keep the connection alive.
#[derive(Debug, Default)]
pub(crate) struct Health {
    pub loss: Loss,
    /// It is about to be closed by this program.
    pub closing: CancellationToken,
    /// Channels that the broker closed: amqprs never frees their numbers.
    closed_channels: AtomicU32,
    /// Channels that are open, or being opened.
    open_channels: AtomicU32,
    /// Held by the consumer that finds out whether a message breaks the connection.
    pub trial: tokio::sync::Mutex<()>,
    /// Channels and consumers that are set up on it.
    pub ready: Count,
}

/// One of the connection's channel numbers, given back when dropped.
pub(crate) struct Number(Arc<Health>);

impl Health {
    /// Counts one more channel. amqprs panics when there is no number left for it.
    pub fn take_number(self: &Arc<Self>, connection: &Connection) -> Result<Number> {
        // A number is free a moment after its channel is closed: some are kept in reserve.
        let most = match connection.channel_max() {
            0 => u32::from(u16::MAX),
            most => u32::from(most),
        }
        .saturating_sub(RESERVE)
        .max(1);
        let number = Number(self.clone());
        let open = self.open_channels.fetch_add(1, Ordering::Relaxed) + 1;
        if open > most {
            return Err(Error::Invalid(format!("RabbitMQ allows {most} channels on one connection")));
        }
        if open + self.closed_channels.load(Ordering::Relaxed) > most {
            self.worn_out();
            return Err(Error::Stale);
        }
        Ok(number)
    }

    /// Waits until the connection is lost, or about to be closed.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.closing.cancelled() => {}
            _ = self.loss.wait() => {}
        }
    }

    /// Whether [`ended`](Self::ended) would return at once.
    pub fn is_ending(&self) -> bool {
        self.closing.is_cancelled() || self.loss.is_lost()
    }

    /// The broker closed a channel, and its number is gone.
    pub fn channel_closed(&self) {
        if self.closed_channels.fetch_add(1, Ordering::Relaxed) >= MOST_CLOSED_CHANNELS {
            self.worn_out();
        }
    }

    /// Ends the connection, so that its owner makes another one.
    fn worn_out(&self) {
        self.loss.signal(Error::lost("RabbitMQ has closed so many channels that their numbers run out"));
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        self.0.open_channels.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Link {
    /// Dials each host in turn until one answers, each within the deadline of the options.
    pub async fn dial(options: &ConnectOptions) -> Result<Self> {
        let connection = dial(options).await?;
        check_frame_max(connection.frame_max(), options)?;
        Self::new(connection).await
    }

    async fn new(connection: Connection) -> Result<Self> {
        let health = Arc::new(Health::default());
        connection.register_callback(Callback(health.clone())).await?;
        Ok(Self { connection: Some(connection), health, runtime: Handle::current() })
    }

    /// The connection, for opening a channel on it. `None` only while it is being dropped.
    pub fn connection(&self) -> Option<Connection> {
        self.connection.clone()
    }
}

/// Dropping the last clone of an open amqprs connection spawns a task, so it must happen inside a runtime.
impl Drop for Link {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        self.connection.take();
    }
}

/// Hears of the connection's end. Its drop is the one signal that comes in every case (AMQPRS.md, "Signals of a loss").
struct Callback(Arc<Health>);

impl Drop for Callback {
    fn drop(&mut self) {
        self.0.loss.signal(Error::lost(
            "the network connection broke, or RabbitMQ stopped, or a message came that cannot be decoded",
        ));
    }
}

#[async_trait]
impl ConnectionCallback for Callback {
    async fn close(&mut self, _: &Connection, close: Close) -> Result<(), amqprs::error::Error> {
        let code = close.reply_code();
        let reason = format!("RabbitMQ closed it: {code} {}", close.reply_text());
        self.0.loss.signal(Error::Lost { code: Some(code), reason });
        Ok(())
    }

    // RabbitMQ sends these only to clients that announce the capability; amqprs does not.
    async fn blocked(&mut self, _: &Connection, _: String) {}
    async fn unblocked(&mut self, _: &Connection) {}
    async fn secret_updated(&mut self, _: &Connection) {}
}
