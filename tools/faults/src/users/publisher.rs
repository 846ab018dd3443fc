//! A user that publishes numbered messages all the time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use amqprs::channel::{BasicConsumeArguments, BasicPublishArguments};
use anyhow::Result;
use async_trait::async_trait;
use common::{Channel, ConnectionManager, SetupChannel, quorum_queue};
use tokio::sync::watch;

use super::{User, UserConnection, delete_queue};
use crate::{
    access::Access,
    fault::Fault,
    kept_setup::close_by_publishing,
    numbered_publisher::{How, NumberedPublisher},
    reader::Reader,
    wait::{PATIENCE, until, within},
};

/// Its messages are mandatory and confirmed, several in flight. Every confirmed message must be in the queue: a reader
/// on a connection without faults reads them.
pub(super) struct Publisher<'a> {
    access: Arc<Access<'a>>,
    connection: UserConnection,
    channel: Channel,
    publisher: NumberedPublisher,
    spared: ConnectionManager,
    reader: Reader,
    /// How often the reader has asked for the queue.
    asked: watch::Receiver<u64>,
    unroutable: u64,
}

impl<'a> Publisher<'a> {
    pub async fn start(access: Arc<Access<'a>>) -> Result<Self> {
        let (connection, spared) = (UserConnection::new(&access)?, access.spared()?);
        let channel = connection.connections.channel("publisher").await?;
        channel
            .setup(|channel: SetupChannel| async move { channel.queue_declare(quorum_queue("q")).await.map(drop) })
            .await?;
        let (asking, asked) = watch::channel(0);
        // This consumer does not declare the queue, because a deleted queue must stay away.
        let subscribe = move |_| {
            asking.send_modify(|times| *times += 1);
            async { Ok(BasicConsumeArguments::new("q", "")) }
        };
        let reader = Reader::start(spared.channel("reader").await?.consume(subscribe).await?, true);
        let to = |_| BasicPublishArguments::new("", "q").mandatory(true).finish();
        let publisher = NumberedPublisher::start(channel.clone(), How::Deferred, to);
        Ok(Self { access, connection, channel, publisher, spared, reader, asked, unroutable: 0 })
    }
}

#[async_trait]
impl User for Publisher<'_> {
    async fn works(&mut self) -> Result<()> {
        self.reader.flows_from(&self.publisher).await?;
        self.connection.mark();
        self.unroutable = self.publisher.progress().borrow().unroutable;
        Ok(())
    }

    async fn lose_channel(&mut self) -> Result<()> {
        close_by_publishing(&self.channel).await
    }

    async fn lose_queue(&mut self) -> Result<()> {
        // Messages in the queue are deleted with it.
        self.reader.catches_up_with(&self.publisher, 0).await?;
        let before = *self.asked.borrow();
        delete_queue(&self.access, "q").await?;
        // If a queue is deleted and declared again at once, RabbitMQ 3.10 tells its consumer nothing.
        until(&self.asked, "the reader's loss of its queue", |&asked| (asked > before).then_some(())).await?;
        self.publisher.resume();
        Ok(())
    }

    async fn notices(&mut self, fault: Fault) -> Result<Instant> {
        if fault != Fault::QueueDeleted {
            return self.connection.hit(fault).await;
        }
        let before = self.unroutable;
        until(self.publisher.progress(), "an unroutable message", |progress| {
            (progress.unroutable > before).then_some(())
        })
        .await?;
        // The reader asks for the queue all the time. While a quorum queue is being created, RabbitMQ may answer this
        // with 541 and close the connection.
        let channel = self.spared.channel("declare").await?;
        let declare = async { while channel.queue_declare(quorum_queue("q")).await.is_err() {} };
        within(PATIENCE, "the queue's declaration", declare).await?;
        Ok(Instant::now())
    }

    async fn is_back(&mut self, fault: Fault, over: Instant) -> Result<Duration> {
        let back = self.publisher.works_since(over).await?.duration_since(over);
        self.reader.catches_up_with(&self.publisher, 0).await?;
        self.publisher.resume();
        self.connection.check(fault)?;
        Ok(back)
    }

    async fn finish(&mut self) -> Result<()> {
        self.connection.close().await?;
        self.publisher.ended().await?;
        Ok(self.spared.close_all().await?)
    }
}
