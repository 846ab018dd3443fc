//! How long to wait before another attempt.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::ConnectOptions;

/// The longest pause where RabbitMQ refuses.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Pauses between attempts, growing from a tenth of a second, with jitter so that clients do not return as one.
pub(crate) fn backoff(options: &ConnectOptions) -> ExponentialBackoff {
    pauses(options.reconnect_interval)
}

/// The pauses where RabbitMQ is there and refuses: it takes a person to change that, and each attempt costs it something.
pub(crate) fn long_backoff(options: &ConnectOptions) -> ExponentialBackoff {
    pauses(options.reconnect_interval.max(LONGEST_PAUSE))
}

fn pauses(longest: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        // The jitter adds up to as much again.
        .with_min_delay(Duration::from_millis(100).min(longest / 2))
        .with_max_delay(longest / 2)
        .with_jitter()
        .without_max_times()
        .build()
}
