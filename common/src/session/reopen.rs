//! Reopens an AMQP channel for its owner, again and again, with pauses.

use std::{future::Future, sync::Arc, time::Duration};

use backon::ExponentialBackoff;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Result,
    connection::{
        backoff::{backoff, long_backoff},
        core::ConnectionCore,
    },
    session::Session,
};

/// If a channel has lived this long, it is reopened at once when the broker refuses a message.
const PROVED: Duration = Duration::from_secs(10);

/// Opens one AMQP channel after the other for its owner, until the owner has to close.
pub(crate) struct Reopen {
    connection: Arc<ConnectionCore>,
    closing: CancellationToken,
    /// For the log.
    name: String,
    confirms: bool,
    pauses: ExponentialBackoff,
    /// The pauses after failures that end the whole connection each time.
    long_pauses: ExponentialBackoff,
    /// The last warning, to avoid logging it twice.
    said: Option<String>,
    /// The last warning about a refused message.
    refusal: Option<String>,
    /// The pauses after such a refusal. There is no pause before the first.
    refusals: Option<ExponentialBackoff>,
}

impl Reopen {
    pub fn new(connection: Arc<ConnectionCore>, closing: CancellationToken, name: &str, confirms: bool) -> Self {
        let (pauses, long_pauses) = (backoff(&connection.options), long_backoff(&connection.options));
        let name = name.to_owned();
        Self { connection, closing, name, confirms, pauses, long_pauses, said: None, refusal: None, refusals: None }
    }

    /// The next session, on the connection that is then alive. Or the reason why RabbitMQ does not allow another
    /// channel. `None` when the owner has to close.
    pub async fn next(&mut self) -> Option<Result<Arc<Session>>> {
        loop {
            let connection = tokio::select! {
                biased;
                () = self.closing.cancelled() => return None,
                connection = self.connection.live_connection() => connection?,
            };
            let opened = Session::open(&connection, self.confirms, self.connection.options.operation_timeout);
            match self.unless_closing(opened).await {
                Ok(session) => return Some(Ok(session)),
                Err(error @ (Error::ChannelLimit(_) | Error::Closed { .. })) => return Some(Err(error)),
                Err(error) => self.failed(error).await,
            }
        }
    }

    /// A future that ends early when the owner has to close.
    pub async fn unless_closing<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.closing.cancelled() => Err(Error::Shutdown("channel")),
            outcome = work => outcome,
        }
    }

    /// The session could not be made ready. Logs why, and pauses.
    pub async fn failed(&mut self, error: Error) {
        if self.closing.is_cancelled() {
            return;
        }
        let trouble = error.to_string();
        // A lost connection is reported by its supervisor.
        if error.is_loss() || self.said.as_ref() == Some(&trouble) {
            tracing::debug!("channel `{}`: {trouble}", self.name);
        } else {
            tracing::warn!("channel `{}`: {trouble}; opening it again", self.name);
            self.said = Some(trouble);
        }
        let pauses = match error {
            Error::Closed { code: 500.., .. } => &mut self.long_pauses,
            _ => &mut self.pauses,
        };
        let pause = pauses.next().unwrap_or(self.connection.options.reconnect_interval);
        tokio::select! {
            () = sleep(pause) => {}
            () = self.closing.cancelled() => {}
        }
    }

    /// The broker has closed the channel because of a message published on it. The first time the channel is reopened
    /// at once. A program that publishes such messages again and again waits longer each time, because each closed
    /// channel costs the connection a number (see `channel_numbers.rs`). When none is left, everything on the
    /// connection is lost.
    pub async fn refused(&mut self, error: &Error, was_told: bool, lived: Duration) {
        if lived > PROVED {
            self.refusals = None;
        }
        let trouble = error.to_string();
        // The caller that waits for the confirm already has the error.
        if !was_told && self.refusal.as_ref() != Some(&trouble) {
            tracing::warn!(
                "channel `{}`: {trouble}; no caller waits for its confirm, so it is logged here, once",
                self.name
            );
            self.refusal = Some(trouble);
        }
        if let Some(pauses) = &mut self.refusals {
            let pause = pauses.next().unwrap_or(self.connection.options.reconnect_interval);
            tokio::select! {
                () = sleep(pause) => {}
                () = self.closing.cancelled() => {}
            }
        } else {
            self.refusals = Some(backoff(&self.connection.options));
        }
    }

    /// The session is ready for use.
    pub fn ready(&mut self) {
        if self.said.take().is_some() {
            tracing::info!("channel `{}` is open again", self.name);
        }
    }

    /// The session has worked for a while. If it fails, the pauses are short again.
    pub fn recovered(&mut self) {
        self.pauses = backoff(&self.connection.options);
        self.long_pauses = long_backoff(&self.connection.options);
    }
}
