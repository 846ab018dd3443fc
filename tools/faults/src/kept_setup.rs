//! How the broker is made to close an AMQP channel.

use std::sync::{Arc, Mutex, PoisonError};

use amqprs::channel::BasicPublishArguments;
use anyhow::{Context, Result, bail};
use common::{Channel, Error, SetupChannel, existing_queue};

/// A user's [`SetupChannel`], kept for making trouble on its channel.
#[derive(Clone, Default)]
pub struct KeptSetup(Arc<Mutex<Option<SetupChannel>>>);

impl KeptSetup {
    /// Keeps the latest one.
    pub fn keep(&self, setup: &SetupChannel) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(setup.clone());
    }

    /// Nothing of it must be alive when everything is closed.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The latest one.
    ///
    /// # Errors
    /// When there was none.
    pub fn setup(&self) -> Result<SetupChannel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().context("no setup has run")
    }

    /// Asks for something that makes the broker close the channel.
    ///
    /// # Errors
    /// When it does not close it.
    pub async fn close_channel(&self) -> Result<()> {
        let missing = existing_queue("missing");
        match self.setup()?.queue_declare(missing).await {
            Err(Error::Closed { code: 404, .. }) => Ok(()),
            other => bail!("asked for a missing queue: {other:?}"),
        }
    }
}

/// Publishes what makes the broker close the channel.
///
/// # Errors
/// When it does not close it.
pub async fn close_by_publishing(channel: &Channel) -> Result<()> {
    let missing = BasicPublishArguments::new("missing", "");
    match channel.publish(missing, amqprs::BasicProperties::default(), "x").await {
        // The connection may be cut before the answer comes.
        Err(Error::Closed { code: 404, .. } | Error::Unconfirmed { .. }) => Ok(()),
        other => bail!("published to a missing exchange: {other:?}"),
    }
}
