//! amqprs alone, for comparison. This is what it takes to use it correctly, and nothing more. It does not recover, and
//! has no deadlines.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use amqprs::{
    Ack, BasicProperties, Cancel, CloseChannel, Nack, Return,
    callbacks::ChannelCallback,
    channel::{
        BasicAckArguments, BasicCancelArguments, BasicConsumeArguments, BasicPublishArguments, BasicQosArguments,
        Channel, ConfirmSelectArguments, ConsumerMessage, QueueDeclareArguments,
    },
    connection::{Connection, OpenConnectionArguments},
};
use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::Ready;
use crate::{
    url::Address,
    work::{Publishing, Reply, SMALL, Work},
};

pub async fn prepare(work: &Work, url: &str, name: &str, confirming: bool) -> Result<Box<dyn Ready>> {
    let address = Address::parse(url)?;
    if let Some(publishing) = work.publishing(name) {
        return Ok(Box::new(Publisher::new(&address, publishing).await?));
    }
    Ok(match *work {
        Work::Consume { prefetch } => {
            let (connection, channel) = open(&address).await?;
            channel.basic_qos(BasicQosArguments::new(0, prefetch, false)).await?;
            Box::new(Consumer { _connection: connection, channel, queue: name.to_owned() })
        }
        Work::Rpc { window, reply } => {
            let server = Server::start(&address, name, window, confirming).await?;
            let client = Client::new(&address, name, reply, confirming).await?;
            Box::new(Caller { _server: server, client, window })
        }
        Work::Connect => Box::new(Connecting { address }),
        _ => bail!("amqprs does not recover"),
    })
}

async fn connect(address: &Address) -> Result<Connection> {
    let mut arguments = OpenConnectionArguments::new(&address.host, address.port, &address.user, &address.password);
    arguments.virtual_host(&address.virtual_host);
    Ok(Connection::open(&arguments).await?)
}

/// Returns the connection, too, because it closes when it is dropped.
async fn open(address: &Address) -> Result<(Connection, Channel)> {
    let connection = connect(address).await?;
    let channel = connection.open_channel(None).await?;
    Ok((connection, channel))
}

/// Switches publisher confirms on.
async fn confirms(channel: &Channel) -> Result<Arc<Confirms>> {
    let confirms = Arc::new(Confirms::default());
    channel.register_callback(Callback(confirms.clone())).await?;
    channel.confirm_select(ConfirmSelectArguments::default()).await?;
    Ok(confirms)
}

struct Publisher {
    _connection: Connection,
    channel: Channel,
    confirms: Arc<Confirms>,
    /// Held while a message gets its number and is published, because the broker numbers messages in the order in which
    /// they arrive.
    turn: tokio::sync::Mutex<()>,
    publishing: Publishing,
    to: BasicPublishArguments,
}

impl Publisher {
    async fn new(address: &Address, publishing: Publishing) -> Result<Self> {
        let (connection, channel) = open(address).await?;
        let confirms = confirms(&channel).await?;
        let to = BasicPublishArguments::new(&publishing.exchange, &publishing.routing_key);
        Ok(Self { _connection: connection, channel, confirms, turn: tokio::sync::Mutex::default(), publishing, to })
    }

    async fn publish(&self) -> Result<()> {
        let confirm = {
            let _turn = self.turn.lock().await;
            let confirm = self.confirms.register();
            let (body, to) = (self.publishing.body.clone(), self.to.clone());
            self.channel.basic_publish(BasicProperties::default(), body, to).await?;
            confirm
        };
        confirm.await.context("a message was not confirmed")
    }
}

#[async_trait]
impl Ready for Publisher {
    async fn run(&mut self, count: u64) -> Result<Duration> {
        let begun = Instant::now();
        let messages = stream::iter(0..count).map(|_| self.publish()).buffered(self.publishing.window);
        messages.try_collect::<()>().await?;
        Ok(begun.elapsed())
    }
}

/// Who waits for the confirm of which number. Acks come in any order, and often for many messages at once.
#[derive(Default)]
struct Confirms(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    /// The number of the first message in `senders`, minus one.
    settled: u64,
    senders: VecDeque<Option<oneshot::Sender<()>>>,
}

