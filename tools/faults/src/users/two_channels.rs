//! A user with one connection and three channels, one of which cannot be set up for a while.

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

use super::{User, UserConnection, delete_queue};
use crate::{
    access::Access,
    fault::Fault,
    kept_setup::{KeptSetup, close_by_publishing},
    numbered_publisher::{How, NumberedPublisher},
    reader::{Reader, Seen},
    wait::{PATIENCE, until, within},
};

/// A publisher and a consumer must recover although another consumer of the same connection cannot. The setup of that one
/// asks for a missing queue, so the broker closes its channel each time. Once its setup can succeed, that consumer must
/// recover, too.
pub(super) struct TwoChannels<'a> {
    access: Arc<Access<'a>>,
    connection: UserConnection,
    channel: Channel,
    publisher: NumberedPublisher,
    kept_setup: KeptSetup,
    reader: Reader,
    trouble: Trouble,
    troubled: Reader,
    spared: ConnectionManager,
    openings: (u64, u64),
}

/// What keeps the third channel from recovering.
#[derive(Clone)]
struct Trouble {
    kept_setup: KeptSetup,
    on: Arc<AtomicBool>,
    attempts: Arc<watch::Sender<u32>>,
    sent: Arc<AtomicU32>,
}

impl<'a> TwoChannels<'a> {
    pub async fn start(access: Arc<Access<'a>>) -> Result<Self> {
        let (connection, spared, kept_setup) = (UserConnection::new(&access)?, access.spared()?, KeptSetup::default());
        let trouble = Trouble {
            kept_setup: KeptSetup::default(),
            on: Arc::default(),
            attempts: Arc::default(),
            sent: Arc::default(),
        };
        let channel = connection.connections.channel("publisher").await?;
        let reader = Reader::start(channel.consume_with(kept_setup.clone(), subscribe).await?, true);
        let troubled =
            connection.connections.channel("troubled").await?.consume_with(trouble.clone(), subscribe_or_fail).await?;
        let troubled = Reader::start(troubled, true);
        let publisher =
            NumberedPublisher::start(channel.clone(), How::Deferred, |_| BasicPublishArguments::new("", "q"));
        Ok(Self {
            access,
            connection,
            channel,
            publisher,
            kept_setup,
            reader,
            trouble,
            troubled,
            spared,
            openings: (0, 0),
        })
    }

    /// Waits until a message has come on the third channel. Its queue may not exist before the channel works.
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

async fn subscribe(channel: SetupChannel, kept_setup: KeptSetup) -> common::Result<BasicConsumeArguments> {
    kept_setup.keep(&channel);
    channel.queue_declare(QueueDeclareArguments::durable_client_named("q")).await?;
    Ok(BasicConsumeArguments::new("q", ""))
}

async fn subscribe_or_fail(channel: SetupChannel, trouble: Trouble) -> common::Result<BasicConsumeArguments> {
    trouble.kept_setup.keep(&channel);
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
        self.reader.flows_from(&self.publisher).await?;
        self.third_works().await?;
        self.connection.mark();
        self.openings = (self.reader.seen().openings, self.troubled.seen().openings);
        self.trouble.on.store(true, Ordering::Relaxed);
        self.trouble.attempts.send_replace(0);
        Ok(())
    }

    async fn lose_channel(&mut self) -> Result<()> {
        self.trouble.kept_setup.close_channel().await?;
        self.kept_setup.close_channel().await?;
        close_by_publishing(&self.channel).await
    }

    async fn lose_queue(&mut self) -> Result<()> {
        delete_queue(&self.access, "troubled").await?;
        delete_queue(&self.access, "q").await
    }

    async fn notices(&mut self, fault: Fault) -> Result<Instant> {
        self.connection.hit(fault).await
    }

    async fn is_back(&mut self, fault: Fault, over: Instant) -> Result<Duration> {
        let published = self.publisher.works_since(over).await?;
        let consumed = self.reader.works_after(self.openings.0).await?;
        // The third channel is tried again and again, and does not delay the others.
        let tried = |attempts: &u32| (*attempts >= 2).then_some(());
        until(&self.trouble.attempts.subscribe(), "two attempts to set the third channel up", tried).await?;
        let first = self.publisher.next();
        self.reader.flows_from(&self.publisher).await?;
        self.reader.catches_up_with(&self.publisher, first).await?;
        self.publisher.resume();
        ensure!(
            self.troubled.seen().openings == self.openings.1,
            "the third channel recovered although its setup must fail"
        );
        self.trouble.on.store(false, Ordering::Relaxed);
        self.third_works().await?;
        self.connection.check(fault)?;
        Ok(published.max(consumed).saturating_duration_since(over))
    }

    async fn finish(&mut self) -> Result<()> {
        self.kept_setup.clear();
        self.trouble.kept_setup.clear();
        self.connection.close().await?;
        self.publisher.ended().await?;
        self.reader.ended().await?;
        self.troubled.ended().await?;
        Ok(self.spared.close_all().await?)
    }
}
