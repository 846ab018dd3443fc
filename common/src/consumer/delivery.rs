//! A message as it was delivered, and its settlement.

use std::{
    fmt,
    future::Future,
    ops::Deref,
    sync::{Arc, Weak, atomic::Ordering},
};

use amqprs::{
    BasicProperties,
    channel::{
        BasicAckArguments, BasicNackArguments, BasicRejectArguments, Channel as RawChannel, ConsumerMessage, GetMessage,
    },
};
use serde::de::DeserializeOwned;

use crate::{
    Cause, Error, Escaped, Result,
    deadline::{by, reads_nothing},
    encoding::headers::Shown,
    escaped,
    session::Session,
};

/// A message from a queue: its body, its properties, and how it was delivered.
///
/// The properties never contain a header in which tables and arrays are nested deeper than 64 levels, because copying
/// or dropping it could overflow the stack of a thread. Such a header is removed, and a warning names it. The rest of
/// the message is unchanged.
#[derive(Debug, Clone)]
pub struct Message {
    /// The body, as it was published.
    pub body: Vec<u8>,
    /// The fourteen properties, as far as they were set.
    pub properties: BasicProperties,
    /// The exchange that it was published to. Empty for the default exchange.
    pub exchange: String,
    /// The routing key it was published with.
    pub routing_key: String,
    /// Whether it was delivered before, perhaps to another consumer, and not acknowledged.
    pub redelivered: bool,
    /// Its number on the channel, by which it is settled.
    pub delivery_tag: u64,
    /// The consumer it was delivered to; empty for a message fetched by `get`.
    pub consumer_tag: String,
}

impl Message {
    /// The body for people, on one line. Characters that control a terminal are [`escaped`], also line breaks and tabs.
    ///
    /// ```no_run
    /// # fn example(message: common::Message) {
    /// println!(" [x] Received {}", message.display());
    /// # }
    /// ```
    pub fn display(&self) -> Escaped<'_> {
        escaped(&self.body)
    }

    /// The body as text, to work with. Bytes that are not UTF-8 appear as `\u{fffd}`. To print it, use
    /// [`display`](Self::display), because a stranger's text may control the terminal.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// [`Error::Other`] when it is not the JSON of a `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| Error::Other {
            reason: format!("the body is not the expected JSON: {error}"),
            source: Some(Cause::new(error)),
        })
    }

    /// Everything about the message except its body, for people: one `name: value` in each line. Texts are in quotes,
    /// and [`escaped`].
    pub fn info(&self) -> Info<'_> {
        Info(self)
    }
}

/// A readable dump of a message's delivery and properties. See [`Message::info`].
#[derive(Debug)]
pub struct Info<'a>(&'a Message);

impl fmt::Display for Info<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Message { properties, exchange, routing_key, redelivered, delivery_tag, consumer_tag, body } = self.0;
        writeln!(f, "exchange: {:?}", escaped(exchange))?;
        writeln!(f, "routing_key: {:?}", escaped(routing_key))?;
        writeln!(f, "consumer_tag: {:?}", escaped(consumer_tag))?;
        writeln!(f, "delivery_tag: {delivery_tag}")?;
        writeln!(f, "redelivered: {redelivered}")?;
        writeln!(f, "body_size: {}", body.len())?;
        let mut property = |name: &str, value: Option<String>| match value {
            Some(value) => writeln!(f, "{name}: {value}"),
            None => writeln!(f, "{name}: -"),
        };
        let text = |value: Option<&String>| value.map(|value| format!("{:?}", escaped(value)));
        property("content_type", text(properties.content_type()))?;
        property("content_encoding", text(properties.content_encoding()))?;
        property("headers", properties.headers().map(|headers| Shown(headers).to_string()))?;
        property("delivery_mode", properties.delivery_mode().map(delivery_mode))?;
        property("priority", properties.priority().map(|priority| priority.to_string()))?;
        property("correlation_id", text(properties.correlation_id()))?;
        property("reply_to", text(properties.reply_to()))?;
        property("expiration", text(properties.expiration()))?;
        property("message_id", text(properties.message_id()))?;
        property("timestamp", properties.timestamp().map(|timestamp| timestamp.to_string()))?;
        property("type", text(properties.message_type()))?;
        property("user_id", text(properties.user_id()))?;
        property("app_id", text(properties.app_id()))?;
        property("cluster_id", text(properties.cluster_id()))
    }
}

