//! Publishing with confirms: messages are numbered and limited, and many can be in flight.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use amqprs::{BasicProperties, channel::BasicPublishArguments};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{
    Channel, Error, Result,
    channel::unconfirmed::{LEAST_WEIGHT, MOST_BYTES_IN_FLIGHT},
    connection::backoff::backoff,
    deadline::{SHORT_OF_RESOURCES, by},
    encoding::{headers::rebuild, short_string::check_name},
    session::{
        Session,
        confirms::ConfirmSender,
        publish::{NotSent, Outgoing},
        refused_message::check_can_be_refused,
        state::SessionState,
    },
};

/// RabbitMQ may close a connection or channel because of a message without saying which one. After this many closes
/// while the same message was in flight, we blame that message.
const MOST_SUSPICIONS: u32 = 5;

impl Channel {
    /// Publishes a message and waits until the broker has confirmed it: it is then responsible for the message
    /// ([publisher confirms](https://www.rabbitmq.com/docs/confirms#publisher-confirms)).
    ///
    /// While the connection is down, this waits for it. With `mandatory`, a message for which no queue is bound is an
    /// error. Without, the broker drops the message and confirms it.
    ///
    /// While RabbitMQ is short of memory or disk, it [takes no messages](https://www.rabbitmq.com/docs/alarms). It does
    /// not report this, and reads nothing from this connection, not even the acks of its consumers. After some 4
    /// seconds without a confirm a warning is logged. Use another [`ConnectionManager`](crate::ConnectionManager) for
    /// consuming, and consuming continues.
    ///
    /// The properties and headers have to fit into one frame, which has 128 KiB unless the broker is configured
    /// otherwise. A text property, such as the correlation id, has at most 255 bytes. amqprs's `with_correlation_id`
    /// and the other builder methods panic on a longer one, so check texts from outside.
    ///
    /// # Errors
    /// - [`Unroutable`](Error::Unroutable): mandatory, and no queue took it.
    /// - [`Nacked`](Error::Nacked): the broker refused it.
    /// - [`Closed`](Error::Closed): the broker refused it and closed the channel, as it does when there is no such
    ///   exchange. The channel is opened again, each time after a longer pause.
    /// - [`Ignored`](Error::Ignored): it did not arrive, because the broker had refused another message before it.
    /// - [`Unconfirmed`](Error::Unconfirmed): sent, but the confirm was lost with the channel or the connection, or did
    ///   not come in time.
    /// - [`Timeout`](Error::Timeout), [`Lost`](Error::Lost), [`Shutdown`](Error::Shutdown), [`Invalid`](Error::Invalid): not sent.
    pub fn publish(
        &self,
        arguments: BasicPublishArguments,
        properties: BasicProperties,
        body: impl Into<Vec<u8>>,
    ) -> impl Future<Output = Result<()>> + Send {
        let message = Outgoing::new(arguments, properties, body);
        async move { self.send_confirmed(message).await?.await }
    }

