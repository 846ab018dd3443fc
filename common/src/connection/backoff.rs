//! How long to wait before another attempt.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::ConnectOptions;

/// The longest pause while RabbitMQ refuses the login.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The pauses between attempts. They grow from a tenth of a second, and a part of them is random, so that clients do
/// not all reconnect at the same moment.
pub(crate) fn backoff(options: &ConnectOptions) -> ExponentialBackoff {
    pauses(options.reconnect_interval)
}

/// The pauses while RabbitMQ is there but refuses the login. Only a person can change that, and each attempt costs
/// RabbitMQ something.
pub(crate) fn long_backoff(options: &ConnectOptions) -> ExponentialBackoff {
    pauses(options.reconnect_interval.max(LONGEST_PAUSE))
}

fn pauses(longest: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        // The random part can double a pause.
        .with_min_delay(Duration::from_millis(100).min(longest / 2))
        .with_max_delay(longest / 2)
        .with_jitter()
        .without_max_times()
        .build()
}
