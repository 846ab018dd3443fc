//! Waiting with a deadline, and a word on what for.

use std::{future::Future, time::Duration};

use anyhow::{Result, bail};
use tokio::{sync::watch, time::timeout};

/// For everything that takes a moment when all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for something that has to happen within `patience`.
///
/// # Errors
/// What was waited for, and how long.
pub async fn within<T>(patience: Duration, what: &str, work: impl Future<Output = T>) -> Result<T> {
    match timeout(patience, work).await {
        Ok(outcome) => Ok(outcome),
        Err(_) => bail!("waited {} s in vain for {what}", patience.as_secs_f32()),
    }
}

/// Waits until a watched state is as wanted, and looks something up in it.
///
/// # Errors
/// What was waited for: it took more than [`PATIENCE`], or whoever reports the state has ended.
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
