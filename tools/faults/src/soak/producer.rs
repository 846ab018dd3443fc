//! Publishes in every possible way, and drops some of the calls half-way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use amqprs::{
    BasicProperties, DELIVERY_MODE_PERSISTENT,
    channel::{BasicGetArguments, BasicPublishArguments},
};
use common::{Channel, ConnectionManager};
use fastrand::Rng;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    FULL, WorkQueue,
    accounts::{Accounts, Destination, count},
};
use crate::kept_setup::close_by_publishing;

/// One of the soak's producers.
pub struct Producer {
    /// Its number.
    pub index: usize,
    /// Its connection manager, which a consumer may share.
    pub connections: ConnectionManager,
    /// Its own channel.
    pub channel: Channel,
    /// The queues that have consumers.
    pub queues: Arc<Vec<WorkQueue>>,
    /// Where it reports every outcome.
    pub accounts: Arc<Accounts>,
    /// When it is set, the producer makes the broker close its channel.
    pub close_flag: Arc<AtomicBool>,
    /// Messages per second.
    pub rate: u32,
    /// Its own random choices.
    pub rng: Rng,
    /// The number of its next message.
    pub next: u64,
}

impl Producer {
    /// Publishes until told to stop.
    pub async fn run(mut self, stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let before = self.next;
            self.act().await;
            let published = u32::try_from(self.next - before).unwrap_or(u32::MAX).max(1);
            sleep(Duration::from_secs(1) * published / self.rate).await;
        }
    }

    async fn act(&mut self) {
        if self.close_flag.swap(false, Ordering::Relaxed) {
            return self.provoke_close().await;
        }
        match self.rng.u32(0..100) {
            0..40 => self.publish(Destination::Work).await,
            40..55 => self.pipeline().await,
            55..70 => self.at_least_once().await,
            70..80 => self.publish(Destination::Missing).await,
            80..87 => self.publish(Destination::Full).await,
            87..93 => self.abandon_a_message().await,
            93..98 => self.abandon_a_call().await,
            _ => self.short_lived().await,
        }
    }

    /// Publishes one message and waits for its confirm.
    async fn publish(&mut self, to: Destination) {
        let (number, arguments, body) = self.message(to);
        let outcome = self.channel.publish(arguments, persistent(), body).await;
        self.accounts.published(self.index, number, to, &outcome);
    }

    /// Publishes many messages at once. Drops the confirms of some.
    async fn pipeline(&mut self) {
        let mut confirms = Vec::new();
        for _ in 0..self.rng.u32(10..100) {
            let (number, to, body) = self.message(Destination::Work);
            match self.channel.publish_with_deferred_confirm(to, persistent(), body).await {
                Ok(_) if self.rng.u32(0..50) == 0 => count(&self.accounts.figures.dropped),
                Ok(confirm) => confirms.push((number, confirm)),
                Err(error) => self.accounts.published(self.index, number, Destination::Work, &Err(error)),
            }
        }
        for (number, confirm) in confirms {
            self.accounts.published(self.index, number, Destination::Work, &confirm.await);
        }
    }

    async fn at_least_once(&mut self) {
        let (number, to, body) = self.message(Destination::Work);
        let outcome = self.channel.publish_at_least_once(to, persistent(), body).await;
        if outcome.is_err() {
            self.accounts.violation("publish_at_least_once gave up".into());
        }
        self.accounts.published(self.index, number, Destination::Work, &outcome);
    }

    /// Drops a call of `publish` at some point.
    async fn abandon_a_message(&mut self) {
        let (number, to, body) = self.message(Destination::Work);
        let patience = self.moment();
        match timeout(patience, self.channel.publish(to, persistent(), body)).await {
            Ok(outcome) => self.accounts.published(self.index, number, Destination::Work, &outcome),
            Err(_) => count(&self.accounts.figures.dropped),
        }
    }

    /// Drops another call at some point.
    async fn abandon_a_call(&mut self) {
        let patience = self.moment();
        let queue = &self.queues[self.rng.usize(0..self.queues.len())];
        let outcome = match self.rng.u32(0..3) {
            0 => timeout(patience, self.channel.queue_declare(queue.declaration()))
                .await
                .map(|outcome| outcome.map(drop)),
            1 => {
                let name = format!("soon dropped {}", self.index);
                timeout(patience, self.connections.channel(&name)).await.map(|outcome| outcome.map(drop))
            }
            // Whether it was delivered or not, the message stays unacknowledged. It comes back when the channel ends.
            _ => {
                let get = BasicGetArguments::new("empty");
                timeout(patience, self.channel.get(get)).await.map(|outcome| outcome.map(drop))
            }
        };
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.accounts.failed(&error),
            Err(_) => count(&self.accounts.figures.dropped),
        }
    }

    /// Opens a channel for one message. Closing the channel must not lose the message.
    async fn short_lived(&mut self) {
        let channel = match self.connections.channel(&format!("short-lived {}", self.index)).await {
            Ok(channel) => channel,
            Err(error) => return self.accounts.failed(&error),
        };
        let (number, to, body) = self.message(Destination::Work);
        match channel.publish_with_deferred_confirm(to, persistent(), body).await {
            Ok(confirm) => {
                let closed = channel.close().await;
                self.accounts.published(self.index, number, Destination::Work, &confirm.await);
                if let Err(error) = closed {
                    self.accounts.failed(&error);
                }
            }
            Err(error) => self.accounts.published(self.index, number, Destination::Work, &Err(error)),
        }
    }

    /// Makes the broker close the channel.
    async fn provoke_close(&mut self) {
        // The result depends on the other faults at this time.
        let _ = close_by_publishing(&self.channel).await;
    }

    /// The next number, its destination, and a body that contains the number. The body is mostly small, and sometimes
    /// longer than a frame.
    fn message(&mut self, to: Destination) -> (u64, BasicPublishArguments, Vec<u8>) {
        let number = self.next;
        self.next += 1;
        let mut body = format!("{} {number} ", self.index).into_bytes();
        let padding = if self.rng.u32(0..500) == 0 { 150_000 } else { self.rng.usize(0..500) };
        body.resize(body.len() + padding, b'.');
        let arguments = match to {
            Destination::Work => {
                let queue = &self.queues[self.rng.usize(0..self.queues.len())];
                BasicPublishArguments::new("", &queue.name).mandatory(self.rng.bool()).finish()
            }
            Destination::Missing => BasicPublishArguments::new("", "missing").mandatory(true).finish(),
            Destination::Full => BasicPublishArguments::new("", FULL),
        };
        (number, arguments, body)
    }

    /// About the time that the broker takes to answer.
    fn moment(&mut self) -> Duration {
        Duration::from_micros(self.rng.u64(0..5_000))
    }
}

fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(DELIVERY_MODE_PERSISTENT).finish()
}
