//! Watches over the messages of a channel that are not confirmed: warns of a silent broker, and gives up in the end.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::interval};

use crate::{Error, deadline::SHORT_OF_RESOURCES, session::Session};

/// What may be in flight on one channel, sent and not confirmed: so many bytes, and no more messages than fit when
/// each counts at least [`LEAST_WEIGHT`] (8,192). Past that, publishing waits.
pub(crate) const MOST_BYTES_IN_FLIGHT: usize = 16 << 20;
pub(crate) const LEAST_WEIGHT: usize = 2 << 10;

/// So long without a confirm is worth a warning: it is seen within 5 s.
pub(crate) const SILENCE: Duration = Duration::from_secs(4);

const NEVER_CONFIRMED: &str =
    "RabbitMQ has confirmed nothing of all that may be unconfirmed here; opening the channel anew";

/// Until it is dropped. `shares`: of what may be in flight on the channel `name`.
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
        // The broker confirms nothing, such as for a queue without its majority. All that may be in flight is given up, and
        // would keep everything else from being published here.
        if session.state.pending_confirms.is_given_up(session.timeout) && shares.available_permits() < LEAST_WEIGHT {
            tracing::warn!("channel `{name}`: {NEVER_CONFIRMED}");
            session.state.end(Error::lost(NEVER_CONFIRMED));
        }
    }
}
