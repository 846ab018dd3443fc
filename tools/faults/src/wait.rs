//! Waiting with a deadline. The error says what was waited for.

use std::{future::Future, time::Duration};

use anyhow::{Result, bail};
use tokio::{sync::watch, time::timeout};

/// The deadline for everything that takes a moment if all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for something that must happen within `patience`.
///
/// # Errors
/// What was waited for, and how long.
pub async fn within<T>(patience: Duration, what: &str, work: impl Future<Output = T>) -> Result<T> {
    match timeout(patience, work).await {
        Ok(outcome) => Ok(outcome),
        Err(_) => bail!("waited {} s for {what}", patience.as_secs_f32()),
    }
}

/// Waits until `wanted` finds something in a watched state, and returns it.
///
/// # Errors
/// What was waited for, if it took more than [`PATIENCE`] or if the task that reports the state has ended.
pub async fn until<S, T>(state: &watch::Receiver<S>, what: &str, mut wanted: impl FnMut(&S) -> Option<T>) -> Result<T> {
    let mut state = state.clone();
    let wait = async {
        loop {
            if let Some(found) = wanted(&state.borrow_and_update()) {
                return Some(found);
            }
            state.changed().await.ok()?;
        }
    };
    match within(PATIENCE, what, wait).await? {
        Some(found) => Ok(found),
        None => bail!("{what} cannot come any more: its task has ended"),
    }
}
