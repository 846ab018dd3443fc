//! One connection, three channels, and one of them in lasting trouble.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicPublishArguments, QueueDeclareArguments},
};
use anyhow::{Result, ensure};
use async_trait::async_trait;
use common::{Channel, ConnectionManager, Error, SetupChannel};
use tokio::{sync::watch, time::sleep};

use super::{Line, User, delete_queue};
use crate::{
    fault::Fault,
    pump::{How, Pump},
    reader::{Reader, Seen},
    seat::Seat,
    trouble::{Stash, close_by_publishing},
    wait::{PATIENCE, until, within},
};

/// A publisher and a consumer that have to come back, although another consumer of the same connection cannot: its setup
/// asks for a queue that is not there, and the broker closes its channel each time. Once it can, it has to, too.
pub(super) struct TwoChannels<'a> {
    seat: Arc<Seat<'a>>,
    line: Line,
    channel: Channel,
    pump: Pump,
    stash: Stash,
    reader: Reader,
    trouble: Trouble,
    troubled: Reader,
    spared: ConnectionManager,
    openings: (u64, u64),
}

/// How the third channel is kept from coming back.
#[derive(Clone)]
struct Trouble {
    stash: Stash,
    on: Arc<AtomicBool>,
    attempts: Arc<watch::Sender<u32>>,
    sent: Arc<AtomicU32>,
}

impl<'a> TwoChannels<'a> {
    pub async fn start(seat: Arc<Seat<'a>>) -> Result<Self> {
        let (line, spared, stash) = (Line::new(&seat)?, seat.spared()?, Stash::default());
        let trouble =
            Trouble { stash: Stash::default(), on: Arc::default(), attempts: Arc::default(), sent: Arc::default() };
        let channel = line.connections.channel("publisher").await?;
        let reader = Reader::start(channel.consume_with(stash.clone(), subscribe).await?, true);
        let troubled =
            line.connections.channel("troubled").await?.consume_with(trouble.clone(), subscribe_or_fail).await?;
        let troubled = Reader::start(troubled, true);
        let pump = Pump::start(channel.clone(), How::Enqueue, |_| BasicPublishArguments::new("", "q"));
        Ok(Self { seat, line, channel, pump, stash, reader, trouble, troubled, spared, openings: (0, 0) })
    }

    /// Waits until a message has come to the third channel, whose queue may not be there before it is.
    async fn third_works(&self) -> Result<()> {
        let number = self.trouble.sent.fetch_add(1, Ordering::Relaxed);
        let to = BasicPublishArguments::new("", "troubled").mandatory(true).finish();
        let channel = self.spared.channel("to troubled").await?;
        let send = async {
            loop {
                let body = number.to_string();
                match channel.publish_at_least_once(to.clone(), BasicProperties::default(), body).await {
                    Err(Error::Unroutable(_)) => sleep(Duration::from_millis(20)).await,
                    outcome => return outcome,
                }
            }
        };
        within(PATIENCE, "the queue of the third channel", send).await??;
        let arrived = |seen: &Seen| (seen.openings > 0 && seen.highest >= u64::from(number)).then_some(());
        self.troubled.until("a message on the third channel", arrived).await
    }
}

async fn subscribe(channel: SetupChannel, stash: Stash) -> common::Result<BasicConsumeArguments> {
    stash.keep(&channel);
    channel.queue_declare(QueueDeclareArguments::durable_client_named("q")).await?;
    Ok(BasicConsumeArguments::new("q", ""))
}

async fn subscribe_or_fail(channel: SetupChannel, trouble: Trouble) -> common::Result<BasicConsumeArguments> {
    trouble.stash.keep(&channel);
    trouble.attempts.send_modify(|attempts| *attempts += 1);
    if trouble.on.load(Ordering::Relaxed) {
        channel.queue_declare(QueueDeclareArguments::new("missing").passive(true).finish()).await?;
    }
    channel.queue_declare(QueueDeclareArguments::durable_client_named("troubled")).await?;
    Ok(BasicConsumeArguments::new("troubled", ""))
}

#[async_trait]
impl User for TwoChannels<'_> {
    async fn works(&mut self) -> Result<()> {
        self.reader.flows_from(&self.pump).await?;
        self.third_works().await?;
        self.line.mark();
        self.openings = (self.reader.seen().openings, self.troubled.seen().openings);
        self.trouble.on.store(true, Ordering::Relaxed);
        self.trouble.attempts.send_replace(0);
        Ok(())
    }

    async fn lose_channel(&mut self) -> Result<()> {
        self.trouble.stash.close_channel().await?;
        self.stash.close_channel().await?;
        close_by_publishing(&self.channel).await
    }

    async fn lose_queue(&mut self) -> Result<()> {
        delete_queue(&self.seat, "troubled").await?;
        delete_queue(&self.seat, "q").await
    }

    async fn suffers(&mut self, fault: Fault) -> Result<Instant> {
        self.line.hit(fault).await
    }

    async fn is_back(&mut self, fault: Fault, over: Instant) -> Result<Duration> {
        let published = self.pump.works_since(over).await?;
        let consumed = self.reader.works_after(self.openings.0).await?;
        // It is tried again, and does not hold the others up.
        let tried = |attempts: &u32| (*attempts >= 2).then_some(());
        until(&self.trouble.attempts.subscribe(), "two attempts to set the third channel up", tried).await?;
        let first = self.pump.next();
        self.reader.flows_from(&self.pump).await?;
        self.reader.catches_up_with(&self.pump, first).await?;
        self.pump.resume();
        ensure!(self.troubled.seen().openings == self.openings.1, "the third channel came back, who knows how");
        self.trouble.on.store(false, Ordering::Relaxed);
        self.third_works().await?;
        self.line.check(fault)?;
        Ok(published.max(consumed).saturating_duration_since(over))
    }

    async fn finish(&mut self) -> Result<()> {
        self.stash.clear();
        self.trouble.stash.clear();
        self.line.close().await?;
        self.pump.ended().await?;
        self.reader.ended().await?;
        self.troubled.ended().await?;
        Ok(self.spared.close_all().await?)
    }
}
