//! Waiting with a deadline, and the likely reason if the broker takes long.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use crate::Error;

/// amqprs does not announce that it understands `connection.blocked`, so RabbitMQ never reports an alarm to it. So this
/// is only the likely reason.
pub(crate) const SHORT_OF_RESOURCES: &str =
    "RabbitMQ may be short of memory or disk, and then takes no messages (`rabbitmqctl status` shows its alarms)";

/// Waits until the deadline at most. `None` if it passed. A timer costs more than publishing a message, so it is only
/// started if there is something to wait for.
pub(crate) async fn by<F: Future>(deadline: Instant, wait: F) -> Option<F::Output> {
    let mut wait = pin!(wait);
    match poll_fn(|context| Poll::Ready(wait.as_mut().poll(context))).await {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => timeout_at(deadline, wait).await.ok(),
    }
}

/// The broker does not read. What we send waits in a full buffer.
pub(crate) fn reads_nothing(doing: String, after: Duration) -> Error {
    Error::Timeout { doing, after, reason: format!("nothing was sent: {SHORT_OF_RESOURCES}") }
}
