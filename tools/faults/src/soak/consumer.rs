//! Consumes, settles in every possible way, and subscribes again now and then.

use std::{sync::Arc, time::Duration};

use amqprs::channel::{BasicConsumeArguments, BasicQosArguments};
use common::{Channel, Consumer, Delivery, SetupChannel};
use fastrand::Rng;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{WorkQueue, accounts::Accounts};
use crate::kept_setup::KeptSetup;

/// One of the soak's consumers.
pub struct Worker {
    /// Its channel.
    pub channel: Channel,
    /// The queue that it consumes from.
    pub queue: WorkQueue,
    /// Keeps the latest setup channel, so that a fault can close it.
    pub kept_setup: KeptSetup,
    /// Where it reports what it receives.
    pub accounts: Arc<Accounts>,
    /// Its own random choices.
    pub rng: Rng,
}

impl Worker {
    /// Consumes until told to stop.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let value = (self.queue.clone(), self.kept_setup.clone());
            match self.channel.consume_with(value, subscribe).await {
                Ok(mut consumer) => {
                    tokio::select! {
                        () = self.work(&mut consumer) => {}
                        _ = stop.wait_for(|stop| *stop) => {}
                    }
                }
                // If a setup fails in its first run, the caller gets the error.
                Err(error) => {
                    self.accounts.failed(&error);
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        self.kept_setup.clear();
    }

    /// Reads some thousand messages. Then the stream is dropped, and its prefetched messages have to come to the next
    /// one.
    async fn work(&mut self, consumer: &mut Consumer) {
        for _ in 0..self.rng.u32(500..5_000) {
            let moment = Duration::from_millis(self.rng.u64(1..50));
            match timeout(moment, consumer.try_next()).await {
                // The call was dropped while it waited.
                Err(_) => {}
                Ok(Ok(Some(delivery))) => self.take(delivery).await,
                Ok(Ok(None)) => {
                    self.accounts.violation("a stream has ended although it was not closed".into());
                    return sleep(Duration::from_secs(1)).await;
                }
                Ok(Err(error)) => return self.accounts.violation(format!("a stream has ended: {error}")),
            }
        }
    }

    async fn take(&mut self, delivery: Delivery) {
        let text = delivery.text();
        let mut words = text.split(' ').map(str::parse::<u64>);
        match (words.next(), words.next()) {
            (Some(Ok(producer)), Some(Ok(number))) => self.accounts.received(producer as usize, number),
            _ => self.accounts.violation(format!("a message that was not sent: {text:.50}")),
        }
        let settled = match self.rng.u32(0..100) {
            0..3 => delivery.nack(true).await,
            3..5 => delivery.reject(true).await,
            5..8 => {
                sleep(Duration::from_millis(self.rng.u64(1..20))).await;
                delivery.ack().await
            }
            _ => delivery.ack().await,
        };
        if let Err(error) = settled {
            self.accounts.violation(format!("settling: {error}"));
        }
    }
}

async fn subscribe(
    channel: SetupChannel,
    (queue, kept_setup): (WorkQueue, KeptSetup),
) -> common::Result<BasicConsumeArguments> {
    kept_setup.keep(&channel);
    channel.basic_qos(BasicQosArguments::new(0, 50, false)).await?;
    channel.queue_declare(queue.declaration()).await?;
    Ok(BasicConsumeArguments::new(&queue.name, ""))
}
