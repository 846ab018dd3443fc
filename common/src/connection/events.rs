//! Tells listeners what happens to the connection.

use tokio::sync::watch;

use crate::Error;

/// What happened to the connection.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The first connection is there.
    Connected,
    /// It was lost, for this reason; new attempts are being made.
    Lost(Error),
    /// It is back. Channels and consumers are being set up again, each by itself;
    /// [`ConnectionManager::ready`](crate::ConnectionManager::ready) waits for them.
    Recovered,
    /// It was closed by this program.
    Closed,
}

/// The events of a connection, made by [`ConnectionManager::events`](crate::ConnectionManager::events). It holds the latest one only: a reader that is
/// late misses those that are over.
///
/// ```no_run
/// # async fn example(connections: common::ConnectionManager) {
/// let mut events = connections.events();
/// tokio::spawn(async move {
///     while let Some(event) = events.next().await {
///         println!("{event:?}");
///     }
/// });
/// # }
/// ```
pub struct Events(pub(crate) watch::Receiver<Option<Event>>);

impl Events {
    /// Waits for the next event; `None` after [`Event::Closed`], or when the manager is gone.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if matches!(*self.0.borrow(), Some(Event::Closed)) && !self.0.has_changed().unwrap_or(false) {
                return None;
            }
            self.0.changed().await.ok()?;
            if let Some(event) = self.0.borrow_and_update().clone() {
                return Some(event);
            }
        }
    }
}
