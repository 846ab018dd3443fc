//! Waiting with a deadline, and why waiting for the broker can take long.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use crate::Error;

/// amqprs does not announce that it understands `connection.blocked`, so RabbitMQ never tells it of an alarm: this is a
/// guess, and the likely one.
pub(crate) const SHORT_OF_RESOURCES: &str =
    "RabbitMQ may be short of memory or disk, and then takes no messages (`rabbitmqctl status` shows its alarms)";

/// Waits until the deadline at most: `None`. A timer costs more than publishing a message, so there is one only where
/// there is something to wait for.
pub(crate) async fn by<F: Future>(deadline: Instant, wait: F) -> Option<F::Output> {
    let mut wait = pin!(wait);
    match poll_fn(|context| Poll::Ready(wait.as_mut().poll(context))).await {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => timeout_at(deadline, wait).await.ok(),
    }
}

/// The broker reads nothing: what goes out to it waits in a full buffer.
pub(crate) fn reads_nothing(doing: String, after: Duration) -> Error {
    Error::Timeout { doing, after, reason: format!("nothing was sent: {SHORT_OF_RESOURCES}") }
}
