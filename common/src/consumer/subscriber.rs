//! The task that keeps a consumer consuming.

use std::{
    sync::{Arc, PoisonError, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use amqprs::channel::{BasicCancelArguments, BasicConsumeArguments, BasicQosArguments, QueueDeclareArguments};
use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Result, broker_words,
    connection::core::{ConnectionCore, ConnectionStatus},
    consumer::{
        buffer::{DeliveryBuffer, Subscription},
        poison::PoisonDetector,
    },
    encoding::nesting::Messages,
    session::{
        Session,
        own_queues::{self, OwnQueues},
        reopen::Reopen,
        setup::{FirstRun, Function},
        setup_channel::fit_consume,
    },
};

/// The prefetch of a consumer whose setup chooses none: enough to keep it busy, and a bound on what it may hold.
const USUAL_PREFETCH: u16 = 100;

/// A consumer that lived this long has recovered: its next trouble starts with short pauses again.
const PROVED: Duration = Duration::from_secs(5);

/// How long a probe waits for a message that is in the queue. Another consumer may have been faster.
const PROBE: Duration = Duration::from_secs(2);

/// After a probe that went well, a consumer gets its whole prefetch when it has settled a delivery, or after this time: it
/// may settle several at once, and wait for them.
const LONGEST_PROBE: Duration = Duration::from_secs(10);

/// Where a consumer consumes from at present.
#[derive(Clone)]
pub(crate) struct CurrentSubscription {
    pub queue: String,
    /// Deliveries that may be unacknowledged at a time.
    pub prefetch: usize,
    /// Weak, so that a reader who is late keeps no channel open.
    pub session: Weak<Session>,
}

/// Keeps one consumer consuming.
pub(crate) struct Subscriber {
    pub name: String,
    pub connection: Arc<ConnectionCore>,
    pub stop: CancellationToken,
    pub subscribe: Function<BasicConsumeArguments>,
    pub buffer: Arc<DeliveryBuffer>,
    pub current: watch::Sender<Option<CurrentSubscription>>,
}

/// What the consumer's function asked for.
struct ConsumeRequest {
    arguments: BasicConsumeArguments,
    queue: String,
    prefetch: u16,
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.buffer.end(None);
    }
}

impl Subscriber {
    /// Until the consumer is dropped, or ends for good. `first` is told of the first subscription.
    pub async fn run(self, first: oneshot::Sender<Result<()>>) {
        let _owner = self.connection.owners.one_more();
        let mut left = None;
        self.keep_consuming(Some(first), &mut left).await;
        // What is left of a session that failed. A dropped stream tidies up after its last one.
        let status = self.connection.status.borrow().clone();
        if !self.connection.closing.is_cancelled()
            && let (Some((of, queues)), ConnectionStatus::Up(connection)) = (left, status)
            && !queues.is_empty()
            && let Ok(session) = Session::open(&connection, false, self.connection.options.operation_timeout).await
        {
            own_queues::delete(&session, (of, queues)).await;
            session.close().await;
        }
    }

