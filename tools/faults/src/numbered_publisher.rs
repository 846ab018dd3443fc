//! Publishes numbered messages without end, and keeps account of what became of each.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use amqprs::{BasicProperties, DELIVERY_MODE_PERSISTENT, channel::BasicPublishArguments};
use anyhow::{Result, bail};
use common::{Channel, Confirm, Error};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{numbers::Numbers, wait::until};

/// How many messages may wait for their confirm.
const IN_FLIGHT: usize = 32;

/// A steady stream, and no flood: five users share the machine with their broker.
const EVERY: Duration = Duration::from_millis(2);

/// Publishes until dropped, or until its channel is closed.
pub struct NumberedPublisher {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    paused: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// How a publisher publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Several in flight.
    Deferred,
    /// One after the other, each until it is confirmed; what finds no queue is repeated.
    AtLeastOnce,
}

/// How far a publisher is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// So many messages were begun; the next one has this number.
    pub begun: u64,
    /// So many have their outcome.
    pub settled: u64,
    /// So many found no queue.
    pub unroutable: u64,
    /// Of the confirmed message that was begun last: when it was begun, and when confirmed.
    pub confirmed: Option<(Instant, Instant)>,
    /// An outcome that must not be.
    pub unexpected: Option<String>,
    idle: bool,
}

struct Shared {
    progress: watch::Sender<Progress>,
    confirmed: Mutex<Numbers>,
}

impl NumberedPublisher {
    /// Starts publishing; `to` tells where the message of each number goes.
    pub fn start(channel: Channel, how: How, to: impl Fn(u64) -> BasicPublishArguments + Send + 'static) -> Self {
        let shared = Arc::new(Shared { progress: watch::Sender::default(), confirmed: Mutex::default() });
        let progress = shared.progress.subscribe();
        let (paused, pause) = watch::channel(false);
        let (confirms, waiting) = mpsc::channel(IN_FLIGHT);
        let mut tasks = JoinSet::new();
        tasks.spawn(confirm(waiting, shared.clone()));
        tasks.spawn(publish(channel, how, to, pause, confirms, shared.clone()));
        Self { shared, progress, paused, tasks }
    }

    /// How far it is.
    pub fn progress(&self) -> &watch::Receiver<Progress> {
        &self.progress
    }

    /// The number of the next message.
    pub fn next(&self) -> u64 {
        self.progress.borrow().begun
    }

    /// The numbers of the messages that were confirmed.
    pub fn confirmed(&self) -> MutexGuard<'_, Numbers> {
        self.shared.confirmed()
    }

    /// Waits until a message is confirmed that was begun after `since`; tells when that was.
    ///
    /// # Errors
    /// When it does not come in time, or something else did that must not.
    pub async fn works_since(&self, since: Instant) -> Result<Instant> {
        let progress = until(&self.progress, "a confirmed message", |progress| {
            let works = progress.confirmed.is_some_and(|(begun, _)| begun > since);
            (works || progress.unexpected.is_some()).then(|| progress.clone())
        })
        .await?;
        match progress {
            Progress { unexpected: None, confirmed: Some((_, confirmed)), .. } => Ok(confirmed),
            Progress { unexpected, .. } => bail!("publishing: {}", unexpected.unwrap_or_default()),
        }
    }

    /// Publishes no more, until [`resume`](Self::resume), and waits for the outcome of everything that was published.
    ///
    /// # Errors
    /// When it does not come in time.
    pub async fn pause(&self) -> Result<()> {
        self.paused.send_replace(true);
        until(&self.progress, "the outcome of every message", |progress| {
            (progress.idle && progress.settled == progress.begun).then_some(())
        })
        .await
    }

    /// Undoes [`pause`](Self::pause).
    pub fn resume(&self) {
        self.paused.send_replace(false);
    }

    /// Waits until it has ended by itself, because its channel was closed.
    ///
    /// # Errors
    /// Whatever it met that must not be.
    pub async fn ended(&mut self) -> Result<()> {
        while let Some(ended) = self.tasks.join_next().await {
            ended?;
        }
        match self.progress.borrow().unexpected.clone() {
            Some(unexpected) => bail!("publishing: {unexpected}"),
            None => Ok(()),
        }
    }
}

impl Shared {
    fn confirmed(&self) -> MutexGuard<'_, Numbers> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, number: u64, begun: Instant, outcome: &common::Result<()>) {
        if outcome.is_ok() {
            self.confirmed().insert(number);
        }
        self.progress.send_modify(|progress| {
            progress.settled += 1;
            match outcome {
                Ok(()) if progress.confirmed.is_none_or(|(latest, _)| latest < begun) => {
                    progress.confirmed = Some((begun, Instant::now()));
                }
                Ok(()) => {}
                Err(Error::Unroutable(_)) => progress.unroutable += 1,
                // What a caller has to expect while things break, and while a broker takes its time to stop.
                Err(Error::Unconfirmed { .. } | Error::Ignored { .. } | Error::Lost { .. } | Error::Timeout { .. }) => {
                }
                Err(Error::Nacked | Error::Shutdown(_) | Error::Closed { code: 404, .. }) => {}
                Err(error) => progress.unexpected = Some(error.to_string()),
            }
        });
    }
}

type Waiting = (u64, Instant, Confirm);

async fn publish(
    channel: Channel,
    how: How,
    to: impl Fn(u64) -> BasicPublishArguments,
    mut paused: watch::Receiver<bool>,
    confirms: mpsc::Sender<Waiting>,
    shared: Arc<Shared>,
) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0.. {
        if *paused.borrow() {
            shared.progress.send_modify(|progress| progress.idle = true);
            if paused.wait_for(|paused| !paused).await.is_err() {
                return;
            }
        }
        let begun = Instant::now();
        shared.progress.send_modify(|progress| {
            progress.idle = false;
            progress.begun = number + 1;
        });
        let properties = BasicProperties::default().with_delivery_mode(DELIVERY_MODE_PERSISTENT).finish();
        let outcome = loop {
            ticks.tick().await;
            let (to, properties, body) = (to(number), properties.clone(), number.to_string());
            let outcome = match how {
                How::Deferred => channel.publish_with_deferred_confirm(to, properties, body).await.map(Some),
                How::AtLeastOnce => channel.publish_at_least_once(to, properties, body).await.map(|()| None),
            };
            match outcome {
                Err(Error::Unroutable(_)) if how == How::AtLeastOnce => {}
                outcome => break outcome,
            }
        };
        match outcome {
            Ok(Some(confirm)) => {
                if confirms.send((number, begun, confirm)).await.is_err() {
                    return;
                }
            }
            Ok(None) => shared.settle(number, begun, &Ok(())),
            Err(error) => {
                let closed = matches!(error, Error::Shutdown(_));
                shared.settle(number, begun, &Err(error));
                if closed {
                    return;
                }
            }
        }
    }
}

async fn confirm(mut waiting: mpsc::Receiver<Waiting>, shared: Arc<Shared>) {
    while let Some((number, begun, confirm)) = waiting.recv().await {
        shared.settle(number, begun, &confirm.await);
    }
}
