//! Declares the queues and exchanges of the variants, fills the queues before each round and empties them after it.

use amqprs::{
    BasicProperties,
    channel::{
        BasicPublishArguments, ExchangeDeclareArguments, ExchangeDeleteArguments, ExchangeType, QueueBindArguments,
        QueueDeleteArguments, QueuePurgeArguments,
    },
};
use anyhow::Result;
use common::{Channel, ConnectionManager, classic_queue, quorum_queue};
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{
    variants::Variant,
    work::{QueueKind, SMALL, Work},
};

/// Declares topologies, on a connection of its own.
pub struct Builder {
    connections: ConnectionManager,
    channel: Channel,
    /// The name of this run: another run may use the same broker.
    run: String,
}

/// The queues and the exchange of one variant for one work.
pub struct Topology {
    pub name: String,
    channel: Channel,
    queues: Vec<String>,
    exchange: Option<String>,
    filled: bool,
}

impl Builder {
    pub async fn connect(url: &str) -> Result<Builder> {
        let connections = ConnectionManager::new(url.parse()?);
        let channel = connections.channel("topology").await?;
        let run = uuid::Uuid::new_v4().simple().to_string();
        Ok(Builder { connections, channel, run: format!("bench-{}", &run[..8]) })
    }

    /// Declares what this variant needs for this work.
    pub async fn build(&self, work: &Work, variant: Variant) -> Result<Topology> {
        let name = format!("{}-{work}-{variant}", self.run);
        let count = match work {
            Work::Fanout { queues } => *queues,
            Work::Connect => 0,
            _ => 1,
        };
        let mut topology = Topology {
            name: name.clone(),
            channel: self.channel.clone(),
            queues: Vec::new(),
            exchange: None,
            filled: matches!(work, Work::Consume { .. }),
        };
        if let Work::Fanout { .. } = work {
            let exchange = ExchangeDeclareArguments::of_type(&name, ExchangeType::Fanout);
            self.channel.exchange_declare(exchange).await?;
            topology.exchange = Some(name.clone());
        }
        for number in 0..count {
            let queue = if topology.exchange.is_some() { format!("{name}-{number}") } else { name.clone() };
            let quorum = matches!(work, Work::Publish { queue: QueueKind::Quorum, .. });
            let declare = if quorum { quorum_queue(&queue) } else { classic_queue(&queue) };
            self.channel.queue_declare(declare).await?;
            if let Some(exchange) = &topology.exchange {
                self.channel.queue_bind(QueueBindArguments::new(&queue, exchange, "")).await?;
            }
            topology.queues.push(queue);
        }
        Ok(topology)
    }

    pub async fn close(self) -> Result<()> {
        Ok(self.connections.close_all().await?)
    }
}

impl Topology {
    /// Fills the queue before a round, if messages are to be consumed.
    pub async fn fill(&self, count: u64) -> Result<()> {
        let count = if self.filled { count } else { 0 };
        let to = BasicPublishArguments::new("", &self.name);
        let publish =
            |_| self.channel.publish_with_deferred_confirm(to.clone(), BasicProperties::default(), vec![b'x'; SMALL.0]);
        stream::iter(0..count).then(publish).try_buffered(2_000).try_collect::<()>().await?;
        Ok(())
    }

    /// Empties the queues after a round, so that no message is left for the next one.
    pub async fn empty(&self) -> Result<()> {
        for queue in &self.queues {
            self.channel.queue_purge(QueuePurgeArguments::new(queue)).await?;
        }
        Ok(())
    }

    pub async fn remove(self) -> Result<()> {
        for queue in &self.queues {
            self.channel.queue_delete(QueueDeleteArguments::new(queue)).await?;
        }
        if let Some(exchange) = &self.exchange {
            self.channel.exchange_delete(ExchangeDeleteArguments::new(exchange)).await?;
        }
        Ok(())
    }
}
