//! Publishes numbered messages until it is stopped, and records the outcome of each.

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

/// The pause between two messages. It is short enough for a steady stream, and long enough for five users that share
/// the machine with their broker.
const EVERY: Duration = Duration::from_millis(2);

/// Publishes until dropped, or until its channel is closed.
pub struct NumberedPublisher {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    paused: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// How it publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Several messages in flight, with deferred confirms.
    Deferred,
    /// One after the other, each until it is confirmed. A message that reaches no queue is sent again.
    AtLeastOnce,
}

/// How far the publisher is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// How many messages it has begun. The next message has this number.
    pub begun: u64,
    /// How many messages have an outcome.
    pub settled: u64,
    /// How many messages reached no queue.
    pub unroutable: u64,
    /// Of all confirmed messages, the one that was begun last: when it was begun, and when it was confirmed.
    pub confirmed: Option<(Instant, Instant)>,
    /// An outcome that must not happen.
    pub unexpected: Option<String>,
    idle: bool,
}

struct Shared {
    progress: watch::Sender<Progress>,
    confirmed: Mutex<Numbers>,
}

impl NumberedPublisher {
    /// Starts publishing. `to` says where the message with a number goes.
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

    /// Waits until a message is confirmed that was begun after `since`. Returns the time of the confirm.
    ///
    /// # Errors
    /// When it does not come in time, or when something else happened that must not happen.
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

    /// Stops publishing until [`resume`](Self::resume), and waits for the outcome of every message.
    ///
    /// # Errors
    /// When an outcome does not come in time.
    pub async fn pause(&self) -> Result<()> {
        self.paused.send_replace(true);
        until(&self.progress, "the outcome of every message", |progress| {
            (progress.idle && progress.settled == progress.begun).then_some(())
        })
        .await
    }

    /// Publishes again after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.paused.send_replace(false);
    }

    /// Waits until the publisher ends because its channel was closed.
    ///
    /// # Errors
    /// What happened that must not happen.
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
                // A caller must expect these while connections break, and while a broker stops slowly.
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
