//! A named channel: opened, prepared and opened again for as long as it is wanted.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use amqprs::channel::{BasicConsumeArguments, BasicGetArguments};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Delivery, Error, Result, Setup,
    consumer::{self, Consumer},
    get::get,
    manager::ManagerHandle,
    opening::Opening,
    publish::MOST_BYTES_IN_FLIGHT,
    reopen::Reopen,
    setup::{FirstRun, Function, check_outside},
    supervisor::Core,
    topology::{check_name, topology_calls},
    unconfirmed::watch_confirms,
};

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
    /// No other channel of this program has it.
    number: u64,
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
    /// RabbitMQ does not allow this channel: it was never open.
    Refused(Error),
}

/// A step of a channel's setup, to be run for the first time.
struct NewStep {
    step: Function<()>,
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
    /// It runs in a task on the Tokio runtime that `setup` is called on, and each run has the operation timeout for its
    /// deadline. A step is kept until the channel is closed, so call this once for each thing that the channel needs, and
    /// not once for each message: what is needed once only is declared on the channel itself. The step declares with the
    /// [`Setup`] it is given; it cannot use the channel that it sets up, which waits for it.
    ///
    /// # Errors
    /// The step's own error, or that it panicked or did not end in time; it is then not kept, and neither is it when this
    /// call is dropped. Later failures are logged and retried. [`Invalid`](Error::Invalid) outside a Tokio runtime.
    pub async fn setup<F, Fut>(&self, step: F) -> Result<()>
    where
        F: Fn(Setup) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        let step = Function::new(step, Some(self.core.number))?;
        self.opening().await?;
        let (answer, answered) = oneshot::channel();
        let _ = self.core.steps.send(NewStep { step, first_run: FirstRun::default(), answer });
        // Each run has its own deadline; this one is for the time between them.
        match timeout(self.core.core.options.operation_timeout * 2, answered).await {
            Ok(answer) => answer.unwrap_or(Err(Error::Shutdown("channel"))),
            Err(_) => Err(self.core.timed_out("cannot run a setup")),
        }
    }

    /// Starts consuming, on an AMQP channel of its own. `subscribe` declares what it needs and says what to consume;
    /// it runs now, and again each time the consumer has to be opened anew.
    ///
    /// Without a `basic_qos` of its own, a consumer with manual acknowledgement gets a prefetch of 100.
    ///
    /// `subscribe` runs in a task on the Tokio runtime that `consume` is called on, and each run has the operation timeout for
    /// its deadline. Exclusive queues that RabbitMQ names for it are deleted when the [`Consumer`] is dropped.
    ///
    /// ```no_run
    /// use amqprs::channel::BasicConsumeArguments;
    /// use common::{Result, Setup, quorum_queue};
    ///
    /// # async fn example(channel: common::Channel) -> Result<()> {
    /// let mut messages = channel.consume(subscribe).await?;
    /// while let Some(message) = messages.next().await? {
    ///     println!("{}", message.display());
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
    /// The first run's own error, or that it panicked or did not end in time. Later failures are logged and retried.
    /// [`Invalid`](Error::Invalid) outside a Tokio runtime.
    pub async fn consume<F, Fut>(&self, subscribe: F) -> Result<Consumer>
    where
        F: Fn(Setup) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<BasicConsumeArguments>> + Send + 'static,
    {
        check_outside(self.core.number)?;
        consumer::start(self.manager.clone(), self.name(), Function::new(subscribe, None)?).await
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

impl ChannelCore {
    pub fn start(name: &str, core: &Arc<Core>, confirms: bool) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (steps, new_steps) = mpsc::unbounded_channel();
        let channel = Arc::new(Self {
            name: name.to_owned(),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
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
        matches!(*self.state.borrow(), ChannelState::Closed(_) | ChannelState::Refused(_))
    }

    /// Waits until the channel is closed; tells how many messages were left without a confirm.
    pub async fn closed(&self) -> usize {
        let mut state = self.state.subscribe();
        let closed = state.wait_for(|state| matches!(state, ChannelState::Closed(_) | ChannelState::Refused(_))).await;
        closed.map_or(0, |state| if let ChannelState::Closed(unconfirmed) = *state { unconfirmed } else { 0 })
    }

    /// Waits for a living opening.
    pub async fn opening(&self) -> Result<Arc<Opening>> {
        check_outside(self.number)?;
        if let ChannelState::Open(opening) = &*self.state.borrow()
            && !opening.is_lost()
            && !self.closing.is_cancelled()
        {
            return Ok(opening.clone());
        }
        let mut state = self.state.subscribe();
        loop {
            if let ChannelState::Refused(error) = &*state.borrow_and_update() {
                return Err(error.clone());
            }
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
    let _owner = channel.core.owners.one_more();
    let mut steps: Vec<Function<()>> = Vec::new();
    let mut reopen = Reopen::new(channel.core.clone(), channel.closing.clone(), &channel.name, channel.confirms);
    let mut was_open = false;
    while let Some(opening) = reopen.next().await {
        let opening = match opening {
            Ok(opening) => opening,
            Err(error) if !was_open => {
                channel.state.send_replace(ChannelState::Refused(error));
                channel.closing.cancel();
                return;
            }
            Err(error) => {
                channel.state.send_replace(ChannelState::Opening(Some(error.clone())));
                reopen.failed(error).await;
                continue;
            }
        };
        was_open = true;
        let ready = async {
            for step in &steps {
                step.run(&opening, channel.core.options.operation_timeout).await?;
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
        let _ready = opening.health.ready.one_more();
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
    steps: &mut Vec<Function<()>>,
    new_steps: &mut mpsc::UnboundedReceiver<NewStep>,
) -> Option<Error> {
    tokio::select! {
        () = channel.closing.cancelled() => None,
        never = watch_confirms(&channel.name, &channel.shares, opening) => never,
        reason = run_new_steps(channel, opening, steps, new_steps) => Some(reason),
    }
}

/// Until the opening is lost: the reason.
async fn run_new_steps(
    channel: &ChannelCore,
    opening: &Arc<Opening>,
    steps: &mut Vec<Function<()>>,
    new_steps: &mut mpsc::UnboundedReceiver<NewStep>,
) -> Error {
    loop {
        let NewStep { step, mut first_run, mut answer } = tokio::select! {
            reason = opening.lost() => return reason,
            Some(new) = new_steps.recv() => new,
        };
        let outcome = tokio::select! {
            outcome = step.run(opening, channel.core.options.operation_timeout) => outcome,
            // The caller has gone, and with it the wish.
            () = answer.closed() => continue,
        };
        match outcome {
            Err(error) if !first_run.has_failed(&error) => {
                let _ = channel.steps.send(NewStep { step, first_run, answer });
                return error;
            }
            outcome => {
                let succeeded = outcome.is_ok();
                if answer.send(outcome).is_ok() && succeeded {
                    steps.push(step);
                }
            }
        }
    }
}
