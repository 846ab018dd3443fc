//! One connection to the broker, until its loss.

use std::{sync::Arc, time::Duration};

use amqprs::{Close, callbacks::ConnectionCallback, connection::Connection};
use async_trait::async_trait;
use tokio::{runtime::Handle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    ConnectOptions, Error, Result,
    connection::{
        channel_numbers::{Number, Numbers},
        connect::connect,
        count::Count,
        loss::Loss,
    },
};

/// How long to wait for the reason of a failure, which comes from another task.
const REASON: Duration = Duration::from_secs(1);

/// A connection that was up at least once.
pub(crate) struct LiveConnection {
    // An option only so that `drop` can take it.
    raw: Option<Connection>,
    pub state: Arc<ConnectionState>,
    pub runtime: Handle,
}

/// What a connection shares with the channels opened on it, and with amqprs's callbacks. It does not keep the connection open.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    pub closed: Loss,
    /// This program is about to close it.
    pub closing: CancellationToken,
    pub numbers: Arc<Numbers>,
    /// The lock for the consumer that finds out whether a message breaks the connection.
    pub probe: tokio::sync::Mutex<()>,
    /// Channels and consumers that are set up on it.
    pub ready: Count,
}

impl ConnectionState {
    fn new(channel_max: u16) -> Self {
        Self {
            closed: Loss::default(),
            closing: CancellationToken::new(),
            numbers: Numbers::new(channel_max),
            probe: tokio::sync::Mutex::default(),
            ready: Count::default(),
        }
    }

    /// A number for one more channel.
    pub async fn channel_number(&self) -> Result<Number> {
        let taken = self.numbers.take().await;
        if matches!(taken, Err(Error::Stale)) {
            // Ends the connection, so that the supervisor opens a new one.
            self.closed.signal(Error::lost("RabbitMQ has closed so many channels that their numbers run out"));
        }
        taken
    }

    /// amqprs has failed to send something. Returns the reason, and makes sure that this counts as a loss, because
    /// nothing else notices that the writer has ended (AMQPRS.md, "A writer that has ended").
    pub async fn failed(&self, error: amqprs::error::Error) -> Error {
        if let Ok(reason) = timeout(REASON, self.closed.wait()).await {
            return reason;
        }
        self.closed.signal(Error::lost(format!("nothing can be sent on it any more ({error})")));
        self.closed.wait().await
    }

    /// Waits until the connection is lost, or about to be closed.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.closing.cancelled() => {}
            _ = self.closed.wait() => {}
        }
    }

    /// Whether [`ended`](Self::ended) would return at once.
    pub fn is_ending(&self) -> bool {
        self.closing.is_cancelled() || self.closed.is_lost()
    }
}

impl LiveConnection {
    /// Connects to the first host that answers, each tried within the deadline of the options.
    pub async fn connect(options: &ConnectOptions) -> Result<Self> {
        Self::new(connect(options).await?).await
    }

    async fn new(connection: Connection) -> Result<Self> {
        let state = Arc::new(ConnectionState::new(connection.channel_max()));
        connection.register_callback(ConnectionEvents(state.clone())).await?;
        Ok(Self { raw: Some(connection), state, runtime: Handle::current() })
    }

    /// The connection, to open a channel on it. `None` only while it is being dropped.
    pub fn raw(&self) -> Option<Connection> {
        self.raw.clone()
    }
}

/// Dropping the last clone of an open amqprs connection spawns a task, so it must happen inside a runtime.
impl Drop for LiveConnection {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        self.raw.take();
    }
}

/// Is told when the connection ends. Its drop is the only signal that comes in every case (AMQPRS.md, "Signals of a
/// loss").
struct ConnectionEvents(Arc<ConnectionState>);

impl Drop for ConnectionEvents {
    fn drop(&mut self) {
        self.0.closed.signal(Error::lost(
            "the network connection broke, or RabbitMQ stopped, or a message came that cannot be decoded",
        ));
    }
}

#[async_trait]
impl ConnectionCallback for ConnectionEvents {
    async fn close(&mut self, _: &Connection, close: Close) -> Result<(), amqprs::error::Error> {
        let code = close.reply_code();
        let reason = format!("RabbitMQ closed it: {code} {}", close.reply_text());
        self.0.closed.signal(Error::Lost { code: Some(code), reason });
        Ok(())
    }

    // RabbitMQ sends these only to clients that announce the capability. amqprs does not announce it.
    async fn blocked(&mut self, _: &Connection, _: String) {}
    async fn unblocked(&mut self, _: &Connection) {}
    async fn secret_updated(&mut self, _: &Connection) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn when_nothing_can_be_sent_and_nobody_says_why_the_connection_is_lost() {
        let closed = || amqprs::error::Error::InternalChannelError("channel closed".into());
        let state = ConnectionState::new(0);
        let error = state.failed(closed()).await;
        assert!(error.is_loss() && error.to_string().contains("nothing can be sent"), "{error}");
        assert!(state.closed.is_lost());

        // If the reason comes a moment later, it is returned.
        let state = Arc::new(ConnectionState::new(0));
        let waiting = tokio::spawn({
            let state = state.clone();
            async move { state.failed(closed()).await }
        });
        tokio::task::yield_now().await;
        state.closed.signal(Error::lost("the cable was cut"));
        assert!(waiting.await.is_ok_and(|error| error.to_string().contains("the cable was cut")));
    }
}
