//! Reads numbered messages from one stream until it ends, and remembers them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Result, bail};
use common::{Consumer, Delivery, Error};
use tokio::{sync::watch, task::JoinSet};

use crate::{numbered_publisher::NumberedPublisher, numbers::Numbers, wait::until};

/// How many messages have to arrive before a user counts as working.
const SOME: u64 = 20;

/// Reads and acknowledges until it is dropped, or until the stream ends.
pub struct Reader {
    seen: watch::Receiver<Seen>,
    received: Arc<Mutex<Numbers>>,
    task: JoinSet<()>,
}

/// What has come so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// On how many AMQP channels messages came: each channel numbers its deliveries from 1.
    pub openings: u64,
    /// When the first delivery came on the latest channel.
    pub opened: Option<Instant>,
    /// The queue that the latest channel consumes from.
    pub queue: String,
    /// When the last delivery came, for each routing key.
    pub keys: BTreeMap<String, Instant>,
    /// The highest number so far.
    pub highest: u64,
    /// Why the stream has ended. Empty if it ended without an error.
    pub ended: Option<String>,
    /// Something that must not happen.
    pub unexpected: Option<String>,
}

impl Reader {
    /// Starts reading. If `settles` is true, each delivery is acknowledged.
    pub fn start(consumer: Consumer, settles: bool) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let received = Arc::new(Mutex::default());
        let mut task = JoinSet::new();
        task.spawn(read(consumer, settles, sender, received.clone()));
        Self { seen, received, task }
    }

    /// What has come so far.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until messages have come on more than `before` channels. Returns the time of the first delivery on the
    /// latest channel.
    ///
    /// # Errors
    /// When they do not come in time, or when something else happened that must not happen.
    pub async fn works_after(&self, before: u64) -> Result<Instant> {
        self.until("a delivery on another channel", |seen| seen.opened.filter(|_| seen.openings > before)).await
    }

    /// Waits until `wanted` finds something in what has come so far.
    ///
    /// # Errors
    /// When it does not come in time, or when something else happened that must not happen.
    pub async fn until<T>(&self, what: &str, mut wanted: impl FnMut(&Seen) -> Option<T>) -> Result<T> {
        let found = until(&self.seen, what, |seen| match (&seen.unexpected, &seen.ended) {
            (Some(unexpected), _) => Some(Err(format!("reading: {unexpected}"))),
            (None, Some(reason)) => Some(Err(format!("the stream has ended: {reason}"))),
            (None, None) => wanted(seen).map(Ok),
        });
        match found.await? {
            Ok(found) => Ok(found),
            Err(trouble) => bail!(trouble),
        }
    }

    /// Waits until some more of the publisher's messages have arrived.
    ///
    /// # Errors
    /// When they do not come in time.
    pub async fn flows_from(&self, publisher: &NumberedPublisher) -> Result<()> {
        let wanted = publisher.next() + SOME;
        self.until("more messages", |seen| (seen.highest >= wanted).then_some(())).await
    }

    /// Pauses the publisher, and waits until all its confirmed messages from the number `first` on have arrived. The
    /// publisher stays paused.
    ///
    /// # Errors
    /// The messages that have not come in time.
    pub async fn catches_up_with(&self, publisher: &NumberedPublisher, first: u64) -> Result<()> {
        publisher.pause().await?;
        let missing =
            || publisher.confirmed().not_in(&self.received.lock().unwrap_or_else(PoisonError::into_inner), first);
        let complete = self.until("every confirmed message", |_| missing().is_empty().then_some(())).await;
        if let Err(error) = complete {
            let (missing, confirmed) = (missing(), publisher.confirmed().len());
            let some = &missing[..missing.len().min(5)];
            bail!("{error:#}: of {confirmed} confirmed messages {} are missing, such as {some:?}", missing.len());
        }
        Ok(())
    }

    /// Waits until the stream has ended without an error.
    ///
    /// # Errors
    /// The error with which it ended.
    pub async fn ended(&mut self) -> Result<()> {
        while let Some(ended) = self.task.join_next().await {
            ended?;
        }
        match self.seen() {
            Seen { unexpected: Some(trouble), .. } => bail!("reading: {trouble}"),
            Seen { ended: Some(reason), .. } if !reason.is_empty() => bail!("the stream has ended: {reason}"),
            _ => Ok(()),
        }
    }
}

async fn read(mut consumer: Consumer, settles: bool, seen: watch::Sender<Seen>, received: Arc<Mutex<Numbers>>) {
    let reason = loop {
        match consumer.try_next().await {
            Ok(Some(delivery)) => {
                let queue = if delivery.delivery_tag == 1 { consumer.queue() } else { String::new() };
                if let Err(error) = take(delivery, settles, queue, &seen, &received).await {
                    seen.send_modify(|seen| seen.unexpected = Some(format!("{error:#}")));
                }
            }
            Ok(None) => break String::new(),
            Err(error) => break error.to_string(),
        }
    };
    seen.send_modify(|seen| seen.ended = Some(reason));
}

async fn take(
    delivery: Delivery,
    settles: bool,
    queue: String,
    seen: &watch::Sender<Seen>,
    received: &Mutex<Numbers>,
) -> Result<()> {
    let number = delivery.text().parse()?;
    received.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
    seen.send_modify(|seen| {
        let now = Instant::now();
        if delivery.delivery_tag == 1 {
            seen.openings += 1;
            seen.opened = Some(now);
            seen.queue = queue;
        }
        seen.highest = seen.highest.max(number);
        match seen.keys.get_mut(&delivery.routing_key) {
            Some(last) => *last = now,
            None => drop(seen.keys.insert(delivery.routing_key.clone(), now)),
        }
    });
    if settles {
        match delivery.ack().await {
            // "Too late" is not an error: the message comes again.
            Ok(_) | Err(Error::Shutdown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
