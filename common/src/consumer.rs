//! A stream of deliveries that goes on across reconnects.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, PoisonError, Weak},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use amqprs::channel::{BasicCancelArguments, BasicConsumeArguments, BasicQosArguments, QueueDeleteArguments};
use futures_util::{Stream, future::BoxFuture};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Delivery, Error, Result, Setup,
    deep::Messages,
    escaped,
    manager::ManagerHandle,
    opening::Opening,
    reopen::Reopen,
    setup::{FirstRun, run},
    supervisor::Core,
    suspicion::Suspicion,
    topology::{basic_qos, check_name, queue_delete},
};

/// The prefetch of a consumer whose setup chooses none: enough to keep it busy, and a bound on what it may hold.
const USUAL_PREFETCH: u16 = 100;

/// A consumer that lived this long has recovered: its next trouble starts with short pauses again.
const SETTLED: Duration = Duration::from_secs(5);

pub(crate) type Subscribe = Box<dyn Fn(Setup) -> BoxFuture<'static, Result<BasicConsumeArguments>> + Send + Sync>;

/// The deliveries of one consumer, made by [`Channel::consume`](crate::Channel::consume).
///
/// Read it with [`next`](Self::next), or as a [`Stream`]. After a loss of the connection, a closed channel or a
/// consumer cancelled by the broker, the setup runs again and the stream goes on. With manual acknowledgement, what
/// was prefetched and not yet read is then forgotten, because RabbitMQ delivers it again; with automatic
/// acknowledgement it is still read, because nobody would.
///
/// A header that is nested too deeply is removed from its message, see [`Message`](crate::Message). One that is not UTF-8
/// breaks the connection, because amqprs cannot decode it: with manual acknowledgement RabbitMQ delivers all again; with
/// automatic acknowledgement the message is lost, and those that were on their way behind it.
///
/// Dropping it cancels the consumer and gives prefetched messages back to the queue. Deliveries already read can
/// still be settled.
pub struct Consumer {
    current: Option<Subscription>,
    /// Newer subscriptions, while `current` still holds automatically acknowledged messages.
    later: VecDeque<Subscription>,
    /// An error is the last one.
    subscriptions: mpsc::UnboundedReceiver<Result<Subscription>>,
    place: watch::Receiver<Option<Place>>,
    last_queue: String,
    max_body_size: usize,
    stop: CancellationToken,
    manager: Arc<ManagerHandle>,
}

/// Where a consumer consumes from at present.
#[derive(Clone)]
pub(crate) struct Place {
    pub queue: String,
    /// Deliveries that may be unacknowledged at a time.
    pub prefetch: usize,
    /// Weak, so that a reader who is late keeps no channel open.
    pub opening: Weak<Opening>,
}

/// What one opening delivers: amqprs's own receiver, so that a message is moved once and copied never.
struct Subscription {
    opening: Arc<Opening>,
    messages: Messages,
    consumer_tag: String,
    queue: String,
    auto_ack: bool,
}

pub(crate) async fn start(manager: Arc<ManagerHandle>, name: &str, subscribe: Subscribe) -> Result<Consumer> {
    let core = manager.core.clone();
    let (sender, subscriptions) = mpsc::unbounded_channel();
    let (place_sender, place) = watch::channel(None);
    let (first, answer) = oneshot::channel();
    let stop = core.closing.child_token();
    let task =
        Task { name: name.to_owned(), core: core.clone(), stop: stop.clone(), subscribe, sender, place: place_sender };
    core.spawn(task.keep_consuming(first));
    // From here on, a dropped caller ends the task.
    let consumer = Consumer {
        current: None,
        later: VecDeque::new(),
        subscriptions,
        place,
        last_queue: String::new(),
        max_body_size: usize::MAX,
        stop,
        manager,
    };
    match timeout(core.options.operation_timeout, answer).await {
        Ok(answer) => answer.unwrap_or(Err(Error::Shutdown("channel"))).map(|()| consumer),
        Err(_) => Err(core.timed_out("cannot consume")),
    }
}

impl Consumer {
    /// The next delivery. Waits through losses of the connection; `None` when this program has closed the connection
    /// manager.
    ///
    /// It may be dropped while it waits, as in `tokio::select!`, without losing a message.
    ///
    /// # Errors
    /// Why consuming ended for good. It is the last item.
    pub async fn next(&mut self) -> Result<Option<Delivery>> {
        poll_fn(|context| self.poll(context)).await.transpose()
    }

