//! The task that keeps a channel open: it opens the channel, runs its setup, and reopens it as long as it is wanted.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Result,
    channel::unconfirmed::{MOST_BYTES_IN_FLIGHT, watch_confirms},
    connection::core::ConnectionCore,
    session::{
        Session,
        reopen::Reopen,
        setup::{FirstRun, Function, check_outside},
    },
};

/// What all clones of a channel share with the task that keeps it open.
pub(crate) struct ChannelCore {
    pub name: String,
    /// The channel's number. No other channel of this program has it.
    pub number: u64,
    pub confirms: bool,
    pub connection: Arc<ConnectionCore>,
    state: watch::Sender<ChannelState>,
    pub steps: mpsc::UnboundedSender<NewStep>,
    pub closing: CancellationToken,
    /// Shares of what may be in flight, in bytes.
    pub shares: Arc<Semaphore>,
}

#[derive(Clone)]
enum ChannelState {
    Open(Arc<Session>),
    /// The channel is being opened. With the last error, if there was one.
    Opening(Option<Error>),
    /// The channel was closed by the program. With the number of messages that were left without a confirm.
    Closed(usize),
    /// RabbitMQ does not allow this channel, and it was never open.
    NotAllowed(Error),
}

/// A step of a channel's setup, for its first run.
pub(crate) struct NewStep {
    pub step: Function<()>,
    pub first_run: FirstRun,
    pub answer: oneshot::Sender<Result<()>>,
}

impl ChannelCore {
    pub fn start(name: &str, connection: &Arc<ConnectionCore>, confirms: bool) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (steps, new_steps) = mpsc::unbounded_channel();
        let channel = Arc::new(Self {
            name: name.to_owned(),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            confirms,
            connection: connection.clone(),
            state: watch::Sender::new(ChannelState::Opening(None)),
            steps,
            closing: connection.closing.child_token(),
            shares: Arc::new(Semaphore::new(MOST_BYTES_IN_FLIGHT)),
        });
        connection.spawn(keep_open(channel.clone(), new_steps));
        channel
    }

    pub fn is_closed(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// Whether the channel is closed and its task has ended.
    pub fn has_ended(&self) -> bool {
        matches!(*self.state.borrow(), ChannelState::Closed(_) | ChannelState::NotAllowed(_))
    }

    /// Waits until the channel is closed. Returns how many messages were left without a confirm.
    pub async fn closed(&self) -> usize {
        let mut state = self.state.subscribe();
        let closed =
            state.wait_for(|state| matches!(state, ChannelState::Closed(_) | ChannelState::NotAllowed(_))).await;
        closed.map_or(0, |state| if let ChannelState::Closed(unconfirmed) = *state { unconfirmed } else { 0 })
    }

    /// Waits for a living session.
    pub async fn session(&self) -> Result<Arc<Session>> {
        check_outside(self.number)?;
        if let ChannelState::Open(session) = &*self.state.borrow()
            && !session.is_lost()
            && !self.closing.is_cancelled()
        {
            return Ok(session.clone());
        }
        let mut state = self.state.subscribe();
        loop {
            if let ChannelState::NotAllowed(error) = &*state.borrow_and_update() {
                return Err(error.clone());
            }
            if self.closing.is_cancelled() {
                return Err(Error::Shutdown("channel"));
            }
            match &*state.borrow_and_update() {
                ChannelState::Open(session) if !session.is_lost() => return Ok(session.clone()),
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
                after: self.connection.options.operation_timeout,
                reason: error.to_string(),
            },
            _ => self.connection.timed_out(doing),
        }
    }
}

/// The channel's task: opens it, runs its setup, watches it, and closes it.
async fn keep_open(channel: Arc<ChannelCore>, mut new_steps: mpsc::UnboundedReceiver<NewStep>) {
    let _owner = channel.connection.owners.one_more();
    let mut steps: Vec<Function<()>> = Vec::new();
    let mut reopen = Reopen::new(channel.connection.clone(), channel.closing.clone(), &channel.name, channel.confirms);
    let mut was_open = false;
    while let Some(session) = reopen.next().await {
        let session = match session {
            Ok(session) => session,
            Err(error) if !was_open => {
                channel.state.send_replace(ChannelState::NotAllowed(error));
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
                step.run(&session, channel.connection.options.operation_timeout).await?;
            }
            Ok(())
        };
        if let Err(error) = reopen.unless_closing(ready).await {
            channel.state.send_replace(ChannelState::Opening(Some(error.clone())));
            session.close().await;
            reopen.failed(error).await;
            continue;
        }
        reopen.ready();
        reopen.recovered();
        let since = Instant::now();
        channel.state.send_replace(ChannelState::Open(session.clone()));
        let _ready = session.connection.ready.one_more();
        if let Some(reason) = serve(&channel, &session, &mut steps, &mut new_steps).await {
            channel.state.send_replace(ChannelState::Opening(Some(reason.clone())));
            let refusal = session.state.pending_confirms.refusal();
            drop(session);
            if let Some(refusal) = refusal {
                reopen.refused(&reason, refusal.was_told, since.elapsed()).await;
            }
            continue;
        }
        // Before closing, wait for the confirms.
        let _ = timeout(channel.connection.options.operation_timeout, session.state.pending_confirms.drained()).await;
        let unconfirmed = session.state.pending_confirms.waiting();
        session.close().await;
        channel.state.send_replace(ChannelState::Closed(unconfirmed));
        return;
    }
    channel.state.send_replace(ChannelState::Closed(0));
}

/// Waits until the session is lost, and returns the reason. `None` when the channel has to close.
async fn serve(
    channel: &ChannelCore,
    session: &Arc<Session>,
    steps: &mut Vec<Function<()>>,
    new_steps: &mut mpsc::UnboundedReceiver<NewStep>,
) -> Option<Error> {
    tokio::select! {
        () = channel.closing.cancelled() => None,
        never = watch_confirms(&channel.name, &channel.shares, session) => never,
        reason = run_new_steps(channel, session, steps, new_steps) => Some(reason),
    }
}

/// Until the session is lost: the reason.
async fn run_new_steps(
    channel: &ChannelCore,
    session: &Arc<Session>,
    steps: &mut Vec<Function<()>>,
    new_steps: &mut mpsc::UnboundedReceiver<NewStep>,
) -> Error {
    loop {
        let NewStep { step, mut first_run, mut answer } = tokio::select! {
            reason = session.lost() => return reason,
            Some(new) = new_steps.recv() => new,
        };
        let outcome = tokio::select! {
            outcome = step.run(session, channel.connection.options.operation_timeout) => outcome,
            // The caller has been dropped, so the step is not kept.
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
