//! Publishing with confirms: numbered, bounded, and pipelined when asked.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use amqprs::{BasicProperties, channel::BasicPublishArguments};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    Channel, Error, Result,
    headers::rebuild,
    ledger::Waiter,
    opening::{Opening, put_number},
    supervisor::backoff,
    topology::check_name,
};

/// What may be in flight on one channel, sent and not confirmed: so many bytes, and no more messages than fit when
/// each counts at least [`LEAST_WEIGHT`] (8,192). Past that, publishing waits.
pub(crate) const MOST_BYTES_IN_FLIGHT: usize = 16 << 20;
const LEAST_WEIGHT: usize = 2 << 10;

impl Channel {
    /// Publishes a message and waits until the broker has taken responsibility for it
    /// ([publisher confirms](https://www.rabbitmq.com/docs/confirms#publisher-confirms)).
    ///
    /// While the connection is down it waits for it. With `mandatory`, a message that no queue is bound for is an
    /// error; without, the broker drops it and confirms.
    ///
    /// # Errors
    /// - [`Unroutable`](Error::Unroutable): mandatory, and no queue took it.
    /// - [`Nacked`](Error::Nacked): the broker refused it.
    /// - [`Closed`](Error::Closed): the broker closed the channel because of it, as it does when there is no such exchange.
    /// - [`Unconfirmed`](Error::Unconfirmed): sent, but the confirm was lost with the connection or did not come in time.
    /// - [`Timeout`](Error::Timeout), [`Lost`](Error::Lost), [`Shutdown`](Error::Shutdown), [`Invalid`](Error::Invalid): not sent.
    pub fn publish(
        &self,
        arguments: BasicPublishArguments,
        properties: BasicProperties,
        body: impl Into<Vec<u8>>,
    ) -> impl Future<Output = Result<()>> + Send {
        let message = Outgoing::new(arguments, properties, body);
        async move { self.hand_over(message).await?.await }
    }

