//! Reports to listeners what happens to the connection.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{
    Stream, StreamExt,
    stream::{BoxStream, unfold},
};
use tokio::sync::watch;

use crate::Error;

/// What happened to the connection.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The first connection is open.
    Connected,
    /// The connection was lost, for this reason. The manager tries to reconnect.
    Lost(Error),
    /// The connection is restored. Channels and consumers are being set up again, each separately.
    /// [`ConnectionManager::ready`](crate::ConnectionManager::ready) waits for them.
    Recovered,
    /// This program has closed the connection.
    Closed,
}

/// The events of a connection, made by [`ConnectionManager::events`](crate::ConnectionManager::events). It keeps only
/// the latest event, so a slow reader misses earlier ones. Read it with [`next`](Self::next), or as a [`Stream`].
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
pub struct Events(BoxStream<'static, Event>);

impl Events {
    /// The events of this sender from now on. The first one is its present value, if it has one.
    pub(crate) fn of(events: &watch::Sender<Option<Event>>) -> Self {
        let mut latest = events.subscribe();
        latest.mark_changed();
        Self(unfold(latest, next).boxed())
    }

    /// Waits for the next event. `None` after [`Event::Closed`], or when the manager has been dropped.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.next().await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.poll_next_unpin(context)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

async fn next(mut latest: watch::Receiver<Option<Event>>) -> Option<(Event, watch::Receiver<Option<Event>>)> {
    loop {
        if matches!(*latest.borrow(), Some(Event::Closed)) && !latest.has_changed().unwrap_or(false) {
            return None;
        }
        latest.changed().await.ok()?;
        let event = latest.borrow_and_update().clone();
        if let Some(event) = event {
            return Some((event, latest));
        }
    }
}
