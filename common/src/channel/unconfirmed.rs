//! Watches the unconfirmed messages of a channel. It warns if the broker is silent, and gives up at the deadline.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::interval};

use crate::{Error, deadline::SHORT_OF_RESOURCES, session::Session};

/// How many bytes may be in flight on one channel, sent but not confirmed. Each message counts at least
/// [`LEAST_WEIGHT`], so at most 8,192 messages are in flight. Beyond that, publishing waits.
pub(crate) const MOST_BYTES_IN_FLIGHT: usize = 16 << 20;
pub(crate) const LEAST_WEIGHT: usize = 2 << 10;

/// After this time without a confirm, a warning is logged. It is noticed within 5 s.
pub(crate) const SILENCE: Duration = Duration::from_secs(4);

const NEVER_CONFIRMED: &str =
    "RabbitMQ has confirmed none of the messages in flight, and no more may be unconfirmed; reopening the channel";

/// Runs until it is dropped. `shares` are the channel's shares of what may be in flight.
pub(crate) async fn watch_confirms<T>(name: &str, shares: &Arc<Semaphore>, session: &Session) -> T {
    let mut sweep = interval(Duration::from_secs(1).min(session.timeout / 4).max(Duration::from_millis(10)));
    let mut warned = false;
    loop {
        sweep.tick().await;
        session.state.pending_confirms.expire(session.timeout);
        let silent = session.state.pending_confirms.is_silent_for(SILENCE);
        if silent && !warned {
            tracing::warn!(
                "channel `{name}`: no confirm for {} s; {SHORT_OF_RESOURCES}; consumers on the same connection wait, too",
                SILENCE.as_secs(),
            );
        }
        warned = silent;
        // The broker confirms nothing, for instance for a queue without its majority. All messages in flight are given
        // up, and they keep other messages from being published here. So reopen the channel.
        if session.state.pending_confirms.is_given_up(session.timeout) && shares.available_permits() < LEAST_WEIGHT {
            tracing::warn!("channel `{name}`: {NEVER_CONFIRMED}");
            session.state.end(Error::lost(NEVER_CONFIRMED));
        }
    }
}
