//! When everything is there again.

use std::sync::Arc;

use tokio::{sync::watch, time::timeout_at};

use crate::{ConnectionManager, Error, Result};

/// How many there are of something.
#[derive(Debug, Clone, Default)]
pub(crate) struct Count(Arc<watch::Sender<usize>>);

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

impl ConnectionManager {
    /// Waits until the connection is up, and every channel and consumer made from this manager is set up on it. Makes the
    /// first connection if there was none.
    ///
    /// [`Event::Recovered`](crate::Event::Recovered) tells of the connection only, which comes first.
    ///
    /// ```no_run
    /// # async fn example(connections: common::ConnectionManager) -> common::Result<()> {
    /// let mut events = connections.events();
    /// while let Some(event) = events.next().await {
    ///     if matches!(event, common::Event::Recovered) && connections.ready().await.is_ok() {
    ///         println!("all channels and consumers are back");
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Timeout`](Error::Timeout) after the operation timeout, for instance because a setup fails again and again;
    /// [`Shutdown`](Error::Shutdown) after [`close_all`](Self::close_all); those of the first connection.
    pub async fn ready(&self) -> Result<()> {
        let core = &self.handle.core;
        let deadline = core.deadline();
        self.handle.connect().await?;
        let wait = async {
            loop {
                let link = core.living_link().await.ok_or(Error::Shutdown("connection manager"))?;
                let (mut owners, mut ready) = (core.owners.0.subscribe(), link.health.ready.0.subscribe());
                while !link.health.loss.is_lost() {
                    if *ready.borrow_and_update() >= *owners.borrow_and_update() {
                        return Ok(());
                    }
                    tokio::select! {
                        _ = owners.changed() => {}
                        _ = ready.changed() => {}
                        _ = link.health.loss.wait() => {}
                        () = core.closing.cancelled() => return Err(Error::Shutdown("connection manager")),
                    }
                }
            }
        };
        timeout_at(deadline, wait)
            .await
            .unwrap_or_else(|_| Err(core.timed_out("not all channels and consumers are ready")))
    }
}
