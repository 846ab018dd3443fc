//! The client side of RPC.

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
/// Many calls may be in progress at the same time. Every call ends: with its own reply, or with an error if the server
/// answers with an error, if the request queue does not exist, if the connection is lost, or if the timeout is over. A
/// late, foreign or second reply is logged and ignored. Dropping a call leaves nothing behind.
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
    /// Requests must be sent on the AMQP channel that consumes the replies.
    direct: bool,
    _stop: DropGuard,
}

impl RpcClient {
    /// Replies come to a queue that is exclusive to this connection. After each loss it is a new queue. Requests are
    /// published on `channel`.
    ///
    /// # Errors
    /// Those of [`Channel::consume`].
    pub async fn new(channel: &Channel) -> Result<Self> {
        Self::start(channel, false, reply_queue).await
    }

    /// Replies come by [direct reply-to](https://www.rabbitmq.com/docs/direct-reply-to): RabbitMQ passes them to this
    /// client without a queue. This saves a queue where clients come and go.
    ///
    /// Requests and replies share one AMQP channel. So if RabbitMQ refuses a request, for instance one over its size
    /// limit, all calls in progress end.
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
        // The task runs where the replies arrive, so that one thread less has to be woken for each of them.
        channel.core.connection.spawn(receive_replies(consumer, calls.clone(), stop.clone()));
        Ok(Self { channel: channel.clone(), calls, direct, _stop: stop.drop_guard() })
    }

    /// Sends a request to the queue with this name and waits for its reply.
    ///
    /// The timeout is also the request's expiration, so that a server computes nothing for a caller that has left.
    /// While the connection is down, the call waits for it.
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

    /// How many calls wait for their reply.
    ///
    /// ```no_run
    /// # fn example(client: common::rpc::RpcClient) {
    /// println!("{} calls are waiting", client.pending());
    /// # }
    /// ```
    pub fn pending(&self) -> usize {
        self.calls.len()
    }

    /// Sends a request and waits for its reply of any kind. `properties` gets the name of the reply queue and the
    /// remaining time.
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
            // A caller that gets its reply need not be woken for the confirm before it.
            let failed = ConfirmSender::Failure(Box::new(move |error| calls.fail(&id, error)));
            let (replies_on, mut request) = (call.session.clone(), Outgoing::new(to, properties, body));
            request.has_unique_id = true;
            let asked = async {
                if self.direct {
                    let session = replies_on.upgrade().ok_or(Error::lost("the reply channel went with it"))?;
                    self.channel.send_on(&session, Some(failed), request).await
                } else {
                    self.channel.send(Some(failed), request).await
                }
            };
            // The reply queue may be lost while the request waits for a connection.
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

/// RabbitMQ requires this subscription on the AMQP channel that publishes the requests, before them, and without
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
            // A reply that came before a loss is still an answer.
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