    async fn keep_consuming(&self, mut first: Option<oneshot::Sender<Result<()>>>, left: &mut Option<OwnQueues>) {
        let mut poison = PoisonDetector::default();
        let mut reopen = Reopen::new(self.connection.clone(), self.stop.clone(), &self.name, false);
        let mut first_run = FirstRun::default();
        while let Some(session) = reopen.next().await {
            let session = match session {
                Ok(session) => session,
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
                own_queues::delete(&session, left).await;
            }
            let since = Instant::now();
            let error = match reopen.unless_closing(self.subscribe_on(&session, &mut poison)).await {
                Ok((request, is_probe)) => {
                    if let Some(caller) = first.take() {
                        let _ = caller.send(Ok(()));
                    }
                    reopen.ready();
                    let _ready = session.connection.ready.one_more();
                    tokio::select! {
                        error = self.consume_on(&session, request, is_probe) => error,
                        () = self.stop.cancelled() => {
                            // A dropped stream gives its messages back itself; deliveries may still be settled then.
                            if self.connection.closing.is_cancelled() {
                                session.close().await;
                            } else if session.is_lost() {
                                *left = Some(own_queues::take(&session));
                            }
                            return;
                        }
                    }
                }
                Err(error) => {
                    session.close().await;
                    error
                }
            };
            self.current.send_replace(None);
            self.buffer.drop_stale();
            *left = Some(own_queues::take(&session));
            if first_run.has_failed(&error)
                && let Some(caller) = first.take()
            {
                let _ = caller.send(Err(error));
                return;
            }
            if since.elapsed() > PROVED {
                reopen.recovered();
            }
            let settled = session.state.has_settled.load(Ordering::Relaxed);
            if let Some(error) = poison.weigh(since, settled, &error) {
                match first.take() {
                    Some(caller) => drop(caller.send(Err(error))),
                    None => self.buffer.end(Some(error)),
                }
                return;
            }
            // The connection's return comes with a pause of its own.
            if !(error.is_loss() && session.connection.closed.is_lost()) {
                drop(session);
                reopen.failed(error).await;
            }
        }
    }

    async fn subscribe_on(
        &self,
        session: &Arc<Session>,
        poison: &mut PoisonDetector,
    ) -> Result<(ConsumeRequest, bool)> {
        // From now on they are kept in mind.
        own_queues::record(session);
        let request = self.request(session).await?;
        let is_probe = poison.has_to_probe() && !request.arguments.no_ack;
        let subscription = match is_probe {
            true => subscribe_as_probe(session, &request, poison).await?,
            false => {
                let chosen = session.prefetch.lock().unwrap_or_else(PoisonError::into_inner).is_some();
                if !chosen && !request.arguments.no_ack {
                    set_prefetch(session, request.prefetch).await?;
                }
                consume(session, &request).await?
            }
        };
        self.hand_over(subscription, if is_probe { 1 } else { request.prefetch })?;
        Ok((request, is_probe))
    }

    async fn request(&self, session: &Arc<Session>) -> Result<ConsumeRequest> {
        let arguments = self.subscribe.run(session, self.connection.options.operation_timeout).await?;
        let arguments = fit_consume(arguments, session)?;
        let queue = match &*arguments.queue {
            "" => session.last_queue.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            name => name.to_owned(),
        };
        let usual = if arguments.no_ack { 0 } else { USUAL_PREFETCH };
        let prefetch = session.prefetch.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(usual);
        Ok(ConsumeRequest { arguments, queue, prefetch })
    }

    fn hand_over(&self, subscription: Subscription, prefetch: u16) -> Result<()> {
        let current = CurrentSubscription {
            queue: subscription.queue.clone(),
            prefetch: if prefetch == 0 { usize::MAX } else { prefetch.into() },
            session: Arc::downgrade(&subscription.session),
        };
        if !self.buffer.put(subscription) {
            return Err(Error::Shutdown("consumer"));
        }
        self.current.send_replace(Some(current));
        Ok(())
    }

    /// Until the session is lost, or its consumer cancelled by the broker: why.
    async fn consume_on(&self, session: &Arc<Session>, request: ConsumeRequest, mut is_probe: bool) -> Error {
        loop {
            tokio::select! {
                error = session.lost() => return error,
                () = session.state.cancelled.cancelled() => return self.cancelled(session, request).await,
                () = probe_succeeds(session), if is_probe => {
                    is_probe = false;
                    if let Err(error) = self.widen(session, &request).await {
                        return error;
                    }
                }
            }
        }
    }

    /// After a probe: subscribes again on the same channel, with the whole prefetch. It counts for new consumers only.
    async fn widen(&self, session: &Arc<Session>, request: &ConsumeRequest) -> Result<()> {
        let Some(tag) = self.buffer.newest_tag(session) else { return Ok(()) };
        set_prefetch(session, request.prefetch).await?;
        let cancel = BasicCancelArguments::new(&tag);
        let doing = || "cannot cancel a consumer".to_owned();
        let cancel = || session.call(doing, |raw| async move { raw.basic_cancel(cancel).await });
        // Between the two an auto-delete queue would be deleted; but a tag, and an exclusive consumer, there can be once only.
        let one_only = request.arguments.exclusive || !request.arguments.consumer_tag.is_empty();
        let subscription = if one_only {
            cancel().await?;
            consume(session, request).await?
        } else {
            let subscription = consume(session, request).await?;
            cancel().await?;
            subscription
        };
        self.hand_over(subscription, request.prefetch)
    }