impl Confirms {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.lock().senders.push_back(Some(sender));
        receiver
    }

    fn settle(&self, number: u64, multiple: bool) {
        let mut waiting = self.lock();
        if !multiple {
            let index = number.checked_sub(waiting.settled + 1).and_then(|index| usize::try_from(index).ok());
            if let Some(sender) = index.and_then(|index| waiting.senders.get_mut(index)?.take()) {
                let _ = sender.send(());
            }
        }
        while let Some(first) = waiting.senders.front() {
            if first.is_some() && !(multiple && waiting.settled < number) {
                break;
            }
            waiting.settled += 1;
            if let Some(sender) = waiting.senders.pop_front().flatten() {
                let _ = sender.send(());
            }
        }
    }
}

struct Callback(Arc<Confirms>);

#[async_trait]
impl ChannelCallback for Callback {
    async fn close(&mut self, _: &Channel, _: CloseChannel) -> Result<(), amqprs::error::Error> {
        Ok(())
    }
    async fn cancel(&mut self, _: &Channel, _: Cancel) -> Result<(), amqprs::error::Error> {
        Ok(())
    }
    async fn flow(&mut self, _: &Channel, active: bool) -> Result<bool, amqprs::error::Error> {
        Ok(active)
    }
    async fn publish_ack(&mut self, _: &Channel, ack: Ack) {
        self.0.settle(ack.delivery_tag(), ack.mutiple());
    }
    async fn publish_nack(&mut self, _: &Channel, _: Nack) {
        // Tells all that wait that no confirm will come.
        self.0.lock().senders.clear();
    }
    async fn publish_return(&mut self, _: &Channel, _: Return, _: BasicProperties, _: Vec<u8>) {}
}

struct Consumer {
    _connection: Connection,
    channel: Channel,
    queue: String,
}

#[async_trait]
impl Ready for Consumer {
    async fn run(&mut self, count: u64) -> Result<Duration> {
        let (tag, mut messages) = self.channel.basic_consume_rx(BasicConsumeArguments::new(&self.queue, "")).await?;
        let mut begun = None;
        for _ in 0..count {
            let (message, _, body) = parts(messages.recv().await)?;
            let _ = begun.get_or_insert_with(Instant::now);
            ensure!(body.len() == SMALL.0, "a foreign message");
            self.channel.basic_ack(BasicAckArguments::new(message.delivery_tag(), false)).await?;
        }
        let elapsed = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        self.channel.basic_cancel(BasicCancelArguments::new(&tag)).await?;
        Ok(elapsed)
    }
}

fn parts(message: Option<ConsumerMessage>) -> Result<(amqprs::Deliver, BasicProperties, Vec<u8>)> {
    let ConsumerMessage { deliver, basic_properties, content, .. } = message.context("consuming ended")?;
    Ok((deliver.context("no delivery")?, basic_properties.context("no properties")?, content.context("no body")?))
}

/// Sends each request back as its reply. Acknowledges it at once, or when the reply is confirmed.
struct Server {
    _connection: Connection,
}

impl Server {
    async fn start(address: &Address, queue: &str, window: usize, confirming: bool) -> Result<Self> {
        let (connection, channel) = open(address).await?;
        let confirms = if confirming { Some(confirms(&channel).await?) } else { None };
        channel.basic_qos(BasicQosArguments::new(0, u16::try_from(window)?, false)).await?;
        let (_, requests) = channel.basic_consume_rx(BasicConsumeArguments::new(queue, "")).await?;
        tokio::spawn(serve(channel, requests, confirms));
        Ok(Self { _connection: connection })
    }
}

async fn serve(
    channel: Channel,
    mut requests: mpsc::UnboundedReceiver<ConsumerMessage>,
    confirms: Option<Arc<Confirms>>,
) -> Result<()> {
    let mut unconfirmed = FuturesUnordered::new();
    loop {
        let request = tokio::select! {
            request = requests.recv() => request,
            Some(tag) = unconfirmed.next() => {
                channel.basic_ack(BasicAckArguments::new(tag?, false)).await?;
                continue;
            }
        };
        let (request, properties, body) = parts(request)?;
        let to = properties.reply_to().context("nowhere to reply to")?;
        let id = properties.correlation_id().context("no correlation id")?;
        let reply = BasicProperties::default().with_correlation_id(id).finish();
        let confirm = confirms.as_ref().map(|confirms| confirms.register());
        channel.basic_publish(reply, body, BasicPublishArguments::new("", to)).await?;
        let tag = request.delivery_tag();
        match confirm {
            Some(confirm) => unconfirmed.push(async move { confirm.await.map(|()| tag) }),
            None => channel.basic_ack(BasicAckArguments::new(tag, false)).await?,
        }
    }
}