    /// Publishes a message again and again until the broker has confirmed it: at least once, so perhaps twice. Drop it
    /// to give up.
    ///
    /// For messages that must not be lost while the broker is away, and that do no harm when they come twice; a
    /// `message_id` lets the receiver notice.
    ///
    /// # Errors
    /// Only what no repetition can mend: [`Unroutable`](Error::Unroutable), [`Closed`](Error::Closed) (no such exchange),
    /// [`Invalid`](Error::Invalid), [`Shutdown`](Error::Shutdown).
    pub async fn publish_at_least_once(
        &self,
        arguments: BasicPublishArguments,
        properties: BasicProperties,
        body: impl Into<Vec<u8>>,
    ) -> Result<()> {
        let body = body.into();
        let mut pauses = backoff(&self.core.core.options);
        loop {
            match self.publish(arguments.clone(), properties.clone(), body.clone()).await {
                Err(Error::Unconfirmed { .. } | Error::Lost { .. } | Error::Timeout { .. } | Error::Nacked) => {
                    sleep(pauses.next().unwrap_or_default()).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Hands a message to the connection and returns at once with its [`Confirm`], so that many can be on their way.
    /// Waits only while the connection is down, or while 8,192 messages or 16 MiB are unconfirmed on this channel.
    ///
    /// ```no_run
    /// # use amqprs::{BasicProperties, channel::BasicPublishArguments};
    /// # async fn example(channel: common::Channel) -> common::Result<()> {
    /// let mut confirms = Vec::new();
    /// for number in 0..1_000 {
    ///     let to = BasicPublishArguments::new("", "hello");
    ///     confirms.push(channel.enqueue(to, BasicProperties::default(), number.to_string()).await?);
    /// }
    /// for confirm in confirms {
    ///     confirm.await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`publish`](Self::publish); what concerns the broker's answer comes from the [`Confirm`].
    pub fn enqueue(
        &self,
        arguments: BasicPublishArguments,
        properties: BasicProperties,
        body: impl Into<Vec<u8>>,
    ) -> impl Future<Output = Result<Confirm>> + Send {
        self.hand_over(Outgoing::new(arguments, properties, body))
    }

    pub(crate) async fn hand_over(&self, message: Box<Outgoing>) -> Result<Confirm> {
        let (sender, confirm) = self.core.confirms.then(oneshot::channel).unzip();
        self.send(None, sender.map(Waiter::Confirm), message).await?;
        Ok(Confirm(confirm))
    }

    /// Sends a message on this opening, in confirm mode, and on no later one; `None`: on whichever is open. What becomes of
    /// it is told to `waiter`.
    pub(crate) async fn send(
        &self,
        only: Option<&Arc<Opening>>,
        mut waiter: Option<Waiter>,
        mut message: Box<Outgoing>,
    ) -> Result<()> {
        let arguments = &message.arguments;
        check_name("exchange name", &arguments.exchange)?;
        check_name("routing key", &arguments.routing_key)?;
        rebuild(&mut message.properties)?;
        if arguments.immediate {
            return Err(Error::Invalid("RabbitMQ does not know `immediate` and would close the connection".into()));
        }
        let core = &self.core;
        let confirms = core.confirms || only.is_some();
        if arguments.mandatory && !confirms {
            return Err(Error::Invalid(
                "`mandatory` needs a channel with confirms, to tell of a returned message".into(),
            ));
        }
        // Should it be returned: with a number of ours, or, a call, with its id.
        let numbered = arguments.mandatory && !matches!(waiter, Some(Waiter::Call { .. }));
        let deadline = core.core.deadline();
        let late = || core.timed_out("cannot publish: nothing was sent");
        let weight = (message.body.len() + LEAST_WEIGHT / 2).clamp(LEAST_WEIGHT, MOST_BYTES_IN_FLIGHT) as u32;
        let share = by(deadline, core.shares.clone().acquire_many_owned(weight)).await.ok_or_else(late)?;
        let mut share = share.map_err(|_| Error::Shutdown("channel"))?;
        loop {
            let opening = match only {
                Some(opening) if opening.is_lost() => return Err(opening.lost().await),
                Some(opening) => opening.clone(),
                None => by(deadline, core.opening()).await.ok_or_else(late)??,
            };
            let raw = opening.raw()?;
            // One critical section: the broker numbers messages in the order in which they arrive.
            let _turn = by(deadline, opening.turn()).await.ok_or_else(late)?;
            let unsent = if confirms {
                match opening.ledger.register(share, waiter) {
                    Ok(unsent) => Some(unsent),
                    Err(returned) => {
                        (share, waiter) = returned;
                        continue;
                    }
                }
            } else if opening.is_lost() {
                // Nothing may follow the close of a channel.
                continue;
            } else {
                None
            };
            if numbered && let Some(unsent) = &unsent {
                put_number(&mut message.properties, unsent.number);
            }
            let Outgoing { arguments, properties, body } = *message;
            // In a box, too: only one at a time is here, but each that waits would have the room for it.
            let publishing = Box::pin(raw.basic_publish(properties, body, arguments));
            // The body is gone with a failure, so there is no second try here; the caller knows it was not sent.
            return match by(deadline, publishing).await {
                Some(Ok(())) => {
                    if let Some(unsent) = unsent {
                        unsent.sent();
                    }
                    Ok(())
                }
                Some(Err(error)) => Err(opening.failed(error).await),
                None => Err(late()),
            };
        }
    }
}

/// A message on its way to the broker. In a box: all the futures that hand it on would have it inside, and each twice.
pub(crate) struct Outgoing {
    arguments: BasicPublishArguments,
    properties: BasicProperties,
    body: Vec<u8>,
}

impl Outgoing {
    pub fn new(arguments: BasicPublishArguments, properties: BasicProperties, body: impl Into<Vec<u8>>) -> Box<Self> {
        Box::new(Self { arguments, properties, body: body.into() })
    }
}

/// Waits until the deadline at most: `None`. A timer costs more than publishing a message, so there is one only where
/// there is something to wait for.
async fn by<F: Future>(deadline: Instant, wait: F) -> Option<F::Output> {
    let mut wait = pin!(wait);
    match poll_fn(|context| Poll::Ready(wait.as_mut().poll(context))).await {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => timeout_at(deadline, wait).await.ok(),
    }
}

/// The broker's answer to one published message: resolves when it has taken responsibility, or with the reason
/// why not. Dropping it changes nothing about the message.
#[must_use = "a message is safe only when its confirm has come"]
#[derive(Debug)]
pub struct Confirm(Option<oneshot::Receiver<Result<()>>>);

impl Future for Confirm {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // On a channel without confirms there is nothing to wait for.
        let Some(receiver) = &mut self.0 else { return Poll::Ready(Ok(())) };
        let answer = ready!(Pin::new(receiver).poll(context));
        Poll::Ready(answer.unwrap_or_else(|_| Err(Error::Unconfirmed { reason: "the channel has ended".into() })))
    }
}
