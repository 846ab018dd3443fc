//! Records what happened to every message: the figures, and all violations of a promise.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use common::Error;

use crate::numbers::Numbers;

/// How many violations are shown one by one.
const TOLD: usize = 20;

/// Shared by all producers and consumers.
pub struct Accounts {
    producers: Vec<Mutex<Account>>,
    /// All producers and consumers count here.
    pub figures: Figures,
    violations: Mutex<Violations>,
}

/// The messages of one producer, by number.
#[derive(Default)]
struct Account {
    confirmed: Numbers,
    rejected: Numbers,
    received: Numbers,
}

#[derive(Default)]
struct Violations {
    told: Vec<String>,
    count: usize,
}

/// Where a message was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To a queue that has a consumer. A confirmed message must arrive.
    Work,
    /// Mandatory, to a queue that does not exist. The message must be returned.
    Missing,
    /// To a queue that is full. The message must be refused.
    Full,
}

/// How many messages had which outcome.
#[derive(Debug, Default)]
pub struct Figures {
    /// Reported as published.
    pub confirmed: AtomicU64,
    /// Sent, outcome unknown.
    pub unconfirmed: AtomicU64,
    /// Mandatory and returned.
    pub unroutable: AtomicU64,
    /// Refused by a full queue, or by a queue with a problem.
    pub nacked: AtomicU64,
    /// Not sent in time.
    pub timeout: AtomicU64,
    /// Not sent, because the connection or the channel was lost.
    pub lost: AtomicU64,
    /// Dropped by the producer before the outcome was known.
    pub dropped: AtomicU64,
    /// Received for the first time.
    pub received: AtomicU64,
    /// Received again.
    pub again: AtomicU64,
}

/// Adds one.
pub fn count(figure: &AtomicU64) {
    figure.fetch_add(1, Ordering::Relaxed);
}

/// The current value.
pub fn now(figure: &AtomicU64) -> u64 {
    figure.load(Ordering::Relaxed)
}

impl Accounts {
    /// Creates accounts for this number of producers.
    pub fn new(producers: usize) -> Self {
        Self {
            producers: (0..producers).map(|_| Mutex::default()).collect(),
            figures: Figures::default(),
            violations: Mutex::default(),
        }
    }

    /// Records the outcome of a published message.
    pub fn published(&self, producer: usize, number: u64, to: Destination, outcome: &common::Result<()>) {
        let figures = &self.figures;
        match outcome {
            Ok(()) if to == Destination::Work => {
                self.account(producer).confirmed.insert(number);
                count(&figures.confirmed);
            }
            Ok(()) => self.violation(format!("a message to a {to:?} queue was reported as published")),
            Err(Error::Unroutable(_) | Error::Nacked) if to != Destination::Work => {
                let mut account = self.account(producer);
                account.rejected.insert(number);
                let received = account.received.contains(number);
                drop(account);
                if received {
                    self.violation(format!("message {number} of producer {producer} was refused, and received"));
                }
                count(if to == Destination::Missing { &figures.unroutable } else { &figures.nacked });
            }
            // A queue with a problem refuses, too.
            Err(Error::Nacked) => count(&figures.nacked),
            Err(error) => self.failed(error),
        }
    }

    /// Records another failure. Some failures are normal while faults are made.
    pub fn failed(&self, error: &Error) {
        match error {
            Error::Unconfirmed { .. } => count(&self.figures.unconfirmed),
            Error::Timeout { .. } => count(&self.figures.timeout),
            // 404: our faults make the broker close channels with this code.
            Error::Lost { .. } | Error::Ignored { .. } | Error::Closed { code: 404, .. } => count(&self.figures.lost),
            error => self.violation(format!("an unexpected error: {error}")),
        }
    }

    /// Records a received message.
    pub fn received(&self, producer: usize, number: u64) {
        let mut account = self.account(producer);
        let (new, rejected) = (account.received.insert(number), account.rejected.contains(number));
        drop(account);
        count(if new { &self.figures.received } else { &self.figures.again });
        if rejected {
            self.violation(format!("message {number} of producer {producer} was refused, and received"));
        }
    }

    /// How many confirmed messages have not been received, and one example.
    pub fn missing(&self) -> (usize, Option<String>) {
        let (mut count, mut example) = (0, None);
        for producer in 0..self.producers.len() {
            let account = self.account(producer);
            let missing = account.confirmed.not_in(&account.received, 0);
            count += missing.len();
            let first = missing.first().map(|number| format!("number {number} of producer {producer}"));
            example = example.or(first);
        }
        (count, example)
    }

    /// Records something that must not happen.
    pub fn violation(&self, what: String) {
        let mut violations = self.violations.lock().unwrap_or_else(PoisonError::into_inner);
        violations.count += 1;
        if violations.told.len() < TOLD {
            violations.told.push(what);
        }
    }

    /// All violations. If there are many, some of them and their number.
    pub fn violations(&self) -> Vec<String> {
        let violations = self.violations.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = violations.told.clone();
        if violations.count > told.len() {
            told.push(format!("… and {} more", violations.count - told.len()));
        }
        told
    }

    fn account(&self, producer: usize) -> MutexGuard<'_, Account> {
        self.producers[producer].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "confirmed {}, unconfirmed {}, unroutable {}, nacked {}, timed out {}, lost {}, dropped {}, received {}, \
             again {}",
            now(&self.confirmed),
            now(&self.unconfirmed),
            now(&self.unroutable),
            now(&self.nacked),
            now(&self.timeout),
            now(&self.lost),
            now(&self.dropped),
            now(&self.received),
            now(&self.again),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Accounts, Destination};
    use common::Error;

    #[test]
    fn a_confirmed_message_that_never_came_is_missing() {
        let accounts = Accounts::new(2);
        accounts.published(1, 7, Destination::Work, &Ok(()));
        accounts.published(1, 8, Destination::Work, &Ok(()));
        accounts.received(1, 7);
        accounts.received(0, 8);
        assert_eq!(accounts.missing(), (1, Some("number 8 of producer 1".into())));
        accounts.received(1, 8);
        assert_eq!(accounts.missing(), (0, None));
        assert!(accounts.violations().is_empty());
    }

    #[test]
    fn success_for_a_message_that_reached_no_queue_is_a_violation() {
        for to in [Destination::Missing, Destination::Full] {
            let accounts = Accounts::new(1);
            accounts.published(0, 0, to, &Ok(()));
            assert_eq!(accounts.violations().len(), 1);
        }
    }

    #[test]
    fn a_message_that_was_refused_and_received_is_a_violation() {
        let accounts = Accounts::new(1);
        accounts.published(0, 0, Destination::Full, &Err(Error::Nacked));
        accounts.received(0, 0);
        accounts.received(0, 1);
        accounts.published(0, 1, Destination::Full, &Err(Error::Nacked));
        assert_eq!(accounts.violations().len(), 2);
    }

    #[test]
    fn an_error_that_no_fault_explains_is_a_violation() {
        let accounts = Accounts::new(1);
        accounts.failed(&Error::Stale);
        accounts.failed(&Error::Unconfirmed { reason: String::new() });
        assert_eq!(accounts.violations().len(), 1);
    }
}
