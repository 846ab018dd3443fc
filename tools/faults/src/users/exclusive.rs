//! Consumes from a queue that exists for it alone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use amqprs::channel::{
    BasicConsumeArguments, BasicPublishArguments, ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments,
    QueueDeleteArguments,
};
use anyhow::{Result, ensure};
use async_trait::async_trait;
use common::{ConnectionManager, Error, SetupChannel};

use super::{Line, User};
use crate::{
    fault::Fault,
    pump::{How, Pump},
    reader::{Reader, Seen},
    seat::Seat,
    trouble::Stash,
};

const KEYS: [&str; 2] = ["red", "blue"];

/// Server-named, exclusive, and with two bindings to an exchange that is declared along with it. What is published while
/// it is away is lost, as with every such queue; from its return on everything has to arrive, by both bindings.
pub(super) struct Exclusive<'a> {
    seat: Arc<Seat<'a>>,
    line: Line,
    stash: Stash,
    reader: Reader,
    spared: ConnectionManager,
    pump: Pump,
    before: Seen,
}

impl<'a> Exclusive<'a> {
    pub async fn start(seat: Arc<Seat<'a>>) -> Result<Self> {
        let (line, spared, stash) = (Line::new(&seat)?, seat.spared()?, Stash::default());
        let channel = line.connections.channel("exclusive").await?;
        let reader = Reader::start(channel.consume_with(stash.clone(), subscribe).await?, false);
        let to = |number: u64| {
            let key = KEYS[usize::from(number % 2 == 1)];
            BasicPublishArguments::new("colours", key).mandatory(true).finish()
        };
        let pump = Pump::start(spared.channel("publisher").await?, How::Enqueue, to);
        Ok(Self { seat, line, stash, reader, spared, pump, before: Seen::default() })
    }
}

async fn subscribe(channel: SetupChannel, stash: Stash) -> common::Result<BasicConsumeArguments> {
    stash.keep(&channel);
    channel.exchange_declare(ExchangeDeclareArguments::new("colours", "direct")).await?;
    let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;
    for key in KEYS {
        channel.queue_bind(QueueBindArguments::new(&queue.name, "colours", key)).await?;
    }
    Ok(BasicConsumeArguments::new(&queue.name, "").auto_ack(true).finish())
}

#[async_trait]
impl User for Exclusive<'_> {
    async fn works(&mut self) -> Result<()> {
        self.reader.flows_from(&self.pump).await?;
        self.line.mark();
        self.before = self.reader.seen();
        Ok(())
    }

    async fn lose_channel(&mut self) -> Result<()> {
        self.stash.close_channel().await
    }

    async fn lose_queue(&mut self) -> Result<()> {
        // Nobody else may. The end of the consumer, which follows from it, is told before the answer.
        match self.stash.setup()?.queue_delete(QueueDeleteArguments::new(&self.before.queue)).await {
            Ok(_) | Err(Error::Cancelled { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn suffers(&mut self, fault: Fault) -> Result<Instant> {
        self.line.hit(fault).await
    }

    async fn is_back(&mut self, fault: Fault, over: Instant) -> Result<Duration> {
        self.reader.works_after(self.before.openings).await?;
        let both = |seen: &Seen| {
            let times: Vec<Instant> = KEYS.iter().filter_map(|&key| seen.keys.get(key).copied()).collect();
            (times.len() == KEYS.len() && times.iter().all(|&time| Some(time) >= seen.opened))
                .then(|| times.into_iter().min().unwrap_or(over))
        };
        let back = self.reader.until("messages by both bindings", both).await?;
        let first = self.pump.next();
        self.reader.flows_from(&self.pump).await?;
        self.reader.catches_up_with(&self.pump, first).await?;
        self.pump.resume();
        ensure!(self.reader.seen().queue != self.before.queue, "a server-named queue came back under its old name");
        let queues = self.seat.host.get("/api/queues/{vhost}").await?.as_array().map_or(0, Vec::len);
        ensure!(queues == 1, "there are {queues} queues now");
        self.line.check(fault)?;
        Ok(back.saturating_duration_since(over))
    }

    async fn finish(&mut self) -> Result<()> {
        self.stash.clear();
        self.line.close().await?;
        self.reader.ended().await?;
        Ok(self.spared.close_all().await?)
    }
}
