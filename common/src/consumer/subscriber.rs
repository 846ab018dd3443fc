//! The task that keeps a consumer subscribed.

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

/// The prefetch if a consumer's setup sets none: enough to keep it busy, and a limit on what it may hold.
const USUAL_PREFETCH: u16 = 100;

/// A consumer that has lived this long has recovered. If it fails again, the pauses are short again.
const PROVED: Duration = Duration::from_secs(5);

/// How long a probe waits for a message that is in the queue. Another consumer may have been faster.
const PROBE: Duration = Duration::from_secs(2);

/// After a successful probe, a consumer gets its whole prefetch when it has settled a delivery, or after this time. It
/// may settle several deliveries together, and wait for them.
const LONGEST_PROBE: Duration = Duration::from_secs(10);

/// Where a consumer consumes from at present.
#[derive(Clone)]
pub(crate) struct CurrentSubscription {
    pub queue: String,
    /// How many deliveries may be unacknowledged at a time.
    pub prefetch: usize,
    /// Weak, so that a slow reader does not keep a channel open.
    pub session: Weak<Session>,
}

/// Keeps one consumer consuming.
pub(crate) struct Subscriber {
    name: String,
    connection: Arc<ConnectionCore>,
    stop: CancellationToken,
    subscribe: Function<BasicConsumeArguments>,
    buffer: Arc<DeliveryBuffer>,
    current: watch::Sender<Option<CurrentSubscription>>,
    /// Is told of the first subscription.
    first: Option<oneshot::Sender<Result<()>>>,
    first_run: FirstRun,
    poison: PoisonDetector,
    /// The queues of a session that is lost.
    left: Option<OwnQueues>,
}

/// What the consumer's function returned.
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
    pub fn new(
        name: &str,
        connection: &Arc<ConnectionCore>,
        stop: &CancellationToken,
        subscribe: Function<BasicConsumeArguments>,
        buffer: &Arc<DeliveryBuffer>,
        current: watch::Sender<Option<CurrentSubscription>>,
        first: oneshot::Sender<Result<()>>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            connection: connection.clone(),
            stop: stop.clone(),
            subscribe,
            buffer: buffer.clone(),
            current,
            first: Some(first),
            first_run: FirstRun::default(),
            poison: PoisonDetector::default(),
            left: None,
        }
    }

    /// Until the consumer is dropped, or ends for good.
    pub async fn run(mut self) {
        let _owner = self.connection.owners.one_more();
        let mut reopen = Reopen::new(self.connection.clone(), self.stop.clone(), &self.name, false);
        while let Some(opened) = reopen.next().await {
            let ended = match opened {
                Ok(session) => self.use_session(session, &mut reopen).await,
                Err(error) if self.first.is_some() => Some(error),
                Err(error) => {
                    reopen.failed(error).await;
                    continue;
                }
            };
            match ended {
                _ if self.stop.is_cancelled() => break,
                None => {}
                Some(error) => {
                    match self.first.take() {
                        Some(caller) => drop(caller.send(Err(error))),
                        None => self.buffer.end(Some(error)),
                    }
                    break;
                }
            }
        }
        self.delete_what_is_left().await;
    }

    /// Subscribes on a session, and consumes until it is lost or the consumer is dropped. Returns an error to end with.
    async fn use_session(&mut self, session: Arc<Session>, reopen: &mut Reopen) -> Option<Error> {
        if let Some(left) = self.left.take() {
            own_queues::delete(&session, left).await;
        }
        let since = Instant::now();
        let error = match reopen.unless_closing(self.subscribe_on(&session)).await {
            Ok((request, is_probe)) => {
                if let Some(caller) = self.first.take() {
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
                            self.left = Some(own_queues::take(&session));
                        }
                        return None;
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
        self.left = Some(own_queues::take(&session));
        if self.first_run.has_failed(&error) && self.first.is_some() {
            return Some(error);
        }
        if since.elapsed() > PROVED {
            reopen.recovered();
        }
        let has_settled = session.state.has_settled.load(Ordering::Relaxed);
        if let Some(poisoned) = self.poison.weigh(since, has_settled, &error) {
            return Some(poisoned);
        }
        // The connection's return comes with a pause of its own.
        if !(error.is_loss() && session.connection.closed.is_lost()) {
            drop(session);
            reopen.failed(error).await;
        }
        None
    }

    /// Of a session that failed. A dropped stream tidies up after its last one.
    async fn delete_what_is_left(&mut self) {
        let status = self.connection.status.borrow().clone();
        if !self.connection.closing.is_cancelled()
            && let (Some((of, queues)), ConnectionStatus::Up(connection)) = (self.left.take(), status)
            && !queues.is_empty()
            && let Ok(session) = Session::open(&connection, false, self.connection.options.operation_timeout).await
        {
            own_queues::delete(&session, (of, queues)).await;
            session.close().await;
        }
    }

    async fn subscribe_on(&mut self, session: &Arc<Session>) -> Result<(ConsumeRequest, bool)> {
        // From now on their names are remembered.
        own_queues::record(session);
        let request = self.request(session).await?;
        let is_probe = self.poison.has_to_probe() && !request.arguments.no_ack;
        let subscription = match is_probe {
            true => subscribe_as_probe(session, &request, &mut self.poison).await?,
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

    /// Waits until the session is lost, or the broker cancels its consumer. Returns why.
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

    /// After a probe: subscribes again on the same channel with the whole prefetch, which only counts for new
    /// consumers.
    async fn widen(&self, session: &Arc<Session>, request: &ConsumeRequest) -> Result<()> {
        let Some(tag) = self.buffer.newest_tag(session) else { return Ok(()) };
        set_prefetch(session, request.prefetch).await?;
        let cancel = BasicCancelArguments::new(&tag);
        let doing = || "cannot cancel a consumer".to_owned();
        let cancel = || session.call(doing, |raw| async move { raw.basic_cancel(cancel).await });
        // Usually the new consumer subscribes before the old one is cancelled, so that an auto-delete queue is not
        // deleted. But a consumer tag, and an exclusive consumer, can exist only once.
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

    /// RabbitMQ has cancelled the consumer, but the channel lives. Deliveries that the user holds can still be settled
    /// on it. Unread ones go back.
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
    // RabbitMQ closes the whole connection for what is impossible with a stream.
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
    // One consumer at a time, so that it is clear whose message breaks the connection.
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

/// Waits until it is safe to use the whole prefetch.
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

/// How many messages wait in a queue, which must exist.
async fn count_messages(session: &Session, queue: &str) -> Result<u32> {
    let passive = QueueDeclareArguments::new(queue).passive(true).finish();
    let doing = || format!("cannot consume from queue `{queue}`");
    let declared = session.call(doing, |raw| async move { raw.queue_declare(passive).await }).await?;
    Ok(declared.map_or(0, |(_, messages, _)| messages))
}
