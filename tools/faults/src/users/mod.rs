//! The users of `common` that are tested with faults.

mod closing;
mod consumer;
mod exclusive;
mod publisher;
mod two_channels;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use async_trait::async_trait;
use clap::ValueEnum;
use common::ConnectionManager;

use crate::{access::Access, fault::Fault, losses::Losses};

/// One kind of user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Publishes numbered messages all the time, several in flight, and records the confirms
    Publisher,
    /// Consumes from a durable queue, with a prefetch of 10 and manual acknowledgement
    Consumer,
    /// Consumes from a server-named exclusive queue with two bindings
    Exclusive,
    /// Publishes and consumes while another consumer of the same connection cannot be set up again
    TwoChannels,
    /// Closes everything as soon as the fault happens
    Closing,
}

/// The name as on the command line.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

impl Kind {
    /// Starts such a user.
    ///
    /// # Errors
    /// When it does not work even without a fault.
    pub async fn start<'a>(self, access: Arc<Access<'a>>) -> Result<Box<dyn User + 'a>> {
        Ok(match self {
            Self::Publisher => Box::new(publisher::Publisher::start(access).await?),
            Self::Consumer => Box::new(consumer::Consumer::start(access).await?),
            Self::Exclusive => Box::new(exclusive::Exclusive::start(access).await?),
            Self::TwoChannels => Box::new(two_channels::TwoChannels::start(access).await?),
            Self::Closing => Box::new(closing::Closing::new(access)),
        })
    }
}

/// A user that works before a fault and must work after it. In each round the methods are called in this order:
/// `works`, then the fault (which the user itself makes for some faults), `notices`, the end of the fault, and `is_back`.
#[async_trait]
pub trait User: Send {
    /// Waits until everything works.
    async fn works(&mut self) -> Result<()>;
    /// Makes the broker close its AMQP channel.
    async fn lose_channel(&mut self) -> Result<()>;
    /// Deletes its queue.
    async fn lose_queue(&mut self) -> Result<()>;
    /// Waits until the user notices the fault. Returns the time.
    async fn notices(&mut self, fault: Fault) -> Result<Instant>;
    /// Waits until everything works again after a fault that ended at `over`, and checks what was promised. Returns how
    /// long it took.
    async fn is_back(&mut self, fault: Fault, over: Instant) -> Result<Duration>;
    /// A word or two for what `is_back` measures.
    fn measures(&self) -> &'static str {
        "back after"
    }
    /// Ends the user cleanly.
    async fn finish(&mut self) -> Result<()>;
}

/// A user's connection manager, through its proxy.
struct UserConnection {
    connections: ConnectionManager,
    losses: Losses,
    before: u32,
}

impl UserConnection {
    fn new(access: &Access<'_>) -> Result<Self> {
        let connections = ConnectionManager::new(access.options()?);
        let losses = Losses::of(&connections);
        Ok(Self { connections, losses, before: 0 })
    }

    /// Forgets the losses so far.
    fn mark(&mut self) {
        self.before = self.losses.count();
    }

    /// The time of the fault: when the connection was lost, if the fault ends connections.
    async fn hit(&self, fault: Fault) -> Result<Instant> {
        if fault.ends_the_connection() { self.losses.after(self.before).await } else { Ok(Instant::now()) }
    }

    /// Closes the connection cleanly. RabbitMQ must not close it first.
    async fn close(&self) -> Result<()> {
        let before = self.losses.count();
        self.connections.close_all().await?;
        ensure!(self.losses.count() == before, "the connection was lost while it was being closed");
        Ok(())
    }

    /// Checks that faults which do not end the connection have not ended it.
    fn check(&self, fault: Fault) -> Result<()> {
        let losses = self.losses.count() - self.before;
        let expected = u32::from(fault.ends_the_connection());
        ensure!(
            losses == expected || (fault.is_of_the_broker() && losses > 1),
            "the connection was lost {losses} times"
        );
        Ok(())
    }
}

async fn delete_queue(access: &Access<'_>, name: &str) -> Result<()> {
    access.host.delete(&format!("/api/queues/{{vhost}}/{name}")).await
}
