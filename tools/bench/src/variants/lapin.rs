//! lapin at its fastest: awaits confirms with `buffered`, takes deliveries as a stream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueDeclareOptions,
    },
    types::{FieldTable, ShortString},
};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::Ready;
use crate::work::{Publishing, Reply, SMALL, Work};

pub async fn prepare(work: &Work, url: &str, name: &str) -> Result<Box<dyn Ready>> {
    if let Some(publishing) = work.publishing(name) {
        let (connection, channel) = open(url).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        return Ok(Box::new(Publisher { _connection: connection, channel, publishing }));
    }
    Ok(match *work {
        Work::Consume { prefetch } => {
            let (connection, channel) = open(url).await?;
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            Box::new(Consuming { _connection: connection, channel, queue: name.into() })
        }
        Work::Rpc { window, reply } => {
            let server = serve(url, name, window).await?;
            Box::new(Caller { _server: server, client: Client::new(url, name, reply).await?, window })
        }
        Work::Connect => Box::new(Connecting { url: url.to_owned() }),
        _ => bail!("lapin is not asked to recover"),
    })
}

/// Returns the connection, too, because it closes when it is dropped.
async fn open(url: &str) -> Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

async fn consume(channel: &Channel, queue: &ShortString, no_ack: bool) -> Result<Consumer> {
    let options = BasicConsumeOptions { no_ack, ..BasicConsumeOptions::default() };
    Ok(channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default()).await?)
}

struct Publisher {
    _connection: Connection,
    channel: Channel,
    publishing: Publishing,
}

#[async_trait]
impl Ready for Publisher {
    async fn run(&mut self, count: u64) -> Result<Duration> {
        let Publishing { exchange, routing_key, body, window } = &self.publishing;
        let (exchange, routing_key) = (ShortString::from(exchange.as_str()), ShortString::from(routing_key.as_str()));
        let publish = async |_| {
            let (exchange, routing_key) = (exchange.clone(), routing_key.clone());
            let properties = BasicProperties::default();
            let sent =
                self.channel.basic_publish(exchange, routing_key, BasicPublishOptions::default(), body, properties);
            ensure!(sent.await?.await?.is_ack(), "a message was not confirmed");
            Ok(())
        };
        let begun = Instant::now();
        stream::iter(0..count).map(publish).buffered(*window).try_collect::<()>().await?;
        Ok(begun.elapsed())
    }
}

struct Consuming {
    _connection: Connection,
    channel: Channel,
    queue: ShortString,
}

#[async_trait]
impl Ready for Consuming {
    async fn run(&mut self, count: u64) -> Result<Duration> {
        let mut messages = consume(&self.channel, &self.queue, false).await?;
        let mut begun = None;
        for _ in 0..count {
            let message = messages.next().await.context("consuming ended")??;
            let _ = begun.get_or_insert_with(Instant::now);
            ensure!(message.data.len() == SMALL.0, "a foreign message");
            message.ack(BasicAckOptions::default()).await?;
        }
        let elapsed = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        self.channel.basic_cancel(messages.tag(), BasicCancelOptions::default()).await?;
        Ok(elapsed)
    }
}

/// Sends each request back as its reply, without a confirm. Then acknowledges the request.
async fn serve(url: &str, queue: &str, window: usize) -> Result<Connection> {
    let (connection, channel) = open(url).await?;
    channel.basic_qos(u16::try_from(window)?, BasicQosOptions::default()).await?;
    let mut requests = consume(&channel, &queue.into(), false).await?;
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let request = request?;
            let to = request.properties.reply_to().clone().context("nowhere to reply to")?;
            let id = request.properties.correlation_id().clone().context("no correlation id")?;
            send(&channel, to, &request.data, BasicProperties::default().with_correlation_id(id)).await?;
            request.ack(BasicAckOptions::default()).await?;
        }
        anyhow::Ok(())
    });
    Ok(connection)
}

/// Publishes without waiting for a confirm.
async fn send(channel: &Channel, to: ShortString, body: &[u8], properties: BasicProperties) -> Result<()> {
    drop(channel.basic_publish("".into(), to, BasicPublishOptions::default(), body, properties).await?);
    Ok(())
}

type Calls = Arc<Mutex<HashMap<String, oneshot::Sender<usize>>>>;

struct Client {
    _connection: Connection,
    channel: Channel,
    calls: Calls,
    queue: ShortString,
    reply_to: ShortString,
}

impl Client {
    async fn new(url: &str, queue: &str, reply: Reply) -> Result<Self> {
        let (connection, channel) = open(url).await?;
        let reply_to = match reply {
            Reply::Direct => "amq.rabbitmq.reply-to".into(),
            Reply::Callback => {
                let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
                channel.queue_declare("".into(), exclusive, FieldTable::default()).await?.name().clone()
            }
        };
        let mut replies = consume(&channel, &reply_to, true).await?;
        let calls = Calls::default();
        let waiting = calls.clone();
        tokio::spawn(async move {
            while let Some(Ok(reply)) = replies.next().await {
                let id = reply.properties.correlation_id().as_ref().map(ShortString::as_str).unwrap_or_default();
                if let Some(caller) = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(id) {
                    let _ = caller.send(reply.data.len());
                }
            }
        });
        Ok(Self { _connection: connection, channel, calls, queue: queue.into(), reply_to })
    }

    async fn call(&self) -> Result<()> {
        let id = Uuid::new_v4().to_string();
        let (sender, reply) = oneshot::channel();
        let properties =
            BasicProperties::default().with_reply_to(self.reply_to.clone()).with_correlation_id(id.as_str().into());
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        send(&self.channel, self.queue.clone(), &[b'x'; SMALL.0], properties).await?;
        ensure!(reply.await? == SMALL.0, "a foreign reply");
        Ok(())
    }
}

struct Caller {
    _server: Connection,
    client: Client,
    window: usize,
}

#[async_trait]
impl Ready for Caller {
    async fn run(&mut self, count: u64) -> Result<Duration> {
        let begun = Instant::now();
        let calls = stream::iter(0..count).map(|_| self.client.call()).buffer_unordered(self.window);
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
            let (connection, channel) = open(&self.url).await?;
            channel.close(200, "".into()).await?;
            connection.close(200, "".into()).await?;
        }
        Ok(begun.elapsed())
    }
}
