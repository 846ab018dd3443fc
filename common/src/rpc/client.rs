//! The side that asks.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicPublishArguments, QueueDeclareArguments},
};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{TYPE_ERROR, calls::Calls};
use crate::{
    Channel, Consumer, Error, Message, RemoteError, Result, SetupChannel,
    channel::unconfirmed::SILENCE,
    deadline::SHORT_OF_RESOURCES,
    session::{confirms::ConfirmSender, publish::Outgoing},
};

/// Calls remote procedures and matches each reply to its call, by correlation id, on one reply queue.
///
/// Any number of calls may be on their way at once. Every call ends: with its own reply, or with an error when the
/// server answers with one, when nobody has declared the request queue, when the connection is lost, or when the
/// time is over. A late, foreign or second reply is logged and thrown away. Dropping a call leaves nothing behind.
///
/// ```no_run
/// # async fn example(connections: common::ConnectionManager) -> common::Result<()> {
/// use common::rpc::RpcClient;
/// use std::time::Duration;
///
/// let client = RpcClient::new(&connections.channel("rpc_client").await?).await?;
/// let reply = client.call("rpc_queue", "30", Duration::from_secs(10)).await?;
/// println!("fib(30) is {}", reply.display());
/// # Ok(())
/// # }
/// ```
pub struct RpcClient {
    channel: Channel,
    calls: Arc<Calls>,
    /// Requests have to go out on the AMQP channel that consumes the replies.
    direct: bool,
    _stop: DropGuard,
}

impl RpcClient {
    /// Replies come to a queue that is exclusive to this connection, another one after each loss. Requests are
    /// published on `channel`.
    ///
    /// # Errors
    /// Those of [`Channel::consume`].
    pub async fn new(channel: &Channel) -> Result<Self> {
        Self::start(channel, false, reply_queue).await
    }

    /// Replies come by [direct reply-to](https://www.rabbitmq.com/docs/direct-reply-to): RabbitMQ passes them on to this
    /// client without any queue, which saves one where clients come and go.
    ///
    /// Requests and replies share one AMQP channel: a request that RabbitMQ refuses, such as one over its size limit,
    /// ends all calls on their way.
    ///
    /// # Errors
    /// Those of [`Channel::consume`].
    pub async fn direct(channel: &Channel) -> Result<Self> {
        Self::start(channel, true, direct_reply_to).await
    }

    pub(super) async fn start<F, Fut>(channel: &Channel, direct: bool, replies: F) -> Result<Self>
    where
        F: Fn(SetupChannel) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<BasicConsumeArguments>> + Send + 'static,
    {
        let consumer = channel.consume(replies).await?;
        let (calls, stop) = (Arc::new(Calls::default()), CancellationToken::new());
        // Where the replies come in: one thread less for each of them to wake.
        channel.core.connection.spawn(receive_replies(consumer, calls.clone(), stop.clone()));
        Ok(Self { channel: channel.clone(), calls, direct, _stop: stop.drop_guard() })
    }

    /// Sends a request to the queue of that name and waits for its reply.
    ///
    /// The timeout is also the request's expiration: a server computes nothing for a caller that has left.
    /// While the connection is down the call waits for it.
    ///
    /// # Errors
    /// - [`Remote`](Error::Remote): the server answered with an error.
    /// - [`Unroutable`](Error::Unroutable): there is no such queue.
    /// - [`Timeout`](Error::Timeout): no reply in time. The text names the likely cause: no server, one that does not copy the
    ///   `correlation_id`, a RabbitMQ without memory, or no connection.
    /// - [`Lost`](Error::Lost), [`Unconfirmed`](Error::Unconfirmed): the connection was lost meanwhile; the server may or
    ///   may not have done the work.
    pub async fn call(&self, queue: &str, body: impl Into<Vec<u8>>, patience: Duration) -> Result<Message> {
        let properties = |_: &str, left| Ok(BasicProperties::default().with_expiration(&milliseconds(left)).finish());
        let reply = self.request(queue, body.into(), patience, properties).await?;
        match reply.properties.message_type().map(String::as_str) {
            Some(TYPE_ERROR) => Err(Error::Remote(RemoteError::new("", reply.text()))),
            _ => Ok(reply),
        }
    }

