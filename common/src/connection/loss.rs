//! The end of a connection or channel, as a signal that keeps its reason.

use std::sync::OnceLock;

use tokio_util::sync::CancellationToken;

use crate::Error;

/// Set once, with a reason; waited for by any number of tasks.
#[derive(Debug, Default)]
pub(crate) struct Loss {
    reason: OnceLock<Error>,
    signal: CancellationToken,
}

impl Loss {
    /// The first reason stays. Returns whether this was it.
    pub fn signal(&self, reason: Error) -> bool {
        let first = self.reason.set(reason).is_ok();
        self.signal.cancel();
        first
    }

    pub fn is_lost(&self) -> bool {
        // Cheaper than asking the signal, which has a lock.
        self.reason.get().is_some()
    }

    pub fn reason(&self) -> Option<Error> {
        self.reason.get().cloned()
    }

    /// Waits for the loss and tells its reason.
    pub async fn wait(&self) -> Error {
        self.signal.cancelled().await;
        self.reason().unwrap_or(Error::Stale)
    }
}
