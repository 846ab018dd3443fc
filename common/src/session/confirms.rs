//! The publisher confirms of one session: the number of each message, and who receives its outcome.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

use crate::{
    broker_words::Refused,
    connection::loss::Loss,
    deadline::SHORT_OF_RESOURCES,
    error::{Error, Result, Returned},
    session::refused_message::{Mark, fits},
};

/// AMQP numbers the messages of a channel in confirm mode 1, 2, 3, …; the broker's acks name those numbers, not
/// always in order and often many at once ([confirms](https://www.rabbitmq.com/docs/confirms#publisher-confirms)).
#[derive(Default)]
pub(crate) struct PendingConfirms {
    entries: Mutex<Entries>,
    /// Notified when no confirm is outstanding.
    empty: Notify,
}

#[derive(Default)]
struct Entries {
    /// The number of `pending[0]`, minus one.
    settled: u64,
    /// The numbers have no gaps, so the index gives the number.
    pending: VecDeque<Option<PendingConfirm>>,
    waiting: usize,
    refusal: Option<Refusal>,
}

/// The broker ended the channel because of a message published on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refusal {
    /// Whether it is known which message it was.
    pub is_clear: bool,
    /// Whether someone waited for that message's confirm and now has the error.
    pub was_told: bool,
}

struct PendingConfirm {
    /// `None` when the caller has been told, although the broker may still settle the message.
    confirm: Option<ConfirmSender>,
    /// The message's share of the limit of what may be in flight. It is free again when the entry is removed.
    share: Option<OwnedSemaphorePermit>,
    sent: Instant,
    mark: Mark,
    returned: Option<Box<Returned>>,
}

/// What receives the outcome of a message.
pub(crate) enum ConfirmSender {
    Outcome(oneshot::Sender<Result<()>>),
    /// Called only if it failed. Called under the lock of the pending confirms.
    Failure(Box<dyn FnOnce(Error) + Send>),
}

/// How a message ended that was not lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ack,
    Nack,
}

impl PendingConfirms {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        // No code that can panic may run under the lock.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next number. `None`, and nothing is taken, when the session has ended.
    pub fn register(
        &self,
        closed: &Loss,
        share: &mut Option<OwnedSemaphorePermit>,
        confirm: &mut Option<ConfirmSender>,
        mark: Mark,
    ) -> Option<Unsent<'_>> {
        let sent = Instant::now();
        let mut entries = self.entries();
        if closed.is_lost() {
            return None;
        }
        let (share, confirm) = (share.take(), confirm.take());
        entries.waiting += usize::from(confirm.is_some());
        entries.pending.push_back(Some(PendingConfirm { confirm, share, sent, mark, returned: None }));
        let number = entries.settled + entries.pending.len() as u64;
        Some(Unsent { pending_confirms: self, number })
    }

    /// Takes the newest number back, because its message was not sent. Only the task that has the publisher's turn may
    /// do this.
    fn take_back(&self, number: u64) {
        let mut entries = self.entries();
        if entries.settled + entries.pending.len() as u64 == number
            && let Some(pending) = entries.pending.pop_back().flatten()
        {
            entries.waiting -= usize::from(pending.confirm.is_some());
        }
    }

    /// The broker has returned a mandatory message. Its ack follows.
    pub fn returned(&self, number: u64, message: Box<Returned>) {
        if let Some(pending) = self.entries().get(number) {
            pending.returned = Some(message);
        }
    }

    /// The same for a message without a number: it has an id of its own. All are searched, because it seldom happens. `Err` gives
    /// back a message that is none of them.
    pub fn returned_by_id(&self, message: Box<Returned>) -> Result<(), Box<Returned>> {
        let mut entries = self.entries();
        match entries.pending.iter_mut().flatten().find(|one| one.mark.has_id_of(&message.properties)) {
            Some(pending) => pending.returned = Some(message),
            None => return Err(message),
        }
        Ok(())
    }

    /// The broker has settled one message, or all messages up to this one.
    pub fn settle(&self, number: u64, multiple: bool, verdict: Verdict) {
        let mut freed = None;
        let mut entries = self.entries();
        if multiple {
            while entries.settled < number && entries.settle_first(verdict, &mut freed) {}
        } else {
            entries.settle_one(number, verdict, &mut freed);
            while matches!(entries.pending.front(), Some(None)) {
                entries.settle_first(verdict, &mut freed);
            }
        }
        if entries.waiting == 0 {
            self.empty.notify_waiters();
        }
        drop(entries);
        // The shares of all of them are released together, which needs one lock instead of many.
        drop(freed);
    }

    /// Gives up on messages that have waited longer than this, because the broker sends nothing while it is short of
    /// memory or disk. They keep their share of what may be in flight, since they may still be in a buffer.
    pub fn expire(&self, after: Duration) {
        let mut entries = self.entries();
        let Entries { pending, waiting, .. } = &mut *entries;
        for pending in pending.iter_mut().flatten().take_while(|pending| pending.sent.elapsed() >= after) {
            let reason = format!("no confirm came in time; {SHORT_OF_RESOURCES}");
            *waiting -= usize::from(pending.tell(Err(Error::Unconfirmed { reason })).is_some());
        }
        if entries.waiting == 0 {
            self.empty.notify_waiters();
        }
    }

    /// Whether the oldest message has waited this long for its confirm, even if it was given up.
    pub fn is_silent_for(&self, time: Duration) -> bool {
        self.entries().pending.iter().flatten().next().is_some_and(|pending| pending.sent.elapsed() >= time)
    }

    /// Whether there are messages without a confirm, and all of them were given up.
    pub fn is_given_up(&self, after: Duration) -> bool {
        self.waiting() == 0 && self.is_silent_for(after)
    }

    /// Signals `closed`, unless it is already signalled. Then no more messages can be registered, and the pending ones
    /// will never be confirmed.
    pub fn end(&self, closed: &Loss, reason: Error) {
        let mut entries = self.entries();
        if closed.signal(reason.clone()) {
            entries.end(|_| Error::Unconfirmed { reason: reason.to_string() });
            self.empty.notify_waiters();
        }
    }

    /// The same, because the broker refused a message. It accepted all messages before that one, and ignored all after
    /// it.
    pub fn refuse(&self, closed: &Loss, code: u16, text: &str) {
        let error = Error::Closed { doing: "RabbitMQ refused a message".into(), code, text: text.into() };
        let mut entries = self.entries();
        if !closed.signal(error.clone()) {
            return;
        }
        let refused = entries.refused(text);
        let another = format!("RabbitMQ refused another one on the same channel: {code} {text}");
        let was_told = entries.end(|index| match refused.last() {
            Some(_) if refused.binary_search(&index).is_ok() => error.clone(),
            Some(last) if index > *last => Error::Ignored { reason: another.clone() },
            _ => Error::Unconfirmed { reason: another.clone() },
        });
        entries.refusal = Some(Refusal { is_clear: !refused.is_empty(), was_told });
        self.empty.notify_waiters();
    }

    /// Once the session has ended: whether that was because of a message.
    pub fn refusal(&self) -> Option<Refusal> {
        self.entries().refusal
    }

    /// Waits until no message waits for its confirm.
    pub async fn drained(&self) {
        loop {
            // Listens before it checks.
            let told = self.empty.notified();
            if self.waiting() == 0 {
                return;
            }
            told.await;
        }
    }

    /// How many messages wait for their confirm.
    pub fn waiting(&self) -> usize {
        self.entries().waiting
    }
}