type Calls = Arc<Mutex<HashMap<String, oneshot::Sender<Vec<u8>>>>>;

struct Client {
    _connection: Connection,
    channel: Channel,
    confirms: Option<Arc<Confirms>>,
    turn: tokio::sync::Mutex<()>,
    calls: Calls,
    queue: String,
    reply_to: String,
}

impl Client {
    async fn new(address: &Address, queue: &str, reply: Reply, confirming: bool) -> Result<Self> {
        let (connection, channel) = open(address).await?;
        let confirms = if confirming { Some(confirms(&channel).await?) } else { None };
        let reply_to = match reply {
            Reply::Direct => "amq.rabbitmq.reply-to".to_owned(),
            Reply::Callback => {
                let declared = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;
                declared.context("the broker named no queue")?.0
            }
        };
        let consume = BasicConsumeArguments::new(&reply_to, "").auto_ack(true).finish();
        let (_, replies) = channel.basic_consume_rx(consume).await?;
        let calls = Calls::default();
        tokio::spawn(take_replies(replies, calls.clone()));
        let turn = tokio::sync::Mutex::default();
        Ok(Self { _connection: connection, channel, confirms, turn, calls, queue: queue.to_owned(), reply_to })
    }

    async fn call(&self) -> Result<()> {
        let id = Uuid::new_v4().to_string();
        let (sender, reply) = oneshot::channel();
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), sender);
        let request = BasicProperties::default().with_reply_to(&self.reply_to).with_correlation_id(&id).finish();
        let to = BasicPublishArguments::new("", &self.queue);
        let unconfirmed = {
            let _turn = self.turn.lock().await;
            let confirm = self.confirms.as_ref().map(|confirms| confirms.register());
            self.channel.basic_publish(request, vec![b'x'; SMALL.0], to).await?;
            confirm
        };
        // The reply shows that the request has arrived.
        drop(unconfirmed);
        ensure!(reply.await?.len() == SMALL.0, "a foreign reply");
        Ok(())
    }
}

async fn take_replies(mut replies: mpsc::UnboundedReceiver<ConsumerMessage>, calls: Calls) -> Result<()> {
    loop {
        let (_, properties, body) = parts(replies.recv().await)?;
        let id = properties.correlation_id().context("no correlation id")?;
        if let Some(caller) = calls.lock().unwrap_or_else(PoisonError::into_inner).remove(id) {
            let _ = caller.send(body);
        }
    }
}

struct Caller {
    _server: Server,
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
    address: Address,
}

#[async_trait]
impl Ready for Connecting {
    async fn run(&mut self, count: u64) -> Result<Duration> {
        let begun = Instant::now();
        for _ in 0..count {
            let (connection, channel) = open(&self.address).await?;
            channel.close().await?;
            connection.close().await?;
        }
        Ok(begun.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::Confirms;

    #[test]
    fn acks_that_come_out_of_order_reach_the_right_messages() {
        let confirms = Confirms::default();
        let mut waiting: Vec<_> = (0..6).map(|_| confirms.register()).collect();
        // The order in which RabbitMQ sends: 2, 4, then 3 and all before it.
        let acks: [(u64, bool, &[usize]); 4] =
            [(2, false, &[2]), (4, false, &[4]), (3, true, &[1, 3]), (6, false, &[6])];
        for (number, multiple, confirmed) in acks {
            confirms.settle(number, multiple);
            for number in confirmed {
                assert!(waiting[number - 1].try_recv().is_ok(), "{number}");
            }
        }
        assert!(waiting[4].try_recv().is_err());
        confirms.settle(5, false);
        assert!(waiting[4].try_recv().is_ok() && confirms.lock().senders.is_empty());
    }
}