fn delivery_mode(mode: u8) -> String {
    match mode {
        amqprs::DELIVERY_MODE_PERSISTENT => "2 (persistent)".into(),
        amqprs::DELIVERY_MODE_TRANSIENT => "1 (transient)".into(),
        other => other.to_string(),
    }
}

/// A [`Message`] that must be settled once, with `ack`, `nack` or `reject`.
///
/// With automatic acknowledgement there is nothing to settle. Otherwise, if you drop it unsettled, it stays
/// unacknowledged until its channel closes and RabbitMQ delivers it again. Until then it counts against the prefetch.
/// The [log](crate#the-log) has a warning, which you see only with a `tracing` subscriber. `rabbitmqctl list_queues
/// name messages_unacknowledged` shows it, too.
#[derive(Debug)]
pub struct Delivery {
    message: Message,
    receipt: Receipt,
}

/// Whether the broker was told that the delivery is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// It was sent to the broker, on the channel that delivered the message.
    Sent,
    /// That channel has ended, alone or with its connection. RabbitMQ delivers the message again.
    TooLate,
}

/// The right to settle one delivery.
pub(crate) struct Receipt {
    session: Option<Arc<Session>>,
    pub delivery_tag: u64,
}

/// The method that settles a delivery.
pub(crate) enum SettleMethod {
    Ack { multiple: bool },
    Nack { requeue: bool },
    Reject { requeue: bool },
}

impl Deref for Delivery {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

impl Delivery {
    /// Acknowledges: RabbitMQ deletes the message.
    ///
    /// # Errors
    /// [`Error::Invalid`] with automatic acknowledgement, or if an `ack_multiple` has already settled it.
    /// [`Error::Timeout`] if the broker reads nothing for the operation timeout; the message then stays unacknowledged.
    pub fn ack(self) -> impl Future<Output = Result<Settlement>> + Send {
        self.receipt.settle(SettleMethod::Ack { multiple: false })
    }

    /// Acknowledges this delivery and all earlier ones of its consumer that are not settled yet.
    ///
    /// ```no_run
    /// # async fn example(mut messages: common::Consumer) -> common::Result<()> {
    /// let mut batch = Vec::new();
    /// while let Some(message) = messages.try_next().await? {
    ///     batch.push(message);
    ///     if batch.len() >= 10
    ///         && let Some(last) = batch.pop()
    ///     {
    ///         // All ten of them.
    ///         last.ack_multiple().await?;
    ///         batch.clear();
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub fn ack_multiple(self) -> impl Future<Output = Result<Settlement>> + Send {
        self.receipt.settle(SettleMethod::Ack { multiple: true })
    }

    /// Says that the work was not done. With `requeue` the message goes back to the queue; otherwise it is dropped or
    /// dead-lettered.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub fn nack(self, requeue: bool) -> impl Future<Output = Result<Settlement>> + Send {
        self.receipt.settle(SettleMethod::Nack { requeue })
    }

    /// Refuses the message. With `requeue` it goes back to the queue; otherwise it is dropped or dead-lettered. On a
    /// quorum queue of RabbitMQ 4.3 a `reject` counts towards the delivery limit, but a `nack` does not
    /// ([`ProcessOptions`](crate::ProcessOptions#how-often-a-message-may-come-back)).
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub fn reject(self, requeue: bool) -> impl Future<Output = Result<Settlement>> + Send {
        self.receipt.settle(SettleMethod::Reject { requeue })
    }

    /// Gives it back to its queue, if it is not settled yet.
    pub(crate) async fn give_back(self) -> Result<()> {
        match self.receipt.session {
            Some(_) => self.nack(true).await.map(drop),
            None => Ok(()),
        }
    }

    pub(crate) fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    pub(crate) fn split(self) -> (Message, Receipt) {
        (self.message, self.receipt)
    }

