//! A named channel: opened, prepared and opened again for as long as it is wanted.

use std::{future::Future, sync::Arc, time::Duration};

use amqprs::channel::{BasicConsumeArguments, BasicGetArguments, Channel as RawChannel};
use futures_util::future::BoxFuture;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, interval, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Delivery, Error, Result, Setup,
    consumer::{self, Consumer},
    manager::ManagerHandle,
    opening::Opening,
    publish::{LEAST_WEIGHT, MOST_BYTES_IN_FLIGHT},
    reopen::Reopen,
    setup::{FirstRun, run},
    supervisor::Core,
    topology::{check_name, topology_calls},
    wait::SHORT_OF_RESOURCES,
};

/// So long without a confirm is worth a warning: it is seen within 5 s.
pub(crate) const SILENCE: Duration = Duration::from_secs(4);

const NEVER_CONFIRMED: &str =
    "RabbitMQ has confirmed nothing of all that may be unconfirmed here; opening the channel anew";

/// When a channel has ended, it is certain after this time whether there was an answer to a call.
const ANSWERED_OR_NOT: Duration = Duration::from_secs(5);

/// A channel: declares, publishes, consumes and gets. Cheap to clone; all clones are the same channel.
///
/// Made by [`ConnectionManager::channel`](crate::ConnectionManager::channel). When the connection is lost, or the
/// broker closes the channel, it is opened again: in confirm mode, and after its [`setup`](Self::setup) steps ran.
///
/// Every call may be dropped at any point, for instance by `tokio::time::timeout`, and has the options' operation
/// timeout for its deadline.
#[derive(Clone)]
pub struct Channel {
    pub(crate) core: Arc<ChannelCore>,
    manager: Arc<ManagerHandle>,
}

pub(crate) struct ChannelCore {
    name: String,
    pub confirms: bool,
    pub core: Arc<Core>,
    state: watch::Sender<ChannelState>,
    steps: mpsc::UnboundedSender<NewStep>,
    closing: CancellationToken,
    /// Shares of what may be in flight, in bytes.
    pub shares: Arc<Semaphore>,
}

#[derive(Clone)]
enum ChannelState {
    Open(Arc<Opening>),
    /// Being opened, with the last error if there was one.
    Opening(Option<Error>),
    /// Closed for good, with the number of messages that were left without a confirm.
    Closed(usize),
}

/// One step of a channel's setup: run at each opening, in order.
type Step = Arc<dyn Fn(Setup) -> BoxFuture<'static, Result<()>> + Send + Sync>;

struct NewStep {
    step: Step,
    first_run: FirstRun,
    answer: oneshot::Sender<Result<()>>,
}

topology_calls!(Channel);

impl Channel {
    pub(crate) fn new(core: Arc<ChannelCore>, manager: Arc<ManagerHandle>) -> Self {
        Self { core, manager }
    }

    /// The name it was asked for by.
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Whether it was closed, by [`close`](Self::close) or with its connection manager.
    pub fn is_closed(&self) -> bool {
        self.core.is_closed()
    }

