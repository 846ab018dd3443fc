//! The server side of RPC.

use std::{
    fmt::Display,
    future::{Future, pending},
    sync::Arc,
};

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicPublishArguments},
};

use super::{TYPE_ERROR, TYPE_RESULT};
use crate::{
    Channel, Consumer, Delivery, Error, Message, RemoteError, Result, SetupChannel,
    consumer::delivery::{Receipt, SettleMethod},
    session::publish::Outgoing,
    worker::{
        acks::Done,
        concurrent::{with_manual_ack, work},
        handler::run,
    },
};

/// Answers requests from a queue.
///
/// Every request with a `reply_to` gets a reply: the handler's result, or an error reply if the handler fails or
/// panics. A request is acknowledged after its reply is confirmed. So if a server dies in between, another one gets the
/// request; the client may then get two replies. The handler also runs for a request without `reply_to`, but its result
/// is discarded.
///
/// If a reply cannot be sent, its request goes back to the queue. On a quorum queue this may count towards a limit, as
/// does each server that dies with a request: see
/// [`ProcessOptions`](crate::ProcessOptions#how-often-a-message-may-come-back).
///
/// ```no_run
/// use amqprs::channel::{BasicConsumeArguments, BasicQosArguments};
/// use common::{Message, Result, SetupChannel, quorum_queue, rpc::RpcServer};
///
/// # async fn example(connections: common::ConnectionManager) -> Result<()> {
/// let server = RpcServer::new(&connections.channel("rpc_server").await?, requests).await?;
/// server.serve(double).await
/// # }
///
/// async fn requests(channel: SetupChannel) -> Result<BasicConsumeArguments> {
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
    /// Starts consuming requests. `subscribe` says from where, with manual acknowledgement. Its prefetch is the number
    /// of requests that are handled at the same time. Replies are published on `channel`.
    ///
    /// # Errors
    /// Those of [`Channel::consume`]; [`Invalid`](Error::Invalid) with automatic acknowledgement.
    pub async fn new<F, Fut>(channel: &Channel, subscribe: F) -> Result<Self>
    where
        F: Fn(SetupChannel) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<BasicConsumeArguments>> + Send + 'static,
    {
        let requests = channel.consume(with_manual_ack(subscribe)).await?;
        Ok(Self { channel: channel.clone(), requests })
    }

    /// Answers requests until this program closes the connection manager. Each runs in a task of its own.
    ///
    /// # Errors
    /// Why consuming ended for good.
    pub async fn serve<H, Fut, B, E>(self, handler: H) -> Result<()>
    where
        H: Fn(Message) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<B, E>> + Send + 'static,
        B: Into<Vec<u8>> + Send + 'static,
        E: Display + Send + 'static,
    {
        self.serve_until(handler, pending::<()>()).await
    }

    /// Answers requests until `stop` resolves. Then it takes no more requests, gives back those that it has not begun,
    /// and ends when the others are answered and acknowledged. Clients do not notice that this server has ended.
    ///
    /// `stop` can be any future. Its result does not matter.
    ///
    /// ```no_run
    /// # use common::{ConnectionManager, Message, Result, rpc::RpcServer};
    /// # async fn example(connections: ConnectionManager, server: RpcServer) -> Result<()> {
    /// # async fn double(request: Message) -> Result<String> { Ok(request.text()) }
    /// server.serve_until(double, tokio::signal::ctrl_c()).await?; // tokio's feature `signal`
    /// connections.close_all().await
    /// # }
    /// ```
    ///
    /// # Errors
    /// Why consuming ended for good.
    pub async fn serve_until<H, Fut, B, E>(self, handler: H, stop: impl Future) -> Result<()>
    where
        H: Fn(Message) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<B, E>> + Send + 'static,
        B: Into<Vec<u8>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let handler = Arc::new(handler);
        let answering = move |message| {
            let handler = handler.clone();
            async move {
                let outcome = handler(message).await;
                outcome.map(Into::into).map_err(|error| RemoteError::new("", error.to_string()))
            }
        };
        self.answer(text, answering, async { drop(stop.await) }).await
    }

    pub(super) async fn answer<H, Fut>(self, encode: Encode, handler: H, stop: impl Future<Output = ()>) -> Result<()>
    where
        H: Fn(Message) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<u8>, RemoteError>> + Send + 'static,
    {
        let Self { channel, requests } = self;
        let handler = Arc::new(handler);
        let reply = move |answer: Answer| answer.send(channel.clone(), encode);
        work(requests, stop, move |request| answer(request, encode, handler.clone()), reply).await
    }
}

