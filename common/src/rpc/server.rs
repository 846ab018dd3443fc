//! The side that answers.

use std::{fmt::Display, future::Future, panic::AssertUnwindSafe, sync::Arc};

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicPublishArguments},
};
use futures_util::FutureExt;
use tokio::task::JoinSet;

use super::{TYPE_ERROR, TYPE_RESULT};
use crate::{Channel, Consumer, Delivery, Error, Message, Result, Setup};

/// Answers requests from a queue.
///
/// Every request with a `reply_to` gets a reply: the handler's result, or an error reply when it fails or panics. A
/// request is acknowledged after its reply is confirmed, so that a server which dies in between leaves it to another
/// one; the client may then see two replies.
///
/// ```no_run
/// use amqprs::channel::{BasicConsumeArguments, BasicQosArguments};
/// use common::{Message, Result, Setup, quorum_queue, rpc::RpcServer};
///
/// # async fn example(connections: common::ConnectionManager) -> Result<()> {
/// let server = RpcServer::new(&connections.channel("rpc_server").await?, requests).await?;
/// server.serve(double).await
/// # }
///
/// async fn requests(channel: Setup) -> Result<BasicConsumeArguments> {
///     channel.queue_declare(quorum_queue("rpc_queue")).await?;
///     channel.basic_qos(BasicQosArguments::new(0, 1, false)).await?;
///     Ok(BasicConsumeArguments::new("rpc_queue", ""))
/// }
///
/// async fn double(request: Message) -> Result<String, std::num::ParseIntError> {
///     let number: i64 = request.text().parse()?;
///     Ok((2 * number).to_string())
/// }
/// ```
pub struct RpcServer {
    channel: Channel,
    requests: Consumer,
}

impl RpcServer {
    /// Starts consuming requests, as `subscribe` says (with manual acknowledgement; its prefetch is the number of
    /// requests worked on at a time). Replies are published on `channel`.
    ///
    /// # Errors
    /// Those of [`Channel::consume`].
    pub async fn new<F, Fut>(channel: &Channel, subscribe: F) -> Result<Self>
    where
        F: Fn(Setup) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<BasicConsumeArguments>> + Send + 'static,
    {
        Ok(Self { channel: channel.clone(), requests: channel.consume(subscribe).await? })
    }

    /// Answers requests until this program closes the connection manager. Each runs in a task of its own.
    ///
    /// # Errors
    /// Why consuming ended for good.
    pub async fn serve<H, Fut, B, E>(mut self, handler: H) -> Result<()>
    where
        H: Fn(Message) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<B, E>> + Send + 'static,
        B: Into<Vec<u8>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let handler = Arc::new(handler);
        let mut working = JoinSet::new();
        while let Some(request) = self.requests.next().await? {
            // Forgets those that have ended.
            while working.try_join_next().is_some() {}
            working.spawn(answer(self.channel.clone(), request, handler.clone()));
        }
        working.join_all().await;
        Ok(())
    }
}

async fn answer<H, Fut, B, E>(channel: Channel, request: Delivery, handler: Arc<H>)
where
    H: Fn(Message) -> Fut,
    Fut: Future<Output = Result<B, E>>,
    B: Into<Vec<u8>>,
    E: Display,
{
    let (message, receipt) = request.split();
    let properties = message.properties.clone();
    let settled = match properties.reply_to() {
        None => {
            tracing::warn!("a request without `reply_to` cannot be answered and is thrown away");
            receipt.ack().await
        }
        Some(reply_to) => {
            let (kind, body) = match AssertUnwindSafe(async { handler(message).await }).catch_unwind().await {
                Ok(Ok(result)) => (TYPE_RESULT, result.into()),
                Ok(Err(error)) => (TYPE_ERROR, error.to_string().into_bytes()),
                Err(_) => (TYPE_ERROR, b"the server failed while it worked on this request".to_vec()),
            };
            let sent = match reply(&channel, reply_to, &properties, kind, body).await {
                // This reply cannot be sent, as one too large for the broker; a short one can.
                Err(error @ (Error::Closed { .. } | Error::Nacked | Error::Invalid(_))) => {
                    let reason = format!("the server could not send its reply: {error}");
                    reply(&channel, reply_to, &properties, TYPE_ERROR, reason.into_bytes()).await
                }
                sent => sent,
            };
            match sent {
                Ok(()) => receipt.ack().await,
                Err(error) => {
                    tracing::warn!("a reply could not be sent, so its request goes back to the queue: {error}");
                    receipt.nack(true).await
                }
            }
        }
    };
    if let Err(error) = settled {
        tracing::warn!("a request could not be settled: {error}");
    }
}

async fn reply(channel: &Channel, to: &str, request: &BasicProperties, kind: &str, body: Vec<u8>) -> Result<()> {
    let mut properties = BasicProperties::default();
    properties.with_message_type(kind);
    if let Some(id) = request.correlation_id() {
        properties.with_correlation_id(id);
    }
    // Not mandatory: a client that has gone needs no answer.
    channel.publish(BasicPublishArguments::new("", to), properties, body).await
}
