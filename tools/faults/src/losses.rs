//! Counts how often a connection was lost and restored, from its events.

use std::time::{Duration, Instant};

use anyhow::Result;
use common::{ConnectionManager, Event};
use tokio::{sync::watch, task::AbortHandle};

use crate::wait::until;

/// Listens to the events of one connection manager, until dropped.
pub struct Losses {
    state: watch::Receiver<State>,
    listening: AbortHandle,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    count: u32,
    last: Option<Instant>,
    down: bool,
    longest: Duration,
}

impl Losses {
    /// Listens from now on.
    pub fn of(connections: &ConnectionManager) -> Self {
        let (sender, state) = watch::channel(State::default());
        let mut events = connections.events();
        let listening = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                sender.send_modify(|state| state.hear(&event));
            }
        });
        Self { state, listening: listening.abort_handle() }
    }

    /// How many so far.
    pub fn count(&self) -> u32 {
        self.state.borrow().count
    }

    /// The longest time without a connection. A loss that still lasts is not counted.
    pub fn longest(&self) -> Duration {
        self.state.borrow().longest
    }

    /// Waits until the count is higher than `before`. Returns the time of the last loss.
    ///
    /// # Errors
    /// When no loss comes in time.
    pub async fn after(&self, before: u32) -> Result<Instant> {
        until(&self.state, "the loss of the connection", |state| state.last.filter(|_| state.count > before)).await
    }
}

impl State {
    fn hear(&mut self, event: &Event) {
        match event {
            Event::Lost(_) => self.lose(),
            Event::Recovered => {
                // We only see the latest event: if a loss is over quickly, its own event is missing.
                if !self.down {
                    self.lose();
                }
                self.down = false;
                self.longest = self.longest.max(self.last.map(|last| last.elapsed()).unwrap_or_default());
            }
            _ => {}
        }
    }

    fn lose(&mut self) {
        self.count += 1;
        self.last = Some(Instant::now());
        self.down = true;
    }
}

impl Drop for Losses {
    fn drop(&mut self) {
        self.listening.abort();
    }
}
