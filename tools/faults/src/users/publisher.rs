//! Publishes numbered messages all the time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use amqprs::channel::{BasicConsumeArguments, BasicPublishArguments};
use anyhow::Result;
use async_trait::async_trait;
use common::{Channel, ConnectionManager, SetupChannel, quorum_queue};
use tokio::sync::watch;

use super::{Line, User, delete_queue};
use crate::{
    fault::Fault,
    pump::{How, Pump},
    reader::Reader,
    seat::Seat,
    trouble::close_by_publishing,
    wait::{PATIENCE, until, within},
};

/// Mandatory and confirmed, several in flight. What was confirmed has to be in the queue: somebody on a spared
/// connection reads it.
pub(super) struct Publisher<'a> {
    seat: Arc<Seat<'a>>,
    line: Line,
    channel: Channel,
    pump: Pump,
    spared: ConnectionManager,
    reader: Reader,
    /// How often the reader has asked for the queue.
    asked: watch::Receiver<u64>,
    unroutable: u64,
}

impl<'a> Publisher<'a> {
    pub async fn start(seat: Arc<Seat<'a>>) -> Result<Self> {
        let (line, spared) = (Line::new(&seat)?, seat.spared()?);
        let channel = line.connections.channel("publisher").await?;
        channel
            .setup(|channel: SetupChannel| async move { channel.queue_declare(quorum_queue("q")).await.map(drop) })
            .await?;
        let (asking, asked) = watch::channel(0);
        // This one declares nothing: a deleted queue has to stay away.
        let subscribe = move |_| {
            asking.send_modify(|times| *times += 1);
            async { Ok(BasicConsumeArguments::new("q", "")) }
        };
        let reader = Reader::start(spared.channel("reader").await?.consume(subscribe).await?, true);
        let to = |_| BasicPublishArguments::new("", "q").mandatory(true).finish();
        let pump = Pump::start(channel.clone(), How::Enqueue, to);
        Ok(Self { seat, line, channel, pump, spared, reader, asked, unroutable: 0 })
    }
}

#[async_trait]
impl User for Publisher<'_> {
    async fn works(&mut self) -> Result<()> {
        self.reader.flows_from(&self.pump).await?;
        self.line.mark();
        self.unroutable = self.pump.progress().borrow().unroutable;
        Ok(())
    }

    async fn lose_channel(&mut self) -> Result<()> {
        close_by_publishing(&self.channel).await
    }

    async fn lose_queue(&mut self) -> Result<()> {
        // What is in it goes with it.
        self.reader.catches_up_with(&self.pump, 0).await?;
        let before = *self.asked.borrow();
        delete_queue(&self.seat, "q").await?;
        // RabbitMQ 3.10 tells a consumer nothing at all when its queue is declared again at once.
        until(&self.asked, "the reader's loss of its queue", |&asked| (asked > before).then_some(())).await?;
        self.pump.resume();
        Ok(())
    }

    async fn suffers(&mut self, fault: Fault) -> Result<Instant> {
        if fault != Fault::QueueDeleted {
            return self.line.hit(fault).await;
        }
        let before = self.unroutable;
        until(self.pump.progress(), "an unroutable message", |progress| (progress.unroutable > before).then_some(()))
            .await?;
        // The reader asks for the queue all the time. RabbitMQ may answer that with 541, and end the connection, while a
        // quorum queue is being made.
        let channel = self.spared.channel("declare").await?;
        let declare = async { while channel.queue_declare(quorum_queue("q")).await.is_err() {} };
        within(PATIENCE, "the queue's declaration", declare).await?;
        Ok(Instant::now())
    }

    async fn is_back(&mut self, fault: Fault, over: Instant) -> Result<Duration> {
        let back = self.pump.works_since(over).await?.duration_since(over);
        self.reader.catches_up_with(&self.pump, 0).await?;
        self.pump.resume();
        self.line.check(fault)?;
        Ok(back)
    }

    async fn finish(&mut self) -> Result<()> {
        self.line.close().await?;
        self.pump.ended().await?;
        Ok(self.spared.close_all().await?)
    }
}