    /// RabbitMQ has cancelled the consumer, and the channel lives: what is in the user's hands can be settled on it, and what
    /// is not goes back.
    async fn cancelled(&self, session: &Arc<Session>, request: ConsumeRequest) -> Error {
        let mut unread = self.buffer.take_back(session);
        let prefetched = unread.iter().any(|it| it.first.is_some() || !it.messages.is_empty());
        let in_hand = Arc::strong_count(session) > 1 + unread.len();
        for subscription in &mut unread {
            subscription.give_back().await;
        }
        Error::Cancelled { queue: request.queue, unacknowledged: !request.arguments.no_ack && (prefetched || in_hand) }
    }
}

async fn consume(session: &Arc<Session>, request: &ConsumeRequest) -> Result<Subscription> {
    let (arguments, queue) = (request.arguments.clone(), request.queue.clone());
    let auto_ack = arguments.no_ack;
    let doing = || format!("cannot consume from queue `{queue}`");
    let consume = session.call(doing, |raw| async move {
        raw.basic_consume_rx(arguments).await.map(|(tag, messages)| (tag, Messages(messages)))
    });
    // RabbitMQ closes the whole connection for what a stream cannot do.
    let consuming = consume.await.map_err(|error| error.blame(doing, &broker_words::queue(&queue)));
    let (consumer_tag, messages) = consuming?;
    Ok(Subscription { session: session.clone(), messages, first: None, consumer_tag, queue, auto_ack })
}

/// Subscribes for one message, and waits for it if there is one.
async fn subscribe_as_probe(
    session: &Arc<Session>,
    request: &ConsumeRequest,
    poison: &mut PoisonDetector,
) -> Result<Subscription> {
    // One consumer at a time: whose connection then breaks is clear.
    let _alone = session.connection.probe.lock().await;
    let asked = Instant::now();
    let there_are_messages = count_messages(session, &request.queue).await? > 0;
    let answered = asked.elapsed();
    set_prefetch(session, 1).await?;
    if there_are_messages {
        poison.probe_begins(&request.queue, answered);
    }
    let mut subscription = consume(session, request).await?;
    if there_are_messages {
        tokio::select! {
            biased;
            first = subscription.messages.recv() => subscription.first = first,
            _ = session.lost() => {}
            () = sleep(PROBE) => {}
        }
        if subscription.first.is_none() && session.is_lost() {
            return Err(session.lost().await);
        }
        poison.probe_ends(subscription.first.is_some());
    }
    Ok(subscription)
}

/// Waits until the whole prefetch can be risked.
async fn probe_succeeds(session: &Session) {
    let since = Instant::now();
    sleep(PROVED).await;
    while !session.state.has_settled.load(Ordering::Relaxed) && since.elapsed() < LONGEST_PROBE {
        sleep(PROVED / 5).await;
    }
}

async fn set_prefetch(session: &Session, count: u16) -> Result<()> {
    let qos = BasicQosArguments::new(0, count, false);
    session.call(|| format!("cannot set a prefetch of {count}"), |raw| async move { raw.basic_qos(qos).await }).await
}

/// How many messages wait in a queue, which has to exist.
async fn count_messages(session: &Session, queue: &str) -> Result<u32> {
    let passive = QueueDeclareArguments::new(queue).passive(true).finish();
    let doing = || format!("cannot consume from queue `{queue}`");
    let declared = session.call(doing, |raw| async move { raw.queue_declare(passive).await }).await?;
    Ok(declared.map_or(0, |(_, messages, _)| messages))
}