    /// Adds a step to what this channel declares: it runs now, and again, after the earlier steps, each time the
    /// channel is opened anew.
    ///
    /// ```no_run
    /// # async fn example(channel: common::Channel) -> common::Result<()> {
    /// use amqprs::channel::ExchangeDeclareArguments;
    ///
    /// channel.setup(|channel| async move {
    ///     channel.exchange_declare(ExchangeDeclareArguments::new("logs", "fanout")).await
    /// })
    /// .await
    /// # }
    /// ```
    ///
    /// # Errors
    /// The step's own error; it is then not kept. Later failures are logged and retried.
    pub async fn setup<F, Fut>(&self, step: F) -> Result<()>
    where
        F: Fn(Setup) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let step: Step = Arc::new(move |setup| Box::pin(step(setup)));
        let _ = self.core.steps.send(NewStep { step, first_run: FirstRun::default(), answer });
        match timeout(self.core.core.options.operation_timeout, answered).await {
            Ok(answer) => answer.unwrap_or(Err(Error::Shutdown("channel"))),
            Err(_) => Err(self.core.timed_out("cannot run a setup")),
        }
    }

    /// Starts consuming, on an AMQP channel of its own. `subscribe` declares what it needs and says what to consume;
    /// it runs now, and again each time the consumer has to be opened anew.
    ///
    /// Without a `basic_qos` of its own, a consumer with manual acknowledgement gets a prefetch of 100.
    ///
    /// ```no_run
    /// use amqprs::channel::BasicConsumeArguments;
    /// use common::{Result, Setup, quorum_queue};
    ///
    /// # async fn example(channel: common::Channel) -> Result<()> {
    /// let mut messages = channel.consume(subscribe).await?;
    /// while let Some(message) = messages.next().await? {
    ///     println!("{}", message.text());
    ///     message.ack().await?;
    /// }
    /// # Ok(())
    /// # }
    ///
    /// async fn subscribe(channel: Setup) -> Result<BasicConsumeArguments> {
    ///     channel.queue_declare(quorum_queue("hello")).await?;
    ///     Ok(BasicConsumeArguments::new("hello", ""))
    /// }
    /// ```
    ///
    /// # Errors
    /// The first run's own error. Later failures are logged and retried.
    pub async fn consume<F, Fut>(&self, subscribe: F) -> Result<Consumer>
    where
        F: Fn(Setup) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<BasicConsumeArguments>> + Send + 'static,
    {
        let subscribe = Box::new(move |setup| -> BoxFuture<'static, _> { Box::pin(subscribe(setup)) });
        consumer::start(self.manager.clone(), self.name(), subscribe).await
    }

    /// [`consume`](Self::consume) for a `subscribe` that takes a value, cloned for each run.
    ///
    /// # Errors
    /// As [`consume`](Self::consume).
    pub async fn consume_with<T, F, Fut>(&self, value: T, subscribe: F) -> Result<Consumer>
    where
        T: Clone + Send + Sync + 'static,
        F: Fn(Setup, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<BasicConsumeArguments>> + Send + 'static,
    {
        self.consume(move |setup| subscribe(setup, value.clone())).await
    }

    /// Fetches one message, or `None` when the queue is empty (`basic.get`). For many messages, consume.
    ///
    /// Dropped half-way, it gives a message that comes too late back to its queue. With `no_ack` that message is lost,
    /// because RabbitMQ has forgotten it.
    ///
    /// # Errors
    /// [`Closed`](Error::Closed) with 404 when there is no such queue. [`Lost`](Error::Lost) when the connection broke: with
    /// `no_ack` a message may be lost, too.
    pub async fn get(&self, arguments: BasicGetArguments) -> Result<Option<Delivery>> {
        check_name("queue name", &arguments.queue)?;
        self.on_opening(|opening| get(self.core.core.clone(), opening, arguments.clone())).await
    }

    /// Closes the channel after its outstanding confirms, bounded by the operation timeout. Its consumers, which have
    /// channels of their own, go on. The manager opens a new one when it is asked for this name again.
    ///
    /// # Errors
    /// [`Unconfirmed`](Error::Unconfirmed) when messages were still without a confirm at the end.
    pub async fn close(&self) -> Result<()> {
        self.core.closing.cancel();
        match self.core.closed().await {
            0 => Ok(()),
            count => Err(Error::Unconfirmed { reason: format!("the channel was closed with {count} unconfirmed") }),
        }
    }

    /// An AMQP channel beside this one, without confirms, for one use.
    pub(crate) async fn extra_opening(&self) -> Result<Arc<Opening>> {
        let core = &self.core.core;
        let open = async {
            let link = core.living_link().await.ok_or(Error::Shutdown("connection manager"))?;
            Opening::open(&link, false, core.options.operation_timeout).await
        };
        timeout_at(core.deadline(), open).await.unwrap_or_else(|_| Err(core.timed_out("cannot open a channel")))
    }

    /// Runs a call on the current opening; on the next one, if that ended through no fault of the call and before it was
    /// carried out.
    async fn on_opening<T, Fut>(&self, call: impl Fn(Arc<Opening>) -> Fut) -> Result<T>
    where
        Fut: Future<Output = Result<T>>,
    {
        let repeat = async {
            loop {
                match call(self.core.opening().await?).await {
                    Err(Error::Stale) => {}
                    outcome => return outcome,
                }
            }
        };
        // Each call has its own deadline; this one is for the time between them.
        let patience = self.core.core.options.operation_timeout * 2;
        timeout(patience, repeat).await.unwrap_or_else(|_| Err(self.core.timed_out("cannot use the channel")))
    }

    /// The current opening, once there is one.
    pub(crate) async fn opening(&self) -> Result<Arc<Opening>> {
        timeout_at(self.core.core.deadline(), self.core.opening())
            .await
            .unwrap_or_else(|_| Err(self.core.timed_out("cannot use the channel")))
    }
}

async fn get(core: Arc<Core>, opening: Arc<Opening>, arguments: BasicGetArguments) -> Result<Option<Delivery>> {
    let (queue, no_ack) = (arguments.queue.clone(), arguments.no_ack);
    let doing = || format!("cannot get a message from queue `{queue}`");
    let (sender, answer) = oneshot::channel();
    let fetched = opening.clone();
    let call = move |raw: RawChannel| async move {
        let message = raw.basic_get(arguments).await?;
        let delivery = message.map(|message| Delivery::from_get(message, fetched, no_ack));
        // When the caller has gone, the message goes back to its queue.
        drop(sender.send(Fetched { delivery, core }));
        Ok(())
    };
    let failure = match opening.call(doing, call).await {
        Err(error) if no_ack => Some(error),
        Err(error) => return Err(error),
        Ok(()) => None,
    };
    // Taken without acknowledgement, a message comes only once, and it may have come just before the channel ended.
    let patience = match failure {
        None | Some(Error::Stale | Error::Lost { .. }) => ANSWERED_OR_NOT,
        Some(_) => Duration::ZERO,
    };
    if let Ok(Ok(mut fetched)) = timeout(patience, answer).await {
        return Ok(fetched.delivery.take());
    }
    let lost = |reason| format!("{reason}; if a message was on its way without acknowledgement, it is lost");
    Err(match failure {
        Some(Error::Lost { code, reason }) => Error::Lost { code, reason: lost(reason) },
        Some(Error::Timeout { doing, after, reason }) => Error::Timeout { doing, after, reason: lost(reason) },
        failure => failure.unwrap_or(Error::Stale),
    })
}

/// What `basic.get` brought, for a caller who may have gone meanwhile.
struct Fetched {
    delivery: Option<Delivery>,
    core: Arc<Core>,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if let Some(delivery) = self.delivery.take() {
            self.core.spawn(async { drop(delivery.give_back().await) });
        }
    }
}