    /// Publishes a message again and again until the broker has confirmed it. It arrives at least once, and perhaps
    /// twice. To give up, drop the future.
    ///
    /// Use it for messages that must not be lost while the broker is down, and that may come twice without harm. With a
    /// `message_id` the receiver can notice a repeat.
    ///
    /// ```no_run
    /// use common::amqprs::{BasicProperties, channel::BasicPublishArguments};
    ///
    /// # async fn example(channel: common::Channel) -> common::Result<()> {
    /// let to = BasicPublishArguments::new("", "orders").mandatory(true).finish();
    /// let properties = BasicProperties::default().with_message_id("order-17").finish();
    /// channel.publish_at_least_once(to, properties, "17").await
    /// # }
    /// ```
    ///
    /// # Errors
    /// Only errors that a repetition cannot fix: [`Unroutable`](Error::Unroutable), [`Closed`](Error::Closed) (no such
    /// exchange), [`Invalid`](Error::Invalid), [`Shutdown`](Error::Shutdown). And [`Unconfirmed`](Error::Unconfirmed)
    /// with the broker's words, if RabbitMQ ended the connection because of something sent, five times while this
    /// message was in flight.
    pub async fn publish_at_least_once(
        &self,
        arguments: BasicPublishArguments,
        properties: BasicProperties,
        body: impl Into<Vec<u8>>,
    ) -> Result<()> {
        let body = body.into();
        let mut pauses = backoff(&self.core.connection.options);
        let mut suspicions = 0;
        loop {
            let message = Outgoing::new(arguments.clone(), properties.clone(), body.clone());
            let (confirm, outcome) = self.confirm();
            let (outcome, session) = match self.send(confirm, message).await {
                Ok(session) => (outcome.await, Some(session)),
                Err(error) => (Err(error), None),
            };
            match outcome {
                // This waits until the channel is open again.
                Err(Error::Ignored { .. }) => {}
                Err(
                    error @ (Error::Unconfirmed { .. } | Error::Lost { .. } | Error::Timeout { .. } | Error::Nacked),
                ) => {
                    suspicions += u32::from(session.is_some_and(|session| session.suspects_all()));
                    if suspicions == MOST_SUSPICIONS {
                        return Err(error);
                    }
                    sleep(pauses.next().unwrap_or_default()).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Hands a message to the connection and returns at once with its [`Confirm`], so that many messages can be in
    /// flight. It waits only while the connection is down, or while 8,192 messages or 16 MiB are unconfirmed on this
    /// channel.
    ///
    /// ```no_run
    /// # use amqprs::{BasicProperties, channel::BasicPublishArguments};
    /// # async fn example(channel: common::Channel) -> common::Result<()> {
    /// let mut confirms = Vec::new();
    /// for number in 0..1_000 {
    ///     let to = BasicPublishArguments::new("", "hello");
    ///     confirms.push(channel.publish_with_deferred_confirm(to, BasicProperties::default(), number.to_string()).await?);
    /// }
    /// for confirm in confirms {
    ///     confirm.await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`publish`](Self::publish). Errors in the broker's answer come from the [`Confirm`].
    pub fn publish_with_deferred_confirm(
        &self,
        arguments: BasicPublishArguments,
        properties: BasicProperties,
        body: impl Into<Vec<u8>>,
    ) -> impl Future<Output = Result<Confirm>> + Send {
        self.send_confirmed(Outgoing::new(arguments, properties, body))
    }

    pub(crate) async fn send_confirmed(&self, message: Box<Outgoing>) -> Result<Confirm> {
        let (confirm, outcome) = self.confirm();
        self.send(confirm, message).await?;
        Ok(outcome)
    }

    /// Both ends of a confirm. On a channel without confirms there is no confirm to wait for.
    fn confirm(&self) -> (Option<ConfirmSender>, Confirm) {
        let (sender, outcome) = self.core.confirms.then(oneshot::channel).unzip();
        (sender.map(ConfirmSender::Outcome), Confirm(outcome))
    }

    /// Sends a message on the session that is open, and returns the state of that session. `confirm` receives the
    /// outcome.
    pub(crate) async fn send(
        &self,
        confirm: Option<ConfirmSender>,
        message: Box<Outgoing>,
    ) -> Result<Arc<SessionState>> {
        let deadline = self.core.connection.deadline();
        let mut message = self.prepared(deadline, confirm, message).await?;
        loop {
            let session = by(deadline, self.core.session()).await.ok_or_else(|| self.not_sent())??;
            match session.publish(deadline, message).await {
                Ok(()) => return Ok(session.state.clone()),
                Err(NotSent::Ended(back)) => message = back,
                Err(NotSent::Late) => return Err(self.not_sent()),
                Err(NotSent::Failed(error)) => return Err(error),
            }
        }
    }

    /// Sends a message on this session only.
    pub(crate) async fn send_on(
        &self,
        session: &Session,
        confirm: Option<ConfirmSender>,
        message: Box<Outgoing>,
    ) -> Result<Arc<SessionState>> {
        let deadline = self.core.connection.deadline();
        let message = self.prepared(deadline, confirm, message).await?;
        match session.publish(deadline, message).await {
            Ok(()) => Ok(session.state.clone()),
            Err(NotSent::Ended(_)) => Err(session.lost().await),
            Err(NotSent::Late) => Err(self.not_sent()),
            Err(NotSent::Failed(error)) => Err(error),
        }
    }

    /// Checks the message, and waits for its share of what may be in flight.
    async fn prepared(
        &self,
        deadline: Instant,
        confirm: Option<ConfirmSender>,
        mut message: Box<Outgoing>,
    ) -> Result<Box<Outgoing>> {
        rebuild(&mut message.properties)?;
        check(&message.arguments, &message.properties, &self.core.connection.options.virtual_host)?;
        let weight = (message.body.len() + LEAST_WEIGHT / 2).clamp(LEAST_WEIGHT, MOST_BYTES_IN_FLIGHT) as u32;
        let share = by(deadline, self.core.shares.clone().acquire_many_owned(weight)).await;
        let share = share.ok_or_else(|| self.not_sent())?.map_err(|_| Error::Shutdown("channel"))?;
        (message.share, message.confirm) = (Some(share), confirm);
        Ok(message)
    }

    /// The deadline has passed.
    fn not_sent(&self) -> Error {
        match self.core.timed_out("cannot publish: nothing was sent") {
            Error::Timeout { doing, after, reason } if reason.is_empty() => {
                Error::Timeout { doing, after, reason: SHORT_OF_RESOURCES.into() }
            }
            error => error,
        }
    }
}

/// Refuses what RabbitMQ would answer by closing the channel or the connection.
pub(crate) fn check(arguments: &BasicPublishArguments, properties: &BasicProperties, virtual_host: &str) -> Result<()> {
    check_name("exchange name", &arguments.exchange)?;
    check_name("routing key", &arguments.routing_key)?;
    check_can_be_refused(&arguments.exchange, virtual_host)?;
    if arguments.immediate {
        return Err(Error::Invalid("RabbitMQ does not know `immediate` and would close the connection".into()));
    }
    match properties.expiration() {
        Some(expiration) if expiration.parse::<u64>().is_err() => {
            Err(Error::Invalid(format!("the expiration {expiration:?} is not a number of milliseconds")))
        }
        _ => Ok(()),
    }
}

/// The broker's answer to one published message. It resolves when the broker has confirmed the message, or with an
/// error that says why not. Dropping it does not affect the message.
#[must_use = "a message is safe only when its confirm has come"]
#[derive(Debug)]
pub struct Confirm(Option<oneshot::Receiver<Result<()>>>);

impl Future for Confirm {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // On a channel without confirms there is no confirm to wait for.
        let Some(receiver) = &mut self.0 else { return Poll::Ready(Ok(())) };
        let answer = ready!(Pin::new(receiver).poll(context));
        Poll::Ready(answer.unwrap_or_else(|_| Err(Error::Unconfirmed { reason: "the channel has ended".into() })))
    }
}
