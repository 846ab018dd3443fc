//! Makes the broker close an AMQP channel.

use std::sync::{Arc, Mutex, PoisonError};

use amqprs::channel::BasicPublishArguments;
use anyhow::{Context, Result, bail};
use common::{Channel, Error, SetupChannel, existing_queue};

/// Keeps a user's [`SetupChannel`], to make the broker close its channel later.
#[derive(Clone, Default)]
pub struct KeptSetup(Arc<Mutex<Option<SetupChannel>>>);

impl KeptSetup {
    /// Keeps the latest one.
    pub fn keep(&self, setup: &SetupChannel) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(setup.clone());
    }

    /// Drops the kept one. When everything is closed, it must not be alive.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Returns the latest one.
    ///
    /// # Errors
    /// When no setup has run yet.
    pub fn setup(&self) -> Result<SetupChannel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().context("no setup has run")
    }

    /// Makes the broker close the channel, by asking for a queue that does not exist.
    ///
    /// # Errors
    /// When the broker does not close it.
    pub async fn close_channel(&self) -> Result<()> {
        let missing = existing_queue("missing");
        match self.setup()?.queue_declare(missing).await {
            Err(Error::Closed { code: 404, .. }) => Ok(()),
            other => bail!("asked for a missing queue: {other:?}"),
        }
    }
}

/// Makes the broker close the channel, by publishing to an exchange that does not exist.
///
/// # Errors
/// When the broker does not close it.
pub async fn close_by_publishing(channel: &Channel) -> Result<()> {
    let missing = BasicPublishArguments::new("missing", "");
    match channel.publish(missing, amqprs::BasicProperties::default(), "x").await {
        // A fault may cut the connection before the answer comes.
        Err(Error::Closed { code: 404, .. } | Error::Unconfirmed { .. }) => Ok(()),
        other => bail!("published to a missing exchange: {other:?}"),
    }
}