impl ChannelCore {
    pub fn start(name: &str, core: &Arc<Core>, confirms: bool) -> Arc<Self> {
        let (steps, new_steps) = mpsc::unbounded_channel();
        let channel = Arc::new(Self {
            name: name.to_owned(),
            confirms,
            core: core.clone(),
            state: watch::Sender::new(ChannelState::Opening(None)),
            steps,
            closing: core.closing.child_token(),
            shares: Arc::new(Semaphore::new(MOST_BYTES_IN_FLIGHT)),
        });
        core.spawn(keep_open(channel.clone(), new_steps));
        channel
    }

    pub fn is_closed(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// Whether it is closed, and nothing of it is left.
    pub fn has_ended(&self) -> bool {
        matches!(*self.state.borrow(), ChannelState::Closed(_))
    }

    /// Waits until the channel is closed; tells how many messages were left without a confirm.
    pub async fn closed(&self) -> usize {
        let mut state = self.state.subscribe();
        let closed = state.wait_for(|state| matches!(state, ChannelState::Closed(_))).await;
        closed.map_or(0, |state| if let ChannelState::Closed(unconfirmed) = *state { unconfirmed } else { 0 })
    }

    /// Waits for a living opening.
    pub async fn opening(&self) -> Result<Arc<Opening>> {
        if let ChannelState::Open(opening) = &*self.state.borrow()
            && !opening.is_lost()
            && !self.closing.is_cancelled()
        {
            return Ok(opening.clone());
        }
        let mut state = self.state.subscribe();
        loop {
            if self.closing.is_cancelled() {
                return Err(Error::Shutdown("channel"));
            }
            match &*state.borrow_and_update() {
                ChannelState::Open(opening) if !opening.is_lost() => return Ok(opening.clone()),
                ChannelState::Closed(_) => return Err(Error::Shutdown("channel")),
                _ => {}
            }
            if state.changed().await.is_err() {
                return Err(Error::Shutdown("channel"));
            }
        }
    }

    pub fn timed_out(&self, doing: &str) -> Error {
        match &*self.state.borrow() {
            ChannelState::Opening(Some(error)) => Error::Timeout {
                doing: doing.into(),
                after: self.core.options.operation_timeout,
                reason: error.to_string(),
            },
            _ => self.core.timed_out(doing),
        }
    }
}

/// The channel's task: opens it, runs its setup, watches over it, and closes it.
async fn keep_open(channel: Arc<ChannelCore>, mut new_steps: mpsc::UnboundedReceiver<NewStep>) {
    let mut steps: Vec<Step> = Vec::new();
    let mut reopen = Reopen::new(channel.core.clone(), channel.closing.clone(), &channel.name, channel.confirms);
    while let Some(opening) = reopen.next().await {
        let ready = async {
            for step in &steps {
                run(step(Setup::new(&opening))).await?;
            }
            Ok(())
        };
        if let Err(error) = reopen.unless_closing(ready).await {
            channel.state.send_replace(ChannelState::Opening(Some(error.clone())));
            opening.close().await;
            reopen.failed(error).await;
            continue;
        }
        reopen.ready();
        reopen.recovered();
        let since = Instant::now();
        channel.state.send_replace(ChannelState::Open(opening.clone()));
        if let Some(reason) = serve(&channel, &opening, &mut steps, &mut new_steps).await {
            channel.state.send_replace(ChannelState::Opening(Some(reason.clone())));
            let refusal = opening.ledger.refusal();
            drop(opening);
            if let Some(refusal) = refusal {
                reopen.refused(&reason, refusal.was_told, since.elapsed()).await;
            }
            continue;
        }
        // Closing: what was published is confirmed first.
        let _ = timeout(channel.core.options.operation_timeout, opening.ledger.drained()).await;
        let unconfirmed = opening.ledger.waiting();
        opening.close().await;
        channel.state.send_replace(ChannelState::Closed(unconfirmed));
        return;
    }
    channel.state.send_replace(ChannelState::Closed(0));
}

/// Until the opening is lost: the reason. `None` when the channel has to close.
async fn serve(
    channel: &ChannelCore,
    opening: &Arc<Opening>,
    steps: &mut Vec<Step>,
    new_steps: &mut mpsc::UnboundedReceiver<NewStep>,
) -> Option<Error> {
    let timeout = channel.core.options.operation_timeout;
    let mut sweep = interval(Duration::from_secs(1).min(timeout / 4).max(Duration::from_millis(10)));
    let mut warned = false;
    loop {
        tokio::select! {
            () = channel.closing.cancelled() => return None,
            reason = opening.lost() => return Some(reason),
            _ = sweep.tick() => {
                opening.ledger.expire(timeout);
                let silent = opening.ledger.is_silent_for(SILENCE);
                if silent && !warned {
                    tracing::warn!(
                        "channel `{}`: no confirm for {} s; {SHORT_OF_RESOURCES}; consumers on the same connection wait, too",
                        channel.name,
                        SILENCE.as_secs(),
                    );
                }
                warned = silent;
                // The broker confirms nothing, such as for a queue without its majority. All that may be in flight is given
                // up, and would keep everything else from being published here.
                if opening.ledger.is_given_up(timeout) && channel.shares.available_permits() < LEAST_WEIGHT {
                    tracing::warn!("channel `{}`: {NEVER_CONFIRMED}", channel.name);
                    opening.ledger.end(Error::lost(NEVER_CONFIRMED));
                }
            }
            Some(NewStep { step, mut first_run, answer }) = new_steps.recv() => {
                if answer.is_closed() {
                    continue;
                }
                let outcome = tokio::select! {
                    outcome = run(step(Setup::new(opening))) => outcome,
                    () = channel.closing.cancelled() => return None,
                };
                match outcome {
                    Err(error) if !first_run.has_failed(&error) => {
                        let _ = channel.steps.send(NewStep { step, first_run, answer });
                        return Some(error);
                    }
                    Ok(()) => steps.push(step),
                    Err(_) => {}
                }
                let _ = answer.send(outcome);
            }
        }
    }
}
