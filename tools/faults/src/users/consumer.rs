//! A user that consumes from a durable queue.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use amqprs::channel::{BasicConsumeArguments, BasicPublishArguments, BasicQosArguments};
use anyhow::Result;
use async_trait::async_trait;
use common::{ConnectionManager, SetupChannel, quorum_queue};

use super::{User, UserConnection, delete_queue};
use crate::{
    access::Access,
    fault::Fault,
    kept_setup::KeptSetup,
    numbered_publisher::{How, NumberedPublisher},
    reader::Reader,
};

/// It has a prefetch and acknowledges manually. A connection without faults publishes. All messages have to arrive, on
/// the same stream.
pub(super) struct Consumer<'a> {
    access: Arc<Access<'a>>,
    connection: UserConnection,
    kept_setup: KeptSetup,
    reader: Reader,
    spared: ConnectionManager,
    publisher: NumberedPublisher,
    openings: u64,
}

impl<'a> Consumer<'a> {
    pub async fn start(access: Arc<Access<'a>>) -> Result<Self> {
        let (connection, spared, kept_setup) = (UserConnection::new(&access)?, access.spared()?, KeptSetup::default());
        let channel = connection.connections.channel("consumer").await?;
        let reader = Reader::start(channel.consume_with(kept_setup.clone(), subscribe).await?, true);
        let to = |_| BasicPublishArguments::new("", "q").mandatory(true).finish();
        let publisher = NumberedPublisher::start(spared.channel("publisher").await?, How::AtLeastOnce, to);
        Ok(Self { access, connection, kept_setup, reader, spared, publisher, openings: 0 })
    }
}

async fn subscribe(channel: SetupChannel, kept_setup: KeptSetup) -> common::Result<BasicConsumeArguments> {
    kept_setup.keep(&channel);
    channel.basic_qos(BasicQosArguments::new(0, 10, false)).await?;
    channel.queue_declare(quorum_queue("q")).await?;
    Ok(BasicConsumeArguments::new("q", ""))
}

#[async_trait]
impl User for Consumer<'_> {
    async fn works(&mut self) -> Result<()> {
        self.reader.flows_from(&self.publisher).await?;
        self.connection.mark();
        self.openings = self.reader.seen().openings;
        Ok(())
    }

    async fn lose_channel(&mut self) -> Result<()> {
        self.kept_setup.close_channel().await
    }

    async fn lose_queue(&mut self) -> Result<()> {
        // Messages in the queue are deleted with it.
        self.reader.catches_up_with(&self.publisher, 0).await?;
        delete_queue(&self.access, "q").await?;
        self.publisher.resume();
        Ok(())
    }

    async fn notices(&mut self, fault: Fault) -> Result<Instant> {
        self.connection.hit(fault).await
    }

    async fn is_back(&mut self, fault: Fault, over: Instant) -> Result<Duration> {
        let back = self.reader.works_after(self.openings).await?.saturating_duration_since(over);
        self.reader.catches_up_with(&self.publisher, 0).await?;
        self.publisher.resume();
        self.connection.check(fault)?;
        Ok(back)
    }

    async fn finish(&mut self) -> Result<()> {
        self.kept_setup.clear();
        self.connection.close().await?;
        self.reader.ended().await?;
        Ok(self.spared.close_all().await?)
    }
}
