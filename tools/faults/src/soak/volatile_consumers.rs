//! Two more consumers, whose queues are deleted now and then. Messages to them are not counted, but both must have
//! recovered at the end.

use std::time::Duration;

use amqprs::{
    BasicProperties,
    channel::{
        BasicConsumeArguments, BasicPublishArguments, ExchangeDeclareArguments, QueueBindArguments,
        QueueDeclareArguments,
    },
};
use anyhow::{Context, Result};
use common::{Channel, Error, SetupChannel};
use tokio::time::sleep;

use super::VOLATILE;
use crate::{
    reader::Reader,
    wait::{PATIENCE, within},
};

const KEYS: [&str; 2] = ["red", "blue"];

/// One consumes from a queue that is deleted now and then, one from a server-named exclusive queue.
pub(super) struct VolatileConsumers {
    channel: Channel,
    volatile: Reader,
    exclusive: Reader,
}

impl VolatileConsumers {
    pub async fn start(channel: Channel, other: Channel) -> Result<Self> {
        let volatile = Reader::start(channel.consume(on_volatile).await?, true);
        let exclusive = Reader::start(other.consume(on_exclusive).await?, false);
        Ok(Self { channel, volatile, exclusive })
    }

    /// Checks that both still get what is sent to them, through each binding.
    pub async fn finish(self) -> Result<()> {
        let mut ways = vec![(BasicPublishArguments::new("", VOLATILE), &self.volatile)];
        ways.extend(KEYS.map(|key| (BasicPublishArguments::new("colours", key), &self.exclusive)));
        for (number, (to, reader)) in (1_u64..).zip(ways) {
            let what = format!("the queue of {}{}", to.exchange, to.routing_key);
            within(PATIENCE, &what, self.send(to, number)).await?.context(what)?;
            reader.until("what was sent last", |seen| (seen.highest >= number).then_some(())).await?;
        }
        Ok(())
    }

    /// Sends a message until there is a queue for it.
    async fn send(&self, to: BasicPublishArguments, number: u64) -> Result<(), Error> {
        let to = to.clone().mandatory(true).finish();
        loop {
            match self.channel.publish_at_least_once(to.clone(), BasicProperties::default(), number.to_string()).await {
                Err(Error::Unroutable(_) | Error::Closed { code: 404, .. }) => sleep(Duration::from_millis(50)).await,
                outcome => return outcome,
            }
        }
    }
}

async fn on_volatile(channel: SetupChannel) -> common::Result<BasicConsumeArguments> {
    channel.queue_declare(QueueDeclareArguments::durable_client_named(VOLATILE)).await?;
    Ok(BasicConsumeArguments::new(VOLATILE, ""))
}

async fn on_exclusive(channel: SetupChannel) -> common::Result<BasicConsumeArguments> {
    channel.exchange_declare(ExchangeDeclareArguments::new("colours", "direct")).await?;
    let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;
    for key in KEYS {
        channel.queue_bind(QueueBindArguments::new(&queue.name, "colours", key)).await?;
    }
    Ok(BasicConsumeArguments::new(&queue.name, "").auto_ack(true).finish())
}
