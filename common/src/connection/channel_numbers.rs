//! The channel numbers of one connection.
//!
//! amqprs can choose the numbers itself. But it panics when they run out, and rounds the negotiated limit up to a
//! multiple of eight (AMQPRS.md, "Channel numbers").

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{Error, Result};

#[derive(Debug)]
pub(crate) struct Numbers {
    /// As negotiated.
    most: u16,
    taken: Mutex<Taken>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    uses: HashMap<u16, Use>,
    last: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// A channel has it.
    Open,
    /// Free soon, when the channel has been closed.
    Closing,
    /// The broker closed the channel, and amqprs does not use the number again.
    Lost,
}

/// One of the numbers. It is lost if it is dropped without being freed, because amqprs still counts it as used although
/// its channel has ended.
pub(crate) struct Number {
    numbers: Arc<Numbers>,
    pub id: u16,
    end: Option<Use>,
}

impl Numbers {
    /// `channel_max` as negotiated. 0 means no limit.
    pub fn new(channel_max: u16) -> Arc<Self> {
        let most = if channel_max == 0 { u16::MAX } else { channel_max };
        Arc::new(Self { most, taken: Mutex::default(), changed: Notify::new() })
    }

    /// A free number. Waits for one that will be free soon.
    ///
    /// # Errors
    /// [`Error::ChannelLimit`] when all numbers are used. [`Error::Stale`] when some of them are lost: a new connection
    /// will have more.
    pub async fn take(self: &Arc<Self>) -> Result<Number> {
        loop {
            let changed = self.changed.notified();
            if let Some(id) = self.taken().next_free(self.most) {
                return Ok(Number { numbers: self.clone(), id, end: Some(Use::Lost) });
            }
            let (closing, lost) = {
                let taken = self.taken();
                let any = |wanted: Use| taken.uses.values().any(|it| *it == wanted);
                (any(Use::Closing), any(Use::Lost))
            };
            match (closing, lost) {
                (true, _) => changed.await,
                (_, true) => return Err(Error::Stale),
                _ => return Err(Error::ChannelLimit(self.most)),
            }
        }
    }

    /// The broker has closed the channel.
    pub fn lose(&self, id: u16) {
        self.set(id, Some(Use::Lost));
    }

    fn set(&self, id: u16, to: Option<Use>) {
        match to {
            Some(to) => self.taken().uses.insert(id, to),
            None => self.taken().uses.remove(&id),
        };
        self.changed.notify_waiters();
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// The next free number after the last one, so that a number that was used a moment ago is not used again soon.
    fn next_free(&mut self, most: u16) -> Option<u16> {
        if self.uses.len() >= most.into() {
            return None;
        }
        let id = (self.last + 1..=most).chain(1..=self.last).find(|id| !self.uses.contains_key(id))?;
        self.uses.insert(id, Use::Open);
        self.last = id % most;
        Some(id)
    }
}

impl Number {
    /// Its channel is about to be closed.
    pub fn closing(&self) {
        // If the broker has not closed it before.
        if self.numbers.taken().uses.get(&self.id) == Some(&Use::Open) {
            self.numbers.set(self.id, Some(Use::Closing));
        }
    }

    /// The broker has confirmed that the channel is closed, and amqprs has noticed it.
    pub fn free(mut self) {
        self.end = None;
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        self.numbers.set(self.id, self.end);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_last_number_is_given_out_and_then_none() -> Result<()> {
        let numbers = Numbers::new(2);
        let (one, two) = (numbers.take().await?, numbers.take().await?);
        assert_eq!((one.id, two.id), (1, 2));
        assert!(matches!(numbers.take().await, Err(Error::ChannelLimit(2))));
        one.free();
        assert_eq!(numbers.take().await?.id, 1);
        Ok(())
    }

    #[tokio::test]
    async fn a_number_that_is_free_in_a_moment_is_waited_for() -> Result<()> {
        let numbers = Numbers::new(1);
        let one = numbers.take().await?;
        one.closing();
        let next = tokio::spawn({
            let numbers = numbers.clone();
            async move { numbers.take().await.map(|number| number.id) }
        });
        tokio::task::yield_now().await;
        one.free();
        let next = timeout(Duration::from_secs(30), next).await.ok().and_then(|joined| joined.ok());
        assert_eq!(next.expect("in time and without a panic")?, 1);
        Ok(())
    }

    #[tokio::test]
    async fn a_lost_number_is_none_of_those_that_are_in_use() -> Result<()> {
        let numbers = Numbers::new(2);
        let one = numbers.take().await?;
        numbers.lose(one.id);
        one.closing();
        let two = numbers.take().await?;
        assert!(matches!(numbers.take().await, Err(Error::Stale)));
        drop(two);
        assert!(matches!(numbers.take().await, Err(Error::Stale)));
        // RabbitMQ may have no limit.
        assert_eq!(Numbers::new(0).take().await?.id, 1);
        Ok(())
    }
}
