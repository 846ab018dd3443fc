//! What a long-lived channel or consumer needs, as a function that can run again.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;

use crate::{Error, Result, opening::Opening, topology::topology_calls};

/// When RabbitMQ closes the connection over something that was asked for on it, it does not say by whom. So often during
/// one setup's first run, it was the setup.
const MOST_REFUSALS: u32 = 3;

/// A setup's first run, which fails to its caller; later ones are repeated for ever.
#[derive(Default)]
pub(crate) struct FirstRun {
    refusals: u32,
}

impl FirstRun {
    /// Whether it has failed with this error. Not by a loss of the connection: then it gets another opening.
    pub fn has_failed(&mut self, error: &Error) -> bool {
        self.refusals += u32::from(error.is_refusal());
        !error.is_loss() || self.refusals >= MOST_REFUSALS
    }
}

/// One opening of a channel, given to a setup or `subscribe` function to declare on.
///
/// It takes amqprs's own argument types. After the opening has ended its calls fail; the function then runs again,
/// with another one.
#[derive(Clone)]
pub struct Setup {
    opening: Arc<Opening>,
}

topology_calls!(Setup);

impl Setup {
    pub(crate) fn new(opening: &Arc<Opening>) -> Self {
        Self { opening: opening.clone() }
    }

    /// Switches publisher confirms on, for what is published on this very opening.
    pub(crate) async fn confirm_select(&self) -> Result<()> {
        self.opening.confirm_select().await
    }

    async fn on_opening<T, Fut>(&self, call: impl Fn(Arc<Opening>) -> Fut) -> Result<T>
    where
        Fut: Future<Output = Result<T>>,
    {
        call(self.opening.clone()).await
    }
}

/// Runs a function of the user's: its panic becomes an error, after its own message on stderr.
pub(crate) async fn run<T>(function: impl Future<Output = Result<T>>) -> Result<T> {
    let outcome = AssertUnwindSafe(function).catch_unwind().await;
    outcome.unwrap_or_else(|_| Err(Error::other("a setup function panicked")))
}
