//! The signal that a connection or channel has ended. It keeps the reason.

use std::sync::OnceLock;

use tokio_util::sync::CancellationToken;

use crate::Error;

/// It is set once, with a reason. Any number of tasks can wait for it.
#[derive(Debug, Default)]
pub(crate) struct Loss {
    reason: OnceLock<Error>,
    signal: CancellationToken,
}

impl Loss {
    /// Sets the reason if there is none yet. Returns whether this reason was set.
    pub fn signal(&self, reason: Error) -> bool {
        let first = self.reason.set(reason).is_ok();
        self.signal.cancel();
        first
    }

    pub fn is_lost(&self) -> bool {
        // Cheaper than the signal itself, which has a lock.
        self.reason.get().is_some()
    }

    pub fn reason(&self) -> Option<Error> {
        self.reason.get().cloned()
    }

    /// Waits for the loss and returns its reason.
    pub async fn wait(&self) -> Error {
        self.signal.cancelled().await;
        self.reason().unwrap_or(Error::Stale)
    }
}
