//! Notices a message that breaks the connection each time it is delivered.
//!
//! amqprs gives the connection up when it cannot decode a frame, for instance because of a header that is not UTF-8.
//! RabbitMQ then requeues the message, and delivers it again to the next subscription, without end. A broken network
//! looks the same from here, so a consumer does not end without proof. After quick losses its next subscription is a
//! **probe**: it has a prefetch of 1, on a queue that has messages, while no other consumer of the connection probes.
//! The proof is that the connection breaks before the first of these messages has come, just when it should come.
//!
//! With automatic acknowledgement RabbitMQ forgets a message when it sends it, so no message comes twice.

use std::time::{Duration, Instant};

use crate::Error;

/// A connection that breaks within this time after the channel was opened, before any delivery was settled, is a quick loss.
const QUICK: Duration = Duration::from_secs(10);

/// After this many quick losses in a row there is a probe.
const LOSSES: u32 = 2;

/// After this many proofs in a row, without a counter-example, the consumer ends.
const PROOFS: u32 = 3;

/// A message that waits in the queue comes with the answer to `basic.consume`: within twice the time of an earlier
/// answer plus this time. If the connection breaks later, this is not a proof, because the queue may hold messages that
/// this consumer does not get, such as the old ones of a stream.
const SOON: Duration = Duration::from_millis(50);

/// What one consumer has seen so far.
#[derive(Default)]
pub(crate) struct PoisonDetector {
    /// Quick losses in a row.
    losses: u32,
    proofs: u32,
    /// During a probe: the time by which a message must come.
    expected_until: Option<Instant>,
    /// The queue of the last probe.
    queue: String,
}

impl PoisonDetector {
    /// Whether the next subscription has to be a probe.
    pub fn has_to_probe(&self) -> bool {
        self.losses >= LOSSES
    }

    /// There are messages, and the consumer is about to subscribe. A message may come before the broker's answer.
    /// `answered`: how long the broker took for its last answer.
    pub fn probe_begins(&mut self, queue: &str, answered: Duration) {
        self.expected_until = Some(Instant::now() + 2 * answered + SOON);
        queue.clone_into(&mut self.queue);
    }

    /// The connection lives. `delivered`: whether a message has come.
    pub fn probe_ends(&mut self, delivered: bool) {
        self.expected_until = None;
        if delivered {
            self.proofs = 0;
        }
    }

    /// A session that began at `since` has ended. `settled`: whether a delivery was settled on it, so that the consumer
    /// makes progress. Returns the error that ends the consumer, if it is certain enough.
    pub fn weigh(&mut self, since: Instant, settled: bool, error: &Error) -> Option<Error> {
        let proof = self.expected_until.take().is_some_and(|until| Instant::now() < until);
        if !matches!(error, Error::Lost { code: None, .. }) {
            return None;
        }
        if settled || since.elapsed() > QUICK {
            *self = Self::default();
            return None;
        }
        self.losses += 1;
        self.proofs += u32::from(proof);
        (self.proofs >= PROOFS).then(|| Error::Poisoned { queue: self.queue.clone(), losses: self.losses })
    }
}
