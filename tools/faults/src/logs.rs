//! The logs of `common` during the faults.

use std::io;

use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// Sends the logs of `common` to stderr.
pub fn to_stderr() {
    let filter = Targets::new().with_target("common", tracing_subscriber::filter::LevelFilter::DEBUG);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false);
    // Another subscriber may have been set before.
    let _ = tracing_subscriber::registry().with(lines).with(filter).try_init();
}
