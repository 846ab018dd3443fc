//! The task that keeps a consumer consuming.

use std::{
    sync::{Arc, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use amqprs::channel::{
    BasicCancelArguments, BasicConsumeArguments, BasicQosArguments, QueueDeclareArguments, QueueDeleteArguments,
};
use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Result,
    deep::Messages,
    link::Health,
    opening::Opening,
    reopen::Reopen,
    setup::{FirstRun, Function},
    shelf::{Shelf, Subscription},
    supervisor::{Core, LinkState},
    suspicion::Suspicion,
    topology::{fit_consume, queue_delete},
};

/// The prefetch of a consumer whose setup chooses none: enough to keep it busy, and a bound on what it may hold.
const USUAL_PREFETCH: u16 = 100;

/// A consumer that lived this long has recovered: its next trouble starts with short pauses again.
const SETTLED: Duration = Duration::from_secs(5);

/// How long a trial waits for a message that is in the queue. Another consumer may have been faster.
const TRIAL: Duration = Duration::from_secs(2);

/// A consumer that stood its trial gets its whole prefetch when it has settled a delivery, or after this time: it may settle
/// several at once, and wait for them.
const LONGEST_TRIAL: Duration = Duration::from_secs(10);

/// Where a consumer consumes from at present.
#[derive(Clone)]
pub(crate) struct Place {
    pub queue: String,
    /// Deliveries that may be unacknowledged at a time.
    pub prefetch: usize,
    /// Weak, so that a reader who is late keeps no channel open.
    pub opening: Weak<Opening>,
}

/// Keeps one consumer consuming.
pub(crate) struct Task {
    pub name: String,
    pub core: Arc<Core>,
    pub stop: CancellationToken,
    pub subscribe: Function<BasicConsumeArguments>,
    pub shelf: Arc<Shelf>,
    pub place: watch::Sender<Option<Place>>,
}

/// What the consumer's function asked for.
struct Wish {
    arguments: BasicConsumeArguments,
    queue: String,
    prefetch: u16,
}

/// Exclusive queues that the broker named, on the connection that they stay on.
type OwnQueues = (Arc<Health>, Vec<String>);

impl Drop for Task {
    fn drop(&mut self) {
        self.shelf.end(None);
    }
}

impl Task {
    /// Until the consumer is dropped, or ends for good. `first` is told of the first subscription.
    pub async fn run(self, first: oneshot::Sender<Result<()>>) {
        let _owner = self.core.owners.one_more();
        let mut left = None;
        self.keep_consuming(Some(first), &mut left).await;
        // What is left of an opening that failed. A dropped stream tidies up after its last one.
        let link = self.core.link.borrow().clone();
        if !self.core.closing.is_cancelled()
            && let (Some((health, queues)), LinkState::Up(link)) = (left, link)
            && !queues.is_empty()
            && let Ok(opening) = Opening::open(&link, false, self.core.options.operation_timeout).await
        {
            delete(&opening, (health, queues)).await;
            opening.close().await;
        }
    }

    async fn keep_consuming(&self, mut first: Option<oneshot::Sender<Result<()>>>, left: &mut Option<OwnQueues>) {
        let mut suspicion = Suspicion::default();
        let mut reopen = Reopen::new(self.core.clone(), self.stop.clone(), &self.name, false);
        let mut first_run = FirstRun::default();
        while let Some(opening) = reopen.next().await {
            let opening = match opening {
                Ok(opening) => opening,
                Err(error) => {
                    if let Some(caller) = first.take() {
                        let _ = caller.send(Err(error));
                        return;
                    }
                    reopen.failed(error).await;
                    continue;
                }
            };
            if let Some(left) = left.take() {
                delete(&opening, left).await;
            }
            let since = Instant::now();
            let error = match reopen.unless_closing(self.subscribe_on(&opening, &mut suspicion)).await {
                Ok((wish, on_trial)) => {
                    if let Some(caller) = first.take() {
                        let _ = caller.send(Ok(()));
                    }
                    reopen.ready();
                    let _ready = opening.health.ready.one_more();
                    tokio::select! {
                        error = self.consume_on(&opening, wish, on_trial) => error,
                        () = self.stop.cancelled() => {
                            // A dropped stream gives its messages back itself; deliveries may still be settled then.
                            if self.core.closing.is_cancelled() {
                                opening.close().await;
                            } else if opening.is_lost() {
                                *left = Some(take_own_queues(&opening));
                            }
                            return;
                        }
                    }
                }
                Err(error) => {
                    opening.close().await;
                    error
                }
            };
            self.place.send_replace(None);
            self.shelf.drop_stale();
            *left = Some(take_own_queues(&opening));
            if first_run.has_failed(&error)
                && let Some(caller) = first.take()
            {
                let _ = caller.send(Err(error));
                return;
            }
            if since.elapsed() > SETTLED {
                reopen.recovered();
            }
            // Whoever has the turn is settling one.
            let settled = opening.turn.try_lock().map_or(true, |settled| settled.any);
            if let Some(error) = suspicion.weigh(since, settled, &error) {
                match first.take() {
                    Some(caller) => drop(caller.send(Err(error))),
                    None => self.shelf.end(Some(error)),
                }
                return;
            }
            // The connection's return comes with a pause of its own.
            if !(error.is_loss() && opening.health.loss.is_lost()) {
                drop(opening);
                reopen.failed(error).await;
            }
        }
    }

    async fn subscribe_on(&self, opening: &Arc<Opening>, suspicion: &mut Suspicion) -> Result<(Wish, bool)> {
        // From now on they are kept in mind.
        *own_queues(opening) = Some(Vec::new());
        let wish = self.wish(opening).await?;
        let on_trial = suspicion.wants_trial() && !wish.arguments.no_ack;
        let subscription = match on_trial {
            true => subscribe_on_trial(opening, &wish, suspicion).await?,
            false => {
                let chosen = opening.prefetch.lock().unwrap_or_else(PoisonError::into_inner).is_some();
                if !chosen && !wish.arguments.no_ack {
                    set_prefetch(opening, wish.prefetch).await?;
                }
                consume(opening, &wish).await?
            }
        };
        self.hand_over(subscription, if on_trial { 1 } else { wish.prefetch })?;
        Ok((wish, on_trial))
    }

    async fn wish(&self, opening: &Arc<Opening>) -> Result<Wish> {
        let arguments = self.subscribe.run(opening, self.core.options.operation_timeout).await?;
        let arguments = fit_consume(arguments, opening)?;
        let queue = match &*arguments.queue {
            "" => opening.last_queue.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            name => name.to_owned(),
        };
        let usual = if arguments.no_ack { 0 } else { USUAL_PREFETCH };
        let prefetch = opening.prefetch.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(usual);
        Ok(Wish { arguments, queue, prefetch })
    }

    fn hand_over(&self, subscription: Subscription, prefetch: u16) -> Result<()> {
        let place = Place {
            queue: subscription.queue.clone(),
            prefetch: if prefetch == 0 { usize::MAX } else { prefetch.into() },
            opening: Arc::downgrade(&subscription.opening),
        };
        if !self.shelf.put(subscription) {
            return Err(Error::Shutdown("consumer"));
        }
        self.place.send_replace(Some(place));
        Ok(())
    }

    /// Until the opening is lost, or its consumer cancelled by the broker: why.
    async fn consume_on(&self, opening: &Arc<Opening>, wish: Wish, mut on_trial: bool) -> Error {
        loop {
            tokio::select! {
                error = opening.lost() => return error,
                () = opening.cancelled.cancelled() => return self.cancelled(opening, wish).await,
                () = stands_its_trial(opening), if on_trial => {
                    on_trial = false;
                    if let Err(error) = self.widen(opening, &wish).await {
                        return error;
                    }
                }
            }
        }
    }

    /// After a trial: subscribes again on the same channel, with the whole prefetch. It counts for new consumers only.
    async fn widen(&self, opening: &Arc<Opening>, wish: &Wish) -> Result<()> {
        let Some(tag) = self.shelf.newest_tag(opening) else { return Ok(()) };
        set_prefetch(opening, wish.prefetch).await?;
        let cancel = BasicCancelArguments::new(&tag);
        let doing = || "cannot cancel a consumer".to_owned();
        let cancel = || opening.call(doing, |raw| async move { raw.basic_cancel(cancel).await });
        // Between the two an auto-delete queue would be deleted; but a tag, and an exclusive consumer, there can be once only.
        let one_only = wish.arguments.exclusive || !wish.arguments.consumer_tag.is_empty();
        let subscription = if one_only {
            cancel().await?;
            consume(opening, wish).await?
        } else {
            let subscription = consume(opening, wish).await?;
            cancel().await?;
            subscription
        };
        self.hand_over(subscription, wish.prefetch)
    }

    /// RabbitMQ has cancelled the consumer, and the channel lives: what is in the user's hands can be settled on it, and what
    /// is not goes back.
    async fn cancelled(&self, opening: &Arc<Opening>, wish: Wish) -> Error {
        let mut unread = self.shelf.take_back(opening);
        let prefetched = unread.iter().any(|it| it.first.is_some() || !it.messages.is_empty());
        let in_hand = Arc::strong_count(opening) > 1 + unread.len();
        for subscription in &mut unread {
            subscription.give_back().await;
        }
        Error::Cancelled { queue: wish.queue, unacknowledged: !wish.arguments.no_ack && (prefetched || in_hand) }
    }
}

fn own_queues(opening: &Opening) -> MutexGuard<'_, Option<Vec<String>>> {
    opening.own_queues.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn consume(opening: &Arc<Opening>, wish: &Wish) -> Result<Subscription> {
    let (arguments, queue) = (wish.arguments.clone(), wish.queue.clone());
    let auto_ack = arguments.no_ack;
    let doing = || format!("cannot consume from queue `{queue}`");
    let consume = opening.call(doing, |raw| async move {
        raw.basic_consume_rx(arguments).await.map(|(tag, messages)| (tag, Messages(messages)))
    });
    // RabbitMQ closes the whole connection for what a stream cannot do.
    let consuming = consume.await.map_err(|error| error.blame(doing, &format!("queue '{queue}'")));
    let (consumer_tag, messages) = consuming?;
    Ok(Subscription { opening: opening.clone(), messages, first: None, consumer_tag, queue, auto_ack })
}

/// Subscribes for one message, and waits for it if there is one.
async fn subscribe_on_trial(opening: &Arc<Opening>, wish: &Wish, suspicion: &mut Suspicion) -> Result<Subscription> {
    // One consumer at a time: whose connection then breaks is clear.
    let _alone = opening.health.trial.lock().await;
    let asked = Instant::now();
    let there_are_messages = count_messages(opening, &wish.queue).await? > 0;
    let answered = asked.elapsed();
    set_prefetch(opening, 1).await?;
    if there_are_messages {
        suspicion.trial_begins(&wish.queue, answered);
    }
    let mut subscription = consume(opening, wish).await?;
    if there_are_messages {
        tokio::select! {
            biased;
            first = subscription.messages.recv() => subscription.first = first,
            _ = opening.lost() => {}
            () = sleep(TRIAL) => {}
        }
        if subscription.first.is_none() && opening.is_lost() {
            return Err(opening.lost().await);
        }
        suspicion.trial_ends(subscription.first.is_some());
    }
    Ok(subscription)
}

/// Waits until the whole prefetch can be risked.
async fn stands_its_trial(opening: &Opening) {
    let since = Instant::now();
    sleep(SETTLED).await;
    while !opening.turn().await.any && since.elapsed() < LONGEST_TRIAL {
        sleep(SETTLED / 5).await;
    }
}

async fn set_prefetch(opening: &Opening, count: u16) -> Result<()> {
    let qos = BasicQosArguments::new(0, count, false);
    opening.call(|| format!("cannot set a prefetch of {count}"), |raw| async move { raw.basic_qos(qos).await }).await
}

/// How many messages wait in a queue, which has to exist.
async fn count_messages(opening: &Opening, queue: &str) -> Result<u32> {
    let passive = QueueDeclareArguments::new(queue).passive(true).finish();
    let doing = || format!("cannot consume from queue `{queue}`");
    let declared = opening.call(doing, |raw| async move { raw.queue_declare(passive).await }).await?;
    Ok(declared.map_or(0, |(_, messages, _)| messages))
}

/// Deletes the exclusive queues that the broker named on this opening: they would stay, bound and filling up, until the
/// connection ends, and nobody else can know them.
pub(crate) async fn delete_own_queues(opening: &Arc<Opening>) {
    delete(opening, take_own_queues(opening)).await;
}

fn take_own_queues(opening: &Opening) -> OwnQueues {
    (opening.health.clone(), own_queues(opening).take().unwrap_or_default())
}

async fn delete(opening: &Arc<Opening>, (health, queues): OwnQueues) {
    // With their connection they are gone.
    if Arc::ptr_eq(&health, &opening.health) {
        for queue in queues {
            // Deleting what is gone already is no error; any other trouble meets the setup, too.
            let _ = queue_delete(opening.clone(), QueueDeleteArguments::new(&queue)).await;
        }
    }
}
