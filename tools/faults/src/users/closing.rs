//! A user that closes everything during a fault.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use amqprs::channel::{BasicConsumeArguments, BasicPublishArguments, QueueDeclareArguments};
use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use common::{Channel, ConnectionManager, Error, SetupChannel};
use tokio::time::sleep;

use super::{User, delete_queue};
use crate::{
    access::Access,
    fault::Fault,
    kept_setup::{KeptSetup, close_by_publishing},
    numbered_publisher::{How, NumberedPublisher},
    reader::Reader,
    wait::{PATIENCE, within},
};

const OPERATION_TIMEOUT: Duration = Duration::from_secs(1);

/// If the broker does not answer, three steps follow each other, each limited by the operation timeout: waiting for
/// confirms, closing the channels, closing the connection.
const CLOSED_WITHIN: Duration = Duration::from_millis(3_500);

/// Longer than the longest pause between two attempts to connect.
const QUIET: Duration = Duration::from_millis(1_500);

/// Publishes and consumes until the fault, and then closes everything. Closing must end in time, and nothing may
/// connect again.
pub(super) struct Closing<'a> {
    access: Arc<Access<'a>>,
    busy: Option<Busy>,
    took: Duration,
    accepted: usize,
}

struct Busy {
    connections: ConnectionManager,
    channel: Channel,
    kept_setup: KeptSetup,
    publisher: NumberedPublisher,
    reader: Reader,
}

impl<'a> Closing<'a> {
    pub fn new(access: Arc<Access<'a>>) -> Self {
        Self { access, busy: None, took: Duration::ZERO, accepted: 0 }
    }

    fn busy(&self) -> Result<&Busy> {
        self.busy.as_ref().context("it has not started")
    }
}

async fn subscribe(channel: SetupChannel, kept_setup: KeptSetup) -> common::Result<BasicConsumeArguments> {
    kept_setup.keep(&channel);
    channel.queue_declare(QueueDeclareArguments::durable_client_named("q")).await?;
    Ok(BasicConsumeArguments::new("q", ""))
}

#[async_trait]
impl User for Closing<'_> {
    /// Each round starts with new connections.
    async fn works(&mut self) -> Result<()> {
        let options = self.access.options()?.operation_timeout(OPERATION_TIMEOUT);
        let connections = ConnectionManager::new(options);
        let (channel, kept_setup) = (connections.channel("closing").await?, KeptSetup::default());
        let reader = Reader::start(channel.consume_with(kept_setup.clone(), subscribe).await?, true);
        let publisher =
            NumberedPublisher::start(channel.clone(), How::Deferred, |_| BasicPublishArguments::new("", "q"));
        reader.flows_from(&publisher).await?;
        self.busy = Some(Busy { connections, channel, kept_setup, publisher, reader });
        Ok(())
    }

    async fn lose_channel(&mut self) -> Result<()> {
        let busy = self.busy()?;
        busy.kept_setup.close_channel().await?;
        close_by_publishing(&busy.channel).await
    }

    async fn lose_queue(&mut self) -> Result<()> {
        delete_queue(&self.access, "q").await
    }

    async fn notices(&mut self, _: Fault) -> Result<Instant> {
        let mut busy = self.busy.take().context("it has not started")?;
        busy.kept_setup.clear();
        let begun = Instant::now();
        let closed = within(PATIENCE, "close_all", busy.connections.close_all()).await?;
        self.took = begun.elapsed();
        self.accepted = self.access.proxy.accepted();
        match closed {
            // Messages were still unconfirmed, and `close_all` reports that.
            Ok(()) | Err(Error::Unconfirmed { .. }) => {}
            Err(error) => bail!("close_all: {error}"),
        }
        ensure!(self.took < CLOSED_WITHIN, "close_all took {:?}", self.took);
        within(PATIENCE, "the publisher's end", busy.publisher.ended()).await??;
        within(PATIENCE, "the stream's end", busy.reader.ended()).await??;
        Ok(Instant::now())
    }

    async fn is_back(&mut self, _: Fault, _: Instant) -> Result<Duration> {
        let gone = async {
            while !self.access.host.connections().await?.is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
            Ok::<_, anyhow::Error>(())
        };
        within(PATIENCE, "the end of the last connection on the broker", gone).await??;
        sleep(QUIET).await;
        let again = self.access.proxy.accepted() - self.accepted;
        ensure!(again == 0, "{again} connections were made after close_all");
        ensure!(self.access.proxy.open() == 0, "{} connections are open after close_all", self.access.proxy.open());
        Ok(self.took)
    }

    fn measures(&self) -> &'static str {
        "closed in"
    }

    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}