    /// `None` if a part of the message is missing, which amqprs never does.
    pub(crate) fn from_consumer(message: ConsumerMessage, session: &Arc<Session>, auto_ack: bool) -> Option<Self> {
        let (deliver, properties, body) = (message.deliver?, message.basic_properties?, message.content?);
        let receipt = Receipt { session: (!auto_ack).then(|| session.clone()), delivery_tag: deliver.delivery_tag() };
        let message = Message {
            body,
            properties,
            exchange: deliver.exchange().clone(),
            routing_key: deliver.routing_key().clone(),
            redelivered: deliver.redelivered(),
            delivery_tag: deliver.delivery_tag(),
            consumer_tag: deliver.consumer_tag().clone(),
        };
        Some(Self { message, receipt })
    }

    pub(crate) fn from_get((get, properties, body): GetMessage, session: Arc<Session>, auto_ack: bool) -> Self {
        let receipt = Receipt { session: (!auto_ack).then_some(session), delivery_tag: get.delivery_tag() };
        let message = Message {
            body,
            properties,
            exchange: get.exchange().clone(),
            routing_key: get.routing_key().clone(),
            redelivered: get.redelivered(),
            delivery_tag: get.delivery_tag(),
            consumer_tag: String::new(),
        };
        Self { message, receipt }
    }
}

impl Receipt {
    /// The session that delivered it. `None` with automatic acknowledgement.
    pub fn session(&self) -> Weak<Session> {
        self.session.as_ref().map_or_else(Weak::new, Arc::downgrade)
    }

    /// Whether it has to be settled.
    pub fn is_due(&self) -> bool {
        self.session.is_some()
    }

    pub fn is_of(&self, session: &Weak<Session>) -> bool {
        self.session.as_ref().is_some_and(|own| std::ptr::eq(Arc::as_ptr(own), session.as_ptr()))
    }

    /// It is settled together with others.
    pub fn forget(mut self) {
        self.session = None;
    }

    pub async fn settle(mut self, how: SettleMethod) -> Result<Settlement> {
        let tag = self.delivery_tag;
        let Some(session) = self.session.clone() else {
            return Err(Error::Invalid("with automatic acknowledgement there is nothing to settle".into()));
        };
        // Deciding and sending are one step. A tag below one that was settled with `multiple` would close the channel
        // (406).
        let deadline = session.deadline();
        let in_order = session.in_order(deadline).await;
        if session.is_lost() {
            self.session = None;
            tracing::info!("delivery {tag} is settled too late: its channel has ended, and RabbitMQ delivers it again");
            return Ok(Settlement::TooLate);
        }
        let Some(_in_order) = in_order else { return Err(self.stuck(&session)) };
        if self.is_settled() {
            self.session = None;
            return Err(Error::Invalid(format!("delivery {tag} was settled by an ack_multiple before")));
        }
        session.state.has_settled.store(true, Ordering::Relaxed);
        let Some(sent) = by(deadline, send(session.raw()?, tag, &how)).await else { return Err(self.stuck(&session)) };
        self.session = None;
        if let Err(error) = sent {
            session.failed(error).await;
            return Ok(Settlement::TooLate);
        }
        if matches!(how, SettleMethod::Ack { multiple: true }) {
            session.state.settled_up_to.store(tag, Ordering::Relaxed);
        }
        Ok(Settlement::Sent)
    }

    /// An `ack_multiple` of a later delivery has settled it, too.
    fn is_settled(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| self.delivery_tag <= session.state.settled_up_to.load(Ordering::Relaxed))
    }

    /// The broker reads nothing. The error says so, and no other warning is needed.
    fn stuck(&mut self, session: &Session) -> Error {
        self.session = None;
        let doing = format!("cannot settle delivery {}, which stays unacknowledged", self.delivery_tag);
        reads_nothing(doing, session.timeout)
    }
}

async fn send(raw: &RawChannel, tag: u64, how: &SettleMethod) -> Result<(), amqprs::error::Error> {
    match *how {
        SettleMethod::Ack { multiple } => raw.basic_ack(BasicAckArguments::new(tag, multiple)).await,
        SettleMethod::Nack { requeue } => raw.basic_nack(BasicNackArguments::new(tag, false, requeue)).await,
        SettleMethod::Reject { requeue } => raw.basic_reject(BasicRejectArguments::new(tag, requeue)).await,
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.session.as_ref().is_some_and(|session| !session.is_lost()) && !self.is_settled() {
            tracing::warn!("delivery {} was dropped unsettled: it stays unacknowledged", self.delivery_tag);
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receipt({})", self.delivery_tag)
    }
}
