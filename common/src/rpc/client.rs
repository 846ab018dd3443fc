//! The side that asks.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicPublishArguments, QueueDeclareArguments},
};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::TYPE_ERROR;
use crate::{Channel, Consumer, Delivery, Error, Message, Result, Setup};

/// Calls remote procedures and matches each reply to its call, by correlation id, on one reply queue.
///
/// Any number of calls may be on their way at once. Every call ends: with its own reply, or with an error when the
/// server answers with one, when nobody has declared the request queue, when the connection is lost, or when the
/// time is over. A late or foreign reply is logged and thrown away.
///
/// ```no_run
/// # async fn example(connections: common::ConnectionManager) -> common::Result<()> {
/// use common::rpc::RpcClient;
/// use std::time::Duration;
///
/// let client = RpcClient::new(&connections.channel("rpc_client").await?).await?;
/// let reply = client.call("rpc_queue", "30", Duration::from_secs(10)).await?;
/// println!("fib(30) is {}", reply.text());
/// # Ok(())
/// # }
/// ```
pub struct RpcClient {
    channel: Channel,
    calls: Arc<Calls>,
    _stop: DropGuard,
}

/// The calls on their way.
#[derive(Default)]
struct Calls {
    pending: Mutex<Pending>,
    /// Told when there is another reply queue.
    renewed: Notify,
}

#[derive(Default)]
struct Pending {
    /// Where replies come to at present; calls made for an earlier queue have failed.
    reply_queue: Option<String>,
    waiting: HashMap<String, oneshot::Sender<Result<Message>>>,
    /// Why there will never be another reply.
    ended: Option<Error>,
}

impl RpcClient {
    /// Declares a reply queue, exclusive to this connection, and consumes from it. Requests are published on
    /// `channel`.
    ///
    /// # Errors
    /// Those of [`Channel::consume`].
    pub async fn new(channel: &Channel) -> Result<Self> {
        let consumer = channel.consume(reply_queue).await?;
        let calls = Arc::new(Calls::default());
        let stop = CancellationToken::new();
        tokio::spawn(receive_replies(consumer, calls.clone(), stop.clone()));
        Ok(Self { channel: channel.clone(), calls, _stop: stop.drop_guard() })
    }

    /// Sends a request to the queue of that name and waits for its reply.
    ///
    /// The timeout is also the request's expiration: a server that comes too late does not work for nobody.
    /// Dropping the call leaves nothing behind.
    ///
    /// # Errors
    /// - [`Remote`](Error::Remote): the server answered with an error.
    /// - [`Unroutable`](Error::Unroutable): there is no such queue.
    /// - [`Timeout`](Error::Timeout): no reply in time.
    /// - [`Lost`](Error::Lost), [`Unconfirmed`](Error::Unconfirmed): the connection was lost meanwhile; the server may or
    ///   may not have done the work.
    pub async fn call(&self, queue: &str, body: impl Into<Vec<u8>>, patience: Duration) -> Result<Message> {
        let exchange = self.exchange(queue, body.into(), patience);
        timeout(patience, exchange).await.unwrap_or_else(|_| {
            Err(Error::Timeout {
                doing: format!("the call to queue `{queue}` failed"),
                after: patience,
                reason: "is a server running, and not too busy?".into(),
            })
        })
    }

    /// How many calls are waiting for their reply.
    pub fn pending(&self) -> usize {
        self.calls.lock().waiting.len()
    }

    async fn exchange(&self, queue: &str, body: Vec<u8>, patience: Duration) -> Result<Message> {
        let call = self.register().await?;
        let request = BasicPublishArguments::new("", queue).mandatory(true).finish();
        let properties = BasicProperties::default()
            .with_reply_to(&call.reply_queue)
            .with_correlation_id(&call.id)
            .with_expiration(&patience.as_millis().clamp(1, u128::from(u32::MAX)).to_string())
            .finish();
        let confirm = self.channel.enqueue(request, properties, body).await?;
        let Call { mut reply, guard: _guard, .. } = call;
        // A fast server's reply overtakes the confirm, and is worth more.
        let reply = tokio::select! {
            biased;
            reply = &mut reply => reply,
            confirmed = confirm => {
                confirmed?;
                reply.await
            }
        };
        let message = reply.unwrap_or(Err(Error::Shutdown("RPC client")))?;
        match message.properties.message_type().map(String::as_str) {
            Some(TYPE_ERROR) => Err(Error::Remote(message.text())),
            _ => Ok(message),
        }
    }

    /// A new call, as soon as there is a reply queue.
    async fn register(&self) -> Result<Call<'_>> {
        let id = Uuid::new_v4().to_string();
        loop {
            // Listens before it looks.
            let renewed = self.calls.renewed.notified();
            {
                let mut pending = self.calls.lock();
                if let Some(reason) = &pending.ended {
                    return Err(reason.clone());
                }
                if let Some(reply_queue) = pending.reply_queue.clone() {
                    let (sender, reply) = oneshot::channel();
                    pending.waiting.insert(id.clone(), sender);
                    let guard = Forget { calls: &self.calls, id: id.clone() };
                    return Ok(Call { id, reply_queue, reply, guard });
                }
            }
            renewed.await;
        }
    }
}

struct Call<'a> {
    id: String,
    reply_queue: String,
    reply: oneshot::Receiver<Result<Message>>,
    guard: Forget<'a>,
}

/// Takes a call out of the map however it ends.
struct Forget<'a> {
    calls: &'a Calls,
    id: String,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.calls.lock().waiting.remove(&self.id);
    }
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, reply: Delivery) {
        let (message, _) = reply.split();
        let id = message.properties.correlation_id().cloned().unwrap_or_default();
        match self.lock().waiting.remove(&id) {
            Some(caller) => {
                let _ = caller.send(Ok(message));
            }
            None => tracing::info!("a reply for no call of ours is thrown away (correlation id {id:?})"),
        }
    }

    /// The reply queue is another one, or none: nobody will answer the calls made before.
    fn renew(&self, reply_queue: Option<String>) {
        let mut pending = self.lock();
        if pending.reply_queue == reply_queue {
            return;
        }
        pending.reply_queue = reply_queue;
        pending.fail_all(&Error::lost("the reply queue went with it"));
        self.renewed.notify_waiters();
    }

    fn end(&self, reason: Error) {
        let mut pending = self.lock();
        pending.fail_all(&reason);
        pending.ended = Some(reason);
        self.renewed.notify_waiters();
    }
}

impl Pending {
    fn fail_all(&mut self, reason: &Error) {
        for (_, caller) in self.waiting.drain() {
            let _ = caller.send(Err(reason.clone()));
        }
    }
}

async fn reply_queue(channel: Setup) -> Result<BasicConsumeArguments> {
    let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;
    Ok(BasicConsumeArguments::new(&queue.name, "").auto_ack(true).finish())
}

async fn receive_replies(mut consumer: Consumer, calls: Arc<Calls>, stop: CancellationToken) {
    let mut queue = consumer.queue_changes();
    let reason = loop {
        calls.renew(queue.borrow_and_update().clone());
        tokio::select! {
            () = stop.cancelled() => return,
            _ = queue.changed() => {}
            reply = consumer.next() => match reply {
                Ok(Some(reply)) => calls.answer(reply),
                Ok(None) => break Error::Shutdown("connection manager"),
                Err(error) => break error,
            }
        }
    };
    calls.end(reason);
}