impl Entries {
    fn get(&mut self, number: u64) -> Option<&mut PendingConfirm> {
        let index = number.checked_sub(self.settled + 1)?;
        self.pending.get_mut(usize::try_from(index).ok()?)?.as_mut()
    }

    /// Which messages the broker can mean with these words about a refused message. Several, if they are alike.
    fn refused(&self, text: &str) -> Vec<usize> {
        let all = || self.pending.iter().enumerate().filter_map(|(index, one)| Some((index, one.as_ref()?)));
        let mut first_two = all().map(|(index, _)| index);
        match (first_two.next(), first_two.next(), Refused::in_words(text)) {
            // There is only this one.
            (Some(only), None, _) => vec![only],
            (_, _, Some(refused)) => {
                all().filter(|(_, one)| fits(&refused, &one.mark)).map(|(index, _)| index).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Tells all of them how they ended, and forgets them. Returns whether someone was told.
    fn end(&mut self, how: impl Fn(usize) -> Error) -> bool {
        self.waiting = 0;
        let all = self.pending.drain(..).enumerate();
        let told = all.filter_map(|(index, one)| one?.tell(Err(how(index))));
        // Tell each of them: `any` would stop at the first.
        told.filter(|told| *told).count() > 0
    }

    fn settle_one(&mut self, number: u64, verdict: Verdict, freed: &mut Option<OwnedSemaphorePermit>) {
        let Some(index) = number.checked_sub(self.settled + 1).and_then(|index| usize::try_from(index).ok()) else {
            return;
        };
        if let Some(pending) = self.pending.get_mut(index).and_then(Option::take) {
            self.waiting -= usize::from(pending.settle(verdict, freed));
        }
    }

    /// Settles the oldest entry. Returns whether there was one.
    fn settle_first(&mut self, verdict: Verdict, freed: &mut Option<OwnedSemaphorePermit>) -> bool {
        let Some(slot) = self.pending.pop_front() else { return false };
        self.settled += 1;
        if let Some(pending) = slot {
            self.waiting -= usize::from(pending.settle(verdict, freed));
        }
        true
    }
}

impl PendingConfirm {
    /// Returns whether it was still waited for.
    fn settle(mut self, verdict: Verdict, freed: &mut Option<OwnedSemaphorePermit>) -> bool {
        let outcome = match (self.returned.take(), verdict) {
            (Some(message), _) => Err(Error::Unroutable(message)),
            (None, Verdict::Ack) => Ok(()),
            (None, Verdict::Nack) => Err(Error::Nacked),
        };
        let waited = self.tell(outcome).is_some();
        match (freed, self.share) {
            (Some(freed), Some(share)) if Arc::ptr_eq(freed.semaphore(), share.semaphore()) => freed.merge(share),
            (freed @ None, share) => *freed = share,
            _ => {}
        }
        waited
    }

    /// `None` if it was not pending any more; otherwise whether a caller still waited for it.
    fn tell(&mut self, outcome: Result<()>) -> Option<bool> {
        let heard = match self.confirm.take()? {
            // The caller may have dropped its confirm.
            ConfirmSender::Outcome(sender) => sender.send(outcome).is_ok(),
            ConfirmSender::Failure(tell) => {
                outcome.map_or_else(tell, |()| ());
                true
            }
        };
        Some(heard)
    }
}

/// A message that has its number but is not sent yet. If it is dropped, the numbers still have no gap.
pub(crate) struct Unsent<'a> {
    pending_confirms: &'a PendingConfirms,
    pub number: u64,
}

impl Unsent<'_> {
    /// The message has been sent.
    pub fn sent(self) {
        std::mem::forget(self);
    }
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.pending_confirms.take_back(self.number);
    }
}