    /// Refuses messages with a larger body. Each is rejected without requeue, so that it is dropped, or dead-lettered if
    /// its queue says so; a warning is logged, and the stream goes on with the next one. Default: no limit.
    ///
    /// This keeps what is too large away from what handles it, and from nothing else: the body is in memory when
    /// its size is looked at. What protects the memory is the broker's `max_message_size`
    /// ([16 MiB since RabbitMQ 4.0, 128 MiB before](https://www.rabbitmq.com/docs/configure)), times the prefetch.
    ///
    /// ```no_run
    /// # async fn example(channel: common::Channel) -> common::Result<()> {
    /// # async fn subscribe(_: common::Setup) -> common::Result<amqprs::channel::BasicConsumeArguments> { todo!() }
    /// let mut messages = channel.consume(subscribe).await?.max_body_size(64 * 1024);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_body_size(mut self, bytes: usize) -> Self {
        self.max_body_size = bytes;
        self
    }

    /// The queue consumed from. A server-named queue may have another name after each reconnect.
    pub fn queue(&self) -> String {
        self.place.borrow().as_ref().map_or_else(|| self.last_queue.clone(), |place| place.queue.clone())
    }

    pub(crate) fn core(&self) -> Arc<Core> {
        self.manager.core.clone()
    }

    /// Where it consumes from, `None` while there is no subscription.
    pub(crate) fn place(&self) -> watch::Receiver<Option<Place>> {
        self.place.clone()
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Delivery>>> {
        loop {
            if self.current.is_none() {
                self.current = self.later.pop_front();
            }
            if let Some(subscription) = &mut self.current {
                let message = match subscription.opening.is_lost() {
                    // RabbitMQ delivers these again, on the next opening.
                    true if !subscription.auto_ack => Poll::Ready(None),
                    // All there is has come: the end of an opening is told after its deliveries.
                    true => Poll::Ready(subscription.messages.try_recv()),
                    false => subscription.messages.poll_recv(context),
                };
                match message {
                    Poll::Ready(Some(message)) => {
                        match Delivery::from_consumer(message, &subscription.opening, subscription.auto_ack) {
                            Some(delivery) if delivery.body.len() > self.max_body_size => {
                                let (size, most) = (delivery.body.len(), self.max_body_size);
                                let (queue, auto_ack) = (&subscription.queue, subscription.auto_ack);
                                tracing::warn!(
                                    "a message from queue `{}` is refused: {size} bytes, allowed are {most}",
                                    escaped(queue)
                                );
                                if !auto_ack {
                                    self.manager.core.spawn(async { drop(delivery.reject(false).await) });
                                }
                            }
                            Some(delivery) => return Poll::Ready(Some(Ok(delivery))),
                            None => {}
                        }
                        continue;
                    }
                    Poll::Ready(None) => {
                        self.current = None;
                        continue;
                    }
                    Poll::Pending => {}
                }
            }
            match self.subscriptions.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Err(error))) => {
                    self.subscriptions.close();
                    self.current = None;
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(Some(Ok(next))) => {
                    self.last_queue.clone_from(&next.queue);
                    self.later.push_back(next);
                }
                // Closed by this program. What was acknowledged automatically is still there to be read.
                Poll::Ready(None) if self.current.as_ref().is_some_and(|current| current.opening.is_lost()) => {}
                Poll::Ready(None) => return Poll::Ready(None),
            }
        }
    }
}

impl Stream for Consumer {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(context)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop.cancel();
        let mut subscriptions: Vec<_> = self.current.take().into_iter().chain(self.later.drain(..)).collect();
        self.subscriptions.close();
        while let Ok(subscription) = self.subscriptions.try_recv() {
            subscriptions.extend(subscription);
        }
        for subscription in subscriptions {
            self.manager.core.spawn(subscription.give_back());
        }
    }
}

impl Place {
    fn of(opening: &Arc<Opening>, queue: &str) -> Self {
        let prefetch = match *opening.prefetch.lock().unwrap_or_else(PoisonError::into_inner) {
            None | Some(0) => usize::MAX,
            Some(prefetch) => prefetch.into(),
        };
        Self { queue: queue.to_owned(), prefetch, opening: Arc::downgrade(opening) }
    }
}

impl Subscription {
    /// Cancels the consumer and returns what was prefetched. Deliveries in the user's hands keep the channel open.
    async fn give_back(mut self) {
        if self.opening.is_lost() {
            return;
        }
        let cancel = BasicCancelArguments::new(&self.consumer_tag);
        let doing = || "cannot cancel a consumer".to_owned();
        if self.opening.call(doing, |raw| async move { raw.basic_cancel(cancel).await }).await.is_err() {
            return;
        }
        // The receiver ends when the consumer is gone.
        while let Some(message) = self.messages.recv().await {
            if let Some(delivery) =
                Delivery::from_consumer(message, &self.opening, self.auto_ack).filter(|_| !self.auto_ack)
            {
                let _ = delivery.nack(true).await;
            }
        }
    }
}

