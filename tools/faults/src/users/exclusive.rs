//! A user that consumes from its own exclusive queue.

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

use super::{User, UserConnection};
use crate::{
    access::Access,
    fault::Fault,
    kept_setup::KeptSetup,
    numbered_publisher::{How, NumberedPublisher},
    reader::{Reader, Seen},
};

const KEYS: [&str; 2] = ["red", "blue"];

/// The queue is server-named and exclusive, with two bindings to an exchange that the setup declares, too. Messages
/// that are published while the queue does not exist are lost, as with every such queue. After the recovery all
/// messages have to arrive, through both bindings.
pub(super) struct Exclusive<'a> {
    access: Arc<Access<'a>>,
    connection: UserConnection,
    kept_setup: KeptSetup,
    reader: Reader,
    spared: ConnectionManager,
    publisher: NumberedPublisher,
    before: Seen,
}

impl<'a> Exclusive<'a> {
    pub async fn start(access: Arc<Access<'a>>) -> Result<Self> {
        let (connection, spared, kept_setup) = (UserConnection::new(&access)?, access.spared()?, KeptSetup::default());
        let channel = connection.connections.channel("exclusive").await?;
        let reader = Reader::start(channel.consume_with(kept_setup.clone(), subscribe).await?, false);
        let to = |number: u64| {
            let key = KEYS[usize::from(number % 2 == 1)];
            BasicPublishArguments::new("colours", key).mandatory(true).finish()
        };
        let publisher = NumberedPublisher::start(spared.channel("publisher").await?, How::Deferred, to);
        Ok(Self { access, connection, kept_setup, reader, spared, publisher, before: Seen::default() })
    }
}

async fn subscribe(channel: SetupChannel, kept_setup: KeptSetup) -> common::Result<BasicConsumeArguments> {
    kept_setup.keep(&channel);
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
        self.reader.flows_from(&self.publisher).await?;
        self.connection.mark();
        self.before = self.reader.seen();
        Ok(())
    }

    async fn lose_channel(&mut self) -> Result<()> {
        self.kept_setup.close_channel().await
    }

    async fn lose_queue(&mut self) -> Result<()> {
        // Only its own connection may delete the queue. The consumer's cancellation, which follows, comes before the
        // answer.
        match self.kept_setup.setup()?.queue_delete(QueueDeleteArguments::new(&self.before.queue)).await {
            Ok(_) | Err(Error::Cancelled { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn notices(&mut self, fault: Fault) -> Result<Instant> {
        self.connection.hit(fault).await
    }

    async fn is_back(&mut self, fault: Fault, over: Instant) -> Result<Duration> {
        self.reader.works_after(self.before.openings).await?;
        let both = |seen: &Seen| {
            let times: Vec<Instant> = KEYS.iter().filter_map(|&key| seen.keys.get(key).copied()).collect();
            (times.len() == KEYS.len() && times.iter().all(|&time| Some(time) >= seen.opened))
                .then(|| times.into_iter().min().unwrap_or(over))
        };
        let back = self.reader.until("messages by both bindings", both).await?;
        let first = self.publisher.next();
        self.reader.flows_from(&self.publisher).await?;
        self.reader.catches_up_with(&self.publisher, first).await?;
        self.publisher.resume();
        ensure!(self.reader.seen().queue != self.before.queue, "a server-named queue came back under its old name");
        let queues = self.access.host.get("/api/queues/{vhost}").await?.as_array().map_or(0, Vec::len);
        ensure!(queues == 1, "there are {queues} queues now");
        self.connection.check(fault)?;
        Ok(back.saturating_duration_since(over))
    }

    async fn finish(&mut self) -> Result<()> {
        self.kept_setup.clear();
        self.connection.close().await?;
        self.reader.ended().await?;
        Ok(self.spared.close_all().await?)
    }
}
