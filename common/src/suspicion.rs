//! A message that breaks the connection each time it is delivered, noticed.
//!
//! amqprs gives the connection up when it cannot decode a frame, such as a header that is not UTF-8. RabbitMQ then puts
//! the message back, and delivers it again to the next subscription: for ever. All consumers of the connection see the
//! same losses, so the question is which of them is to blame: it is the one that subscribed last, each time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{Error, opening::Opening};

/// A loss that follows subscribing by less than this is suspicious.
const SOON: Duration = Duration::from_millis(250);

/// So many suspicious losses in a row end the consumer.
const MOST_LOSSES: u32 = 5;

/// While losses come soon after subscribing, consumers subscribe at different moments, to be told apart: each within
/// this time, and within more of it with each loss, since a busy broker delivers late.
const SPREAD: Duration = Duration::from_millis(500);

/// What speaks against one consumer.
pub(crate) struct Suspicion {
    consumer: u64,
    subscribed: Option<Instant>,
    queue: String,
    losses: u32,
    /// How many losses in a row came soon after subscribing, whoever is to blame.
    soon: u32,
}

impl Suspicion {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let consumer = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { consumer, subscribed: None, queue: String::new(), losses: 0, soon: 0 }
    }

    /// The consumer is about to subscribe: the message may be there before the broker's answer is.
    pub fn watch(&mut self, opening: &Opening, queue: &str) {
        opening.health.last_consumer.store(self.consumer, Ordering::Relaxed);
        self.subscribed = Some(Instant::now());
        queue.clone_into(&mut self.queue);
    }

    /// The opening has ended. Returns the error to end the consumer with, when it is certain enough.
    pub fn grows(&mut self, opening: &Opening, error: &Error) -> Option<Error> {
        let subscribed = self.subscribed.take();
        let network = matches!(error, Error::Lost { code: None, .. });
        let soon = network && subscribed.is_some_and(|subscribed| subscribed.elapsed() < SOON);
        self.soon = if soon { self.soon + 1 } else { 0 };
        let last = opening.health.last_consumer.load(Ordering::Relaxed) == self.consumer;
        self.losses = if soon && last { self.losses + 1 } else { 0 };
        (self.losses == MOST_LOSSES).then(|| Error::Poisoned { queue: self.queue.clone(), losses: self.losses })
    }

    pub async fn pause(&self) {
        if self.soon > 0 {
            sleep((SPREAD * self.soon.min(MOST_LOSSES)).mul_f64(fastrand::f64())).await;
        }
    }
}