    /// How many calls are waiting for their reply.
    ///
    /// ```no_run
    /// # fn example(client: common::rpc::RpcClient) {
    /// println!("{} calls are waiting", client.pending());
    /// # }
    /// ```
    pub fn pending(&self) -> usize {
        self.calls.len()
    }

    /// Sends a request and waits for its reply, whatever that says. `properties` is told the reply queue's name, and how
    /// much of the patience is left.
    pub(super) async fn request(
        &self,
        queue: &str,
        body: Vec<u8>,
        patience: Duration,
        properties: impl FnOnce(&str, Duration) -> Result<BasicProperties>,
    ) -> Result<Message> {
        let since = Instant::now();
        let foreign = self.calls.foreign();
        let mut sent = None;
        let exchange = async {
            let mut call = self.calls.register().await?;
            let mut properties = properties(&call.reply_to, patience.saturating_sub(since.elapsed()))?;
            properties.with_reply_to(&call.reply_to).with_correlation_id(&call.id.to_string());
            let to = BasicPublishArguments::new("", queue).mandatory(true).finish();
            let (calls, id) = (self.calls.clone(), call.id);
            // A call that gets its reply need not be woken for the confirm before it.
            let failed = ConfirmSender::Failure(Box::new(move |error| calls.fail(&id, error)));
            let (replies_on, request) = (call.session.clone(), Outgoing::new(to, properties, body));
            let asked = async {
                if self.direct {
                    let session = replies_on.upgrade().ok_or(Error::lost("the reply channel went with it"))?;
                    self.channel.send_on(&session, Some(failed), request).await
                } else {
                    self.channel.send(Some(failed), request).await
                }
            };
            // The reply queue may go while the request waits for a connection.
            tokio::select! {
                biased;
                reply = &mut call.reply => reply,
                asked = asked => {
                    sent = Some(asked?);
                    (&mut call.reply).await
                }
            }
            .unwrap_or(Err(Error::Shutdown("RPC client")))
        };
        timeout(patience, exchange).await.unwrap_or_else(|_| {
            let reason = match (self.calls.foreign() - foreign, sent) {
                (0, None) => self.why_not_sent(),
                (0, Some(session)) if session.pending_confirms.is_silent_for(SILENCE.min(patience / 2)) => {
                    format!("the request is not even confirmed: {SHORT_OF_RESOURCES}")
                }
                (0, Some(_)) => "is a server running, and not too busy?".into(),
                (count, _) => format!(
                    "meanwhile {count} came without a request's `correlation_id`: the server has to copy it into its reply"
                ),
            };
            Err(Error::Timeout { doing: format!("the call to queue `{queue}` failed"), after: patience, reason })
        })
    }

    fn why_not_sent(&self) -> String {
        match self.channel.core.timed_out("") {
            Error::Timeout { reason, .. } if !reason.is_empty() => format!("the request was not sent: {reason}"),
            _ => "the request was not sent: RabbitMQ takes no messages".into(),
        }
    }
}

/// A duration as a message's expiration, rounded up.
pub(super) fn milliseconds(duration: Duration) -> String {
    duration.as_nanos().div_ceil(1_000_000).clamp(1, u128::from(u32::MAX)).to_string()
}

async fn reply_queue(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;
    Ok(BasicConsumeArguments::new(&queue.name, "").auto_ack(true).finish())
}

/// RabbitMQ wants this subscription on the AMQP channel that will publish the requests, before them, and without
/// acknowledgement.
async fn direct_reply_to(channel: SetupChannel) -> Result<BasicConsumeArguments> {
    channel.confirm_select().await?;
    Ok(BasicConsumeArguments::new("amq.rabbitmq.reply-to", "").auto_ack(true).finish())
}

async fn receive_replies(mut consumer: Consumer, calls: Arc<Calls>, stop: CancellationToken) {
    let mut current = consumer.current_subscription();
    let mut stopped = pin!(stop.cancelled());
    calls.renew(current.borrow_and_update().clone());
    let reason = loop {
        tokio::select! {
            // What has come before a loss is still an answer.
            biased;
            () = &mut stopped => return,
            reply = consumer.try_next() => match reply {
                Ok(Some(reply)) => calls.answer(reply),
                Ok(None) => break Error::Shutdown("connection manager"),
                Err(error) => break error,
            },
            _ = current.changed() => calls.renew(current.borrow_and_update().clone()),
        }
    };
    calls.end(reason);
}
