//! Closes everything in the middle of a fault.

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
    fault::Fault,
    pump::{How, Pump},
    reader::Reader,
    seat::Seat,
    trouble::{Stash, close_by_publishing},
    wait::{PATIENCE, within},
};

const OPERATION_TIMEOUT: Duration = Duration::from_secs(1);

/// Three steps follow each other when nobody answers, each bounded by the operation timeout: outstanding confirms,
/// closing the channels, closing the connection.
const CLOSED_WITHIN: Duration = Duration::from_millis(3_500);

/// More than the longest pause between two attempts to connect.
const QUIET: Duration = Duration::from_millis(1_500);

/// Publishes and consumes until the fault, then closes everything: in time, and for good.
pub(super) struct Closing<'a> {
    seat: Arc<Seat<'a>>,
    busy: Option<Busy>,
    took: Duration,
    accepted: usize,
}

struct Busy {
    connections: ConnectionManager,
    channel: Channel,
    stash: Stash,
    pump: Pump,
    reader: Reader,
}

impl<'a> Closing<'a> {
    pub fn new(seat: Arc<Seat<'a>>) -> Self {
        Self { seat, busy: None, took: Duration::ZERO, accepted: 0 }
    }

    fn busy(&self) -> Result<&Busy> {
        self.busy.as_ref().context("it has not started")
    }
}

async fn subscribe(channel: SetupChannel, stash: Stash) -> common::Result<BasicConsumeArguments> {
    stash.keep(&channel);
    channel.queue_declare(QueueDeclareArguments::durable_client_named("q")).await?;
    Ok(BasicConsumeArguments::new("q", ""))
}

#[async_trait]
impl User for Closing<'_> {
    /// Each round starts afresh.
    async fn works(&mut self) -> Result<()> {
        let options = self.seat.options()?.operation_timeout(OPERATION_TIMEOUT);
        let connections = ConnectionManager::new(options);
        let (channel, stash) = (connections.channel("closing").await?, Stash::default());
        let reader = Reader::start(channel.consume_with(stash.clone(), subscribe).await?, true);
        let pump = Pump::start(channel.clone(), How::Enqueue, |_| BasicPublishArguments::new("", "q"));
        reader.flows_from(&pump).await?;
        self.busy = Some(Busy { connections, channel, stash, pump, reader });
        Ok(())
    }

    async fn lose_channel(&mut self) -> Result<()> {
        let busy = self.busy()?;
        busy.stash.close_channel().await?;
        close_by_publishing(&busy.channel).await
    }

    async fn lose_queue(&mut self) -> Result<()> {
        delete_queue(&self.seat, "q").await
    }

    async fn suffers(&mut self, _: Fault) -> Result<Instant> {
        let mut busy = self.busy.take().context("it has not started")?;
        busy.stash.clear();
        let begun = Instant::now();
        let closed = within(PATIENCE, "close_all", busy.connections.close_all()).await?;
        self.took = begun.elapsed();
        self.accepted = self.seat.proxy.accepted();
        match closed {
            // Messages were on their way; that is what it says.
            Ok(()) | Err(Error::Unconfirmed { .. }) => {}
            Err(error) => bail!("close_all: {error}"),
        }
        ensure!(self.took < CLOSED_WITHIN, "close_all took {:?}", self.took);
        within(PATIENCE, "the publisher's end", busy.pump.ended()).await??;
        within(PATIENCE, "the stream's end", busy.reader.ended()).await??;
        Ok(Instant::now())
    }

    async fn is_back(&mut self, _: Fault, _: Instant) -> Result<Duration> {
        let gone = async {
            while !self.seat.host.connections().await?.is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
            Ok::<_, anyhow::Error>(())
        };
        within(PATIENCE, "the end of the last connection on the broker", gone).await??;
        sleep(QUIET).await;
        let again = self.seat.proxy.accepted() - self.accepted;
        ensure!(again == 0, "{again} connections were made after close_all");
        ensure!(self.seat.proxy.open() == 0, "{} connections are open after close_all", self.seat.proxy.open());
        Ok(self.took)
    }

    fn measures(&self) -> &'static str {
        "closed in"
    }

    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}
