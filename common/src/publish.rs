//! Publishing with confirms: numbered, bounded, and pipelined when asked.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use amqprs::{BasicProperties, channel::BasicPublishArguments};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout_at},
};

use crate::{
    Channel, Error, Result,
    channel::ChannelCore,
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
    pub async fn publish(
        &self,
        arguments: BasicPublishArguments,
        properties: BasicProperties,
        body: impl Into<Vec<u8>>,
    ) -> Result<()> {
        self.enqueue(arguments, properties, body).await?.await
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
    pub async fn enqueue(
        &self,
        arguments: BasicPublishArguments,
        properties: BasicProperties,
        body: impl Into<Vec<u8>>,
    ) -> Result<Confirm> {
        self.enqueue_on(None, arguments, properties, body.into()).await
    }

    /// [`enqueue`](Self::enqueue) on this opening, in confirm mode, and on no later one; `None`: on whichever is open.
    pub(crate) async fn enqueue_on(
        &self,
        only: Option<&Arc<Opening>>,
        arguments: BasicPublishArguments,
        properties: BasicProperties,
        body: Vec<u8>,
    ) -> Result<Confirm> {
        check_name("exchange name", &arguments.exchange)?;
        check_name("routing key", &arguments.routing_key)?;
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
        let enqueue = core.enqueue(only, arguments, properties, body);
        timeout_at(core.core.deadline(), enqueue)
            .await
            .unwrap_or_else(|_| Err(core.timed_out("cannot publish: nothing was sent")))
    }
}

impl ChannelCore {
    async fn enqueue(
        &self,
        only: Option<&Arc<Opening>>,
        arguments: BasicPublishArguments,
        mut properties: BasicProperties,
        body: Vec<u8>,
    ) -> Result<Confirm> {
        let weight = (body.len() + LEAST_WEIGHT / 2).clamp(LEAST_WEIGHT, MOST_BYTES_IN_FLIGHT) as u32;
        let share = self.shares.clone().acquire_many_owned(weight).await;
        let mut share = share.map_err(|_| Error::Shutdown("channel"))?;
        loop {
            let opening = match only {
                Some(opening) if opening.is_lost() => return Err(opening.lost().await),
                Some(opening) => opening.clone(),
                None => self.opening().await?,
            };
            let raw = opening.raw()?;
            // One critical section: the broker numbers messages in the order in which they arrive.
            let _turn = opening.turn().await;
            if !self.confirms && only.is_none() {
                // Nothing may follow the close of a channel.
                if opening.is_lost() {
                    continue;
                }
                return raw
                    .basic_publish(properties, body, arguments)
                    .await
                    .map(|()| Confirm(None))
                    .map_err(Error::from);
            }
            let (number, receiver) = match opening.ledger.register(share) {
                Ok(registered) => registered,
                Err(returned) => {
                    share = returned;
                    continue;
                }
            };
            // Dropped before the message is queued, this future must leave no gap in the numbers.
            let unsent = TakeBack { opening: &opening, number };
            if arguments.mandatory {
                put_number(&mut properties, number);
            }
            // The body is gone with a failure, so there is no second try here; the caller knows it was not sent.
            let sent = raw.basic_publish(properties, body, arguments).await;
            if let Err(error) = sent {
                drop(unsent);
                return Err(opening.ledger.loss.reason().unwrap_or_else(|| error.into()));
            }
            std::mem::forget(unsent);
            return Ok(Confirm(Some(receiver)));
        }
    }
}

struct TakeBack<'a> {
    opening: &'a Opening,
    number: u64,
}

impl Drop for TakeBack<'_> {
    fn drop(&mut self) {
        self.opening.ledger.take_back(self.number);
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
