//! Notices a message that breaks the connection each time it is delivered.
//!
//! amqprs gives the connection up when it cannot decode a frame, such as a header that is not UTF-8. RabbitMQ then puts
//! the message back, and delivers it again to the next subscription: for ever. A broken network looks the same from here,
//! so a consumer does not end without proof. After quick losses its next subscription is a *probe*: with a prefetch of 1,
//! on a queue that has messages, and while no other consumer of the connection probes. The proof is a connection that
//! breaks before the first of these messages has come, just when it should come.
//!
//! With automatic acknowledgement RabbitMQ forgets a message when it sends it, so none comes twice.

use std::time::{Duration, Instant};

use crate::Error;

/// A connection that breaks within this time after the channel was opened, before any delivery was settled, is a quick loss.
const QUICK: Duration = Duration::from_secs(10);

/// So many quick losses in a row lead to a probe.
const LOSSES: u32 = 2;

/// So many proofs in a row, with none to the contrary, end the consumer.
const PROOFS: u32 = 3;

/// A message that waits in the queue comes with the answer to `basic.consume`, after twice the time of an earlier answer and
/// this one at most. A connection that breaks later is not a proof: the queue may hold messages that this consumer does not get, such
/// as the old ones of a stream.
const SOON: Duration = Duration::from_millis(50);

/// What one consumer has seen so far.
#[derive(Default)]
pub(crate) struct PoisonDetector {
    /// Quick losses in a row.
    losses: u32,
    proofs: u32,
    /// During a probe: a message has to come until then.
    expected_until: Option<Instant>,
    /// The queue of the last probe.
    queue: String,
}

impl PoisonDetector {
    /// Whether the next subscription has to be a probe.
    pub fn has_to_probe(&self) -> bool {
        self.losses >= LOSSES
    }

    /// There are messages, and the consumer is about to subscribe: one may be there before the broker's answer is.
    /// `answered`: how long the broker took for its last answer.
    pub fn probe_begins(&mut self, queue: &str, answered: Duration) {
        self.expected_until = Some(Instant::now() + 2 * answered + SOON);
        queue.clone_into(&mut self.queue);
    }

    /// The connection stands. `delivered`: and a message has come.
    pub fn probe_ends(&mut self, delivered: bool) {
        self.expected_until = None;
        if delivered {
            self.proofs = 0;
        }
    }

    /// A session that began `since` has ended. `settled`: and a delivery was settled on it, so that the consumer makes progress.
    /// Returns the error to end the consumer with, when it is certain enough.
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
