//! Counts how many of something exist.

use std::sync::Arc;

use tokio::sync::watch;

/// How many there are of something.
#[derive(Debug, Clone, Default)]
pub(crate) struct Count(pub Arc<watch::Sender<usize>>);

/// One of them, for as long as it exists.
pub(crate) struct Counted(Count);

impl Count {
    pub fn one_more(&self) -> Counted {
        self.0.send_modify(|count| *count += 1);
        Counted(self.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
