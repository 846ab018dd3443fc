//! `common`, used as a program would use it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicPublishArguments, BasicQosArguments},
};
use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use common::{
    Channel, Confirm, ConnectionManager, Consumer, Message, SetupChannel,
    rpc::{RpcClient, RpcServer},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::Ready;
use crate::work::{Publishing, Reply, SMALL, Work};

/// How many messages may be unconfirmed on one channel.
const MOST_PER_CHANNEL: usize = 8_192;

/// Longer than any call takes here.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn prepare(work: &Work, url: &str, name: &str) -> Result<Box<dyn Ready>> {
    let connections = ConnectionManager::new(url.parse()?);
    if let Some(publishing) = work.publishing(name) {
        let mut channels = Vec::new();
        for number in 0..publishing.window.div_ceil(MOST_PER_CHANNEL) {
            channels.push(connections.channel(&format!("publish {number}")).await?);
        }
        let to = BasicPublishArguments::new(&publishing.exchange, &publishing.routing_key);
        return Ok(Box::new(Publisher { channels, publishing, to }));
    }
    Ok(match *work {
        Work::Consume { prefetch } => {
            let channel = connections.channel("consume").await?;
            Box::new(Consuming { channel, subscription: (name.to_owned(), prefetch) })
        }
        Work::Rpc { window, reply } => {
            let server = ConnectionManager::new(url.parse()?);
            serve(&server, name, window).await?;
            let channel = connections.channel("rpc_client").await?;
            let client = match reply {
                Reply::Callback => RpcClient::new(&channel).await?,
                Reply::Direct => RpcClient::direct(&channel).await?,
            };
            Box::new(Caller { _server: server, client, queue: name.to_owned(), window })
        }
        Work::Recover => {
            let channel = connections.channel("recover").await?;
            let messages = channel.consume_with((name.to_owned(), 20), subscribe).await?;
            Box::new(Recovering { channel, messages, queue: name.to_owned() })
        }
        _ => Box::new(Connecting { url: url.to_owned() }),
    })
}

/// Subscribes to an existing queue, with this prefetch.
async fn subscribe(channel: SetupChannel, (queue, prefetch): (String, u16)) -> common::Result<BasicConsumeArguments> {
    channel.basic_qos(BasicQosArguments::new(0, prefetch, false)).await?;
    Ok(BasicConsumeArguments::new(&queue, ""))
}

struct Publisher {
    channels: Vec<Channel>,
    publishing: Publishing,
    to: BasicPublishArguments,
}

impl Publisher {
    async fn publish_with_deferred_confirm(&self, number: u64) -> common::Result<Confirm> {
        let channel = &self.channels[number as usize % self.channels.len()];
        let (to, body) = (self.to.clone(), self.publishing.body.clone());
        channel.publish_with_deferred_confirm(to, BasicProperties::default(), body).await
    }
}

#[async_trait]
impl Ready for Publisher {
    async fn run(&mut self, count: u64) -> Result<Duration> {
        let begun = Instant::now();
        let mut unconfirmed = VecDeque::new();
        for number in 0..count {
            unconfirmed.push_back(self.publish_with_deferred_confirm(number).await?);
            if unconfirmed.len() == self.publishing.window
                && let Some(oldest) = unconfirmed.pop_front()
            {
                oldest.await?;
            }
        }
        for confirm in unconfirmed {
            confirm.await?;
        }
        Ok(begun.elapsed())
    }
}

struct Consuming {
    channel: Channel,
    subscription: (String, u16),
}

#[async_trait]
impl Ready for Consuming {
    async fn run(&mut self, count: u64) -> Result<Duration> {
        let mut messages = self.channel.consume_with(self.subscription.clone(), subscribe).await?;
        let mut begun = None;
        for _ in 0..count {
            let message = messages.try_next().await?.context("consuming ended")?;
            let _ = begun.get_or_insert_with(Instant::now);
            ensure!(message.body.len() == SMALL.0, "a foreign message");
            message.ack().await?;
        }
        Ok(begun.map_or(Duration::ZERO, |begun| begun.elapsed()))
    }
}

/// Sends each request back as its reply. As always in `common`, requests are mandatory and confirmed, and a request is
/// acknowledged after its reply is confirmed.
async fn serve(connections: &ConnectionManager, queue: &str, window: usize) -> Result<()> {
    let subscription = (queue.to_owned(), u16::try_from(window)?);
    let requests = move |channel| subscribe(channel, subscription.clone());
    let server = RpcServer::new(&connections.channel("rpc_server").await?, requests).await?;
    tokio::spawn(server.serve(|request: Message| async { Ok::<_, common::Error>(request.body) }));
    Ok(())
}

struct Caller {
    _server: ConnectionManager,
    client: RpcClient,
    queue: String,
    window: usize,
}

impl Caller {
    async fn call(&self) -> Result<()> {
        let reply = self.client.call(&self.queue, vec![b'x'; SMALL.0], PATIENCE).await?;
        ensure!(reply.body.len() == SMALL.0, "a foreign reply");
        Ok(())
    }
}

#[async_trait]
impl Ready for Caller {
    async fn run(&mut self, count: u64) -> Result<Duration> {
        let begun = Instant::now();
        let calls = stream::iter(0..count).map(|_| self.call()).buffer_unordered(self.window);
        calls.try_collect::<()>().await?;
        Ok(begun.elapsed())
    }
}

struct Connecting {
    url: String,
}

#[async_trait]
impl Ready for Connecting {
    async fn run(&mut self, count: u64) -> Result<Duration> {
        let begun = Instant::now();
        for _ in 0..count {
            let connections = ConnectionManager::new(self.url.parse()?);
            connections.channel("connect").await?;
            connections.close_all().await?;
        }
        Ok(begun.elapsed())
    }
}

struct Recovering {
    channel: Channel,
    messages: Consumer,
    queue: String,
}

#[async_trait]
impl Ready for Recovering {
    async fn run(&mut self, count: u64) -> Result<Duration> {
        let begun = Instant::now();
        for _ in 0..count {
            let mark = Uuid::new_v4().to_string();
            let to = BasicPublishArguments::new("", &self.queue);
            let publish = self.channel.publish_at_least_once(to, BasicProperties::default(), mark.as_str());
            let receive = async {
                loop {
                    let message = self.messages.try_next().await?.context("consuming ended")?;
                    let found = message.text() == mark;
                    message.ack().await?;
                    if found {
                        return anyhow::Ok(());
                    }
                }
            };
            tokio::try_join!(async { Ok(publish.await?) }, receive)?;
        }
        Ok(begun.elapsed())
    }
}