/// Keeps one consumer consuming.
struct Task {
    name: String,
    core: Arc<Core>,
    stop: CancellationToken,
    subscribe: Subscribe,
    sender: mpsc::UnboundedSender<Result<Subscription>>,
    place: watch::Sender<Option<Place>>,
}

impl Task {
    async fn keep_consuming(self, first: oneshot::Sender<Result<()>>) {
        let mut first = Some(first);
        let mut suspicion = Suspicion::new();
        let mut reopen = Reopen::new(self.core.clone(), self.stop.clone(), &self.name, false);
        let mut left = None;
        let mut first_run = FirstRun::default();
        while let Some(opening) = reopen.next().await {
            if let Some((health, queues)) = left.take()
                && Arc::ptr_eq(&health, &opening.health)
            {
                delete(&opening, queues).await;
            }
            let since = Instant::now();
            let (error, queue) = match reopen.unless_closing(self.subscribe_on(&opening, &mut suspicion)).await {
                Ok(subscription) => {
                    let queue = subscription.queue.clone();
                    self.place.send_replace(Some(Place::of(&opening, &queue)));
                    if self.sender.send(Ok(subscription)).is_err() {
                        return opening.close().await;
                    }
                    if let Some(caller) = first.take() {
                        let _ = caller.send(Ok(()));
                    }
                    reopen.ready();
                    tokio::select! {
                        error = opening.lost() => (error, queue),
                        () = self.stop.cancelled() => {
                            // A dropped stream gives its messages back itself; deliveries may still be settled then.
                            if self.core.closing.is_cancelled() {
                                opening.close().await;
                            }
                            return;
                        }
                    }
                }
                Err(error) => {
                    opening.close().await;
                    if first_run.has_failed(&error)
                        && let Some(caller) = first.take()
                    {
                        let _ = caller.send(Err(error));
                        return;
                    }
                    (error, self.name.clone())
                }
            };
            self.place.send_replace(None);
            if since.elapsed() > SETTLED {
                reopen.recovered();
            }
            if let Some(error) = suspicion.grows(&opening, &error) {
                match first.take() {
                    Some(caller) => drop(caller.send(Err(error))),
                    None => drop(self.sender.send(Err(error))),
                }
                return;
            }
            let queues = std::mem::take(&mut *opening.own_queues.lock().unwrap_or_else(PoisonError::into_inner));
            left = Some((opening.health.clone(), queues));
            drop(opening);
            match error {
                Error::Cancelled { .. } => reopen.failed(Error::Cancelled { queue }).await,
                // The connection's return comes with a pause of its own.
                error if error.is_loss() => suspicion.pause().await,
                error => reopen.failed(error).await,
            }
        }
    }

    async fn subscribe_on(&self, opening: &Arc<Opening>, suspicion: &mut Suspicion) -> Result<Subscription> {
        let arguments = run((self.subscribe)(Setup::new(opening))).await?;
        check_name("queue name", &arguments.queue)?;
        check_name("consumer tag", &arguments.consumer_tag)?;
        if arguments.no_wait {
            return Err(Error::Invalid("no_wait would hide the broker's answer; leave it off".into()));
        }
        let auto_ack = arguments.no_ack;
        if !auto_ack && opening.prefetch.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            basic_qos(opening.clone(), BasicQosArguments::new(0, USUAL_PREFETCH, false)).await?;
        }
        let queue = match &*arguments.queue {
            "" => opening.last_queue.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            name => name.to_owned(),
        };
        suspicion.watch(opening, &queue);
        let doing = || format!("cannot consume from queue `{queue}`");
        let consume = opening.call(doing, |raw| async move {
            raw.basic_consume_rx(arguments).await.map(|(tag, messages)| (tag, Messages(messages)))
        });
        let (consumer_tag, messages) = consume.await?;
        Ok(Subscription { opening: opening.clone(), messages, consumer_tag, queue, auto_ack })
    }
}

/// The last opening's queues would stay, bound and filling up, until the connection ends: the setup makes new ones.
async fn delete(opening: &Arc<Opening>, queues: Vec<String>) {
    for queue in queues {
        // Deleting what is gone already is no error; any other trouble meets the setup, too.
        let _ = queue_delete(opening.clone(), QueueDeleteArguments::new(&queue)).await;
    }
}
