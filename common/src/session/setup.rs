//! A setup: a function that declares what a long-lived channel or consumer needs, and can run again.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    runtime::Handle,
    task::JoinError,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Error, Result,
    session::{Session, setup_channel::SetupChannel},
};

/// When the session ends, the function may still return a better error than the end itself, one that says what it was
/// doing.
const REASON_GRACE: Duration = Duration::from_secs(1);

/// When RabbitMQ closes the connection over a request, it does not say which part of the program sent it. After this many
/// refusals in a first run, it was this setup.
const MOST_REFUSALS: u32 = 3;

/// The first run of a setup. If it fails, the caller gets the error. Later runs are repeated without end.
#[derive(Default)]
pub(crate) struct FirstRun {
    refusals: u32,
}

impl FirstRun {
    /// Whether it has failed with this error. A loss of the connection does not count: then it gets another session.
    pub fn has_failed(&mut self, error: &Error) -> bool {
        self.refusals += u32::from(error.is_connection_exception());
        !error.is_loss() || self.refusals >= MOST_REFUSALS
    }
}

/// A user's function, which runs on each session.
///
/// It runs in a task on the program's own runtime. On the connection's only thread, a function that blocks would stop
/// the heartbeats, and a task that it spawns would end with the connection.
#[derive(Clone)]
pub(crate) struct Function<T> {
    function: Arc<dyn Fn(SetupChannel) -> BoxFuture<'static, Result<T>> + Send + Sync>,
    runtime: Handle,
    /// The number of the channel that waits for this function. `None` for a consumer's function, for which no channel
    /// waits.
    channel: Option<u64>,
}

tokio::task_local! {
    /// The channel whose setup the task runs.
    static CHANNEL: Option<u64>;
}

impl<T: Send + 'static> Function<T> {
    /// # Errors
    /// [`Error::Invalid`] outside a runtime.
    pub fn new<F, Fut>(function: F, channel: Option<u64>) -> Result<Self>
    where
        F: Fn(SetupChannel) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T>> + Send + 'static,
    {
        let runtime = Handle::try_current()
            .map_err(|_| Error::Invalid("a setup needs a Tokio runtime to run on: call this inside one".into()))?;
        Ok(Self { function: Arc::new(move |setup| Box::pin(function(setup))), runtime, channel })
    }

    /// Runs it once, within the deadline. A panic is an error, after its own message on stderr. If this is dropped
    /// half-way, the task is aborted.
    pub async fn run(&self, session: &Arc<Session>, deadline: Duration) -> Result<T> {
        let (function, setup) = (self.function.clone(), SetupChannel::new(session.clone()));
        // The function is called in the task, too: it may panic before its `async` block.
        let run = CHANNEL.scope(self.channel, async move { function(setup).await });
        let mut task = AbortOnDropHandle::new(self.runtime.spawn(run));
        tokio::select! {
            biased;
            outcome = &mut task => ended(outcome),
            reason = session.lost() => match timeout(REASON_GRACE, task).await {
                Ok(outcome) => ended(outcome),
                Err(_) => Err(reason),
            },
            () = sleep(deadline) => Err(Error::Timeout {
                doing: "a setup function has not ended".into(),
                after: deadline,
                reason: "does it block, or wait for the channel that it sets up?".into(),
            }),
        }
    }
}

fn ended<T>(outcome: Result<Result<T>, JoinError>) -> Result<T> {
    outcome.unwrap_or_else(|error| {
        Err(Error::other(match error.is_panic() {
            true => "a setup function panicked",
            false => "a setup function cannot run: the Tokio runtime on which it was given to the channel has ended",
        }))
    })
}

/// A channel waits for its setup, so its setup must not wait for the channel.
pub(crate) fn check_outside(channel: u64) -> Result<()> {
    match CHANNEL.try_with(|inside| *inside == Some(channel)) {
        Ok(true) => Err(Error::Invalid(
            "a setup cannot use the channel that it sets up: declare with the `SetupChannel` it is given, and publish or consume \
             after `setup` has returned"
                .into(),
        )),
        _ => Ok(()),
    }
}
