//! Consumes from a durable queue.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use amqprs::channel::{BasicConsumeArguments, BasicPublishArguments, BasicQosArguments};
use anyhow::Result;
use async_trait::async_trait;
use common::{ConnectionManager, SetupChannel, quorum_queue};

use super::{Line, User, delete_queue};
use crate::{
    fault::Fault,
    pump::{How, Pump},
    reader::Reader,
    seat::Seat,
    trouble::Stash,
};

/// With a prefetch and manual acknowledgement. A spared connection publishes; everything has to arrive, on one and the
/// same stream.
pub(super) struct Consumer<'a> {
    seat: Arc<Seat<'a>>,
    line: Line,
    stash: Stash,
    reader: Reader,
    spared: ConnectionManager,
    pump: Pump,
    openings: u64,
}

impl<'a> Consumer<'a> {
    pub async fn start(seat: Arc<Seat<'a>>) -> Result<Self> {
        let (line, spared, stash) = (Line::new(&seat)?, seat.spared()?, Stash::default());
        let channel = line.connections.channel("consumer").await?;
        let reader = Reader::start(channel.consume_with(stash.clone(), subscribe).await?, true);
        let to = |_| BasicPublishArguments::new("", "q").mandatory(true).finish();
        let pump = Pump::start(spared.channel("publisher").await?, How::AtLeastOnce, to);
        Ok(Self { seat, line, stash, reader, spared, pump, openings: 0 })
    }
}

async fn subscribe(channel: SetupChannel, stash: Stash) -> common::Result<BasicConsumeArguments> {
    stash.keep(&channel);
    channel.basic_qos(BasicQosArguments::new(0, 10, false)).await?;
    channel.queue_declare(quorum_queue("q")).await?;
    Ok(BasicConsumeArguments::new("q", ""))
}

#[async_trait]
impl User for Consumer<'_> {
    async fn works(&mut self) -> Result<()> {
        self.reader.flows_from(&self.pump).await?;
        self.line.mark();
        self.openings = self.reader.seen().openings;
        Ok(())
    }

    async fn lose_channel(&mut self) -> Result<()> {
        self.stash.close_channel().await
    }

    async fn lose_queue(&mut self) -> Result<()> {
        // What is in it goes with it.
        self.reader.catches_up_with(&self.pump, 0).await?;
        delete_queue(&self.seat, "q").await?;
        self.pump.resume();
        Ok(())
    }

    async fn suffers(&mut self, fault: Fault) -> Result<Instant> {
        self.line.hit(fault).await
    }

    async fn is_back(&mut self, fault: Fault, over: Instant) -> Result<Duration> {
        let back = self.reader.works_after(self.openings).await?.saturating_duration_since(over);
        self.reader.catches_up_with(&self.pump, 0).await?;
        self.pump.resume();
        self.line.check(fault)?;
        Ok(back)
    }

    async fn finish(&mut self) -> Result<()> {
        self.stash.clear();
        self.line.close().await?;
        self.reader.ended().await?;
        Ok(self.spared.close_all().await?)
    }
}
