//! What became of every message: the figures, and everything that must not be.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use common::Error;

use crate::numbers::Numbers;

/// So many violations are told one by one.
const TOLD: usize = 20;

/// Shared by all producers and consumers.
pub struct Accounts {
    producers: Vec<Mutex<Account>>,
    /// Counted by everybody.
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
    /// To a queue that somebody consumes from: what is confirmed has to arrive.
    Work,
    /// Mandatory, to a queue that does not exist: it must come back.
    Missing,
    /// To a queue that is full: it must be refused.
    Full,
}

/// How many messages ended in which way.
#[derive(Debug, Default)]
pub struct Figures {
    /// Reported as published.
    pub confirmed: AtomicU64,
    /// Sent, outcome unknown.
    pub unconfirmed: AtomicU64,
    /// Mandatory and returned.
    pub unroutable: AtomicU64,
    /// Refused by a full queue, or by one in trouble.
    pub nacked: AtomicU64,
    /// Not sent in time.
    pub timeout: AtomicU64,
    /// Not sent, as the connection or the channel was lost.
    pub lost: AtomicU64,
    /// Abandoned by their sender.
    pub dropped: AtomicU64,
    /// Received for the first time.
    pub received: AtomicU64,
    /// Received again.
    pub again: AtomicU64,
}

/// One more.
pub fn count(figure: &AtomicU64) {
    figure.fetch_add(1, Ordering::Relaxed);
}

/// How much it is now.
pub fn now(figure: &AtomicU64) -> u64 {
    figure.load(Ordering::Relaxed)
}

impl Accounts {
    /// For so many producers.
    pub fn new(producers: usize) -> Self {
        Self {
            producers: (0..producers).map(|_| Mutex::default()).collect(),
            figures: Figures::default(),
            violations: Mutex::default(),
        }
    }

    /// A message was published, with this outcome.
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
            // A queue in trouble refuses, too.
            Err(Error::Nacked) => count(&figures.nacked),
            Err(error) => self.failed(error),
        }
    }

    /// Something else failed, as it may while things break.
    pub fn failed(&self, error: &Error) {
        match error {
            Error::Unconfirmed { .. } => count(&self.figures.unconfirmed),
            Error::Timeout { .. } => count(&self.figures.timeout),
            // 404: what the faults make the broker close channels with.
            Error::Lost { .. } | Error::Ignored { .. } | Error::Closed { code: 404, .. } => count(&self.figures.lost),
            error => self.violation(format!("an error that nobody can expect: {error}")),
        }
    }

    /// A message was received.
    pub fn received(&self, producer: usize, number: u64) {
        let mut account = self.account(producer);
        let (new, rejected) = (account.received.insert(number), account.rejected.contains(number));
        drop(account);
        count(if new { &self.figures.received } else { &self.figures.again });
        if rejected {
            self.violation(format!("message {number} of producer {producer} was refused, and received"));
        }
    }

    /// How many messages are confirmed and have not been received, and one of them.
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

    /// Something happened that must not.
    pub fn violation(&self, what: String) {
        let mut violations = self.violations.lock().unwrap_or_else(PoisonError::into_inner);
        violations.count += 1;
        if violations.told.len() < TOLD {
            violations.told.push(what);
        }
    }

    /// Everything that must not have happened; of many, some and their number.
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
    fn success_for_a_message_that_nobody_took_is_a_violation() {
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