/// Makes the body of a reply from the handler's result, and completes its properties. It gets the delivery mode of the
/// request.
pub(super) type Encode = fn(Result<Vec<u8>, RemoteError>, Option<u8>, &mut BasicProperties) -> Vec<u8>;

fn text(outcome: Result<Vec<u8>, RemoteError>, _: Option<u8>, _: &mut BasicProperties) -> Vec<u8> {
    outcome.unwrap_or_else(|error| error.message.into_bytes())
}

/// A request that the handler has finished.
struct Answer {
    caller: Caller,
    /// `None` if no reply was requested.
    reply: Option<Box<Outgoing>>,
    request: Receipt,
}

/// Where replies go, and how they are marked: what is needed of a request after its handler has run.
struct Caller {
    reply_to: Option<String>,
    correlation_id: Option<String>,
    delivery_mode: Option<u8>,
}

async fn answer<H, Fut>(request: Delivery, encode: Encode, handler: Arc<H>) -> Answer
where
    H: Fn(Message) -> Fut,
    Fut: Future<Output = Result<Vec<u8>, RemoteError>>,
{
    let (message, request) = request.split();
    let caller = Caller {
        reply_to: message.properties.reply_to().cloned(),
        correlation_id: message.properties.correlation_id().cloned(),
        delivery_mode: message.properties.delivery_mode(),
    };
    let panicked = || Err(RemoteError::new("Panic", "the server failed while it worked on this request"));
    let outcome = run(&*handler, message).await.unwrap_or_else(panicked);
    let reply = caller.reply(outcome, encode);
    Answer { caller, reply, request }
}

impl Caller {
    fn reply(&self, outcome: Result<Vec<u8>, RemoteError>, encode: Encode) -> Option<Box<Outgoing>> {
        let Some(reply_to) = &self.reply_to else {
            tracing::warn!("a request without `reply_to` cannot be answered; its result is discarded");
            return None;
        };
        let kind = if outcome.is_ok() { TYPE_RESULT } else { TYPE_ERROR };
        let mut properties = BasicProperties::default();
        properties.with_message_type(kind);
        if let Some(id) = &self.correlation_id {
            properties.with_correlation_id(id);
        }
        let body = encode(outcome, self.delivery_mode, &mut properties);
        // Not mandatory: a client that has ended needs no answer.
        Some(Outgoing::new(BasicPublishArguments::new("", reply_to), properties, body))
    }
}

impl Answer {
    /// Sends the reply. Then its request can be settled.
    async fn send(self, channel: Channel, encode: Encode) -> Done {
        let Self { caller, reply, request } = self;
        let sent = match send(&channel, reply).await {
            // This reply cannot be sent, for instance because it is too large for the broker. A short error reply can.
            Err(error) if is_permanent(&error) => {
                let reason = format!("the server could not send its reply: {error}");
                // In a box, because it is rare and as large as the first future.
                Box::pin(send(&channel, caller.reply(Err(RemoteError::new("ReplyError", reason)), encode))).await
            }
            sent => sent,
        };
        let how = match sent {
            Ok(()) => SettleMethod::Ack { multiple: false },
            Err(error) if is_permanent(&error) => {
                tracing::error!("a request cannot be answered and is rejected: {error}");
                SettleMethod::Reject { requeue: false }
            }
            Err(error) => {
                tracing::warn!("a reply could not be sent, so its request goes back to the queue: {error}");
                // The request did not cause this, so it must not count towards a quorum queue's delivery limit.
                SettleMethod::Nack { requeue: true }
            }
        };
        (request, how)
    }
}

/// Whether RabbitMQ, or this crate, can never accept this message.
fn is_permanent(error: &Error) -> bool {
    matches!(error, Error::Closed { .. } | Error::Nacked | Error::Invalid(_))
}

/// Publishes a reply. When this returns, it has arrived.
async fn send(channel: &Channel, reply: Option<Box<Outgoing>>) -> Result<()> {
    let Some(reply) = reply else { return Ok(()) };
    channel.send_confirmed(reply).await?.await
}
