//! Settles a delivery according to what its handler returns.

use std::{fmt::Display, future::Future, panic::AssertUnwindSafe};

use futures_util::FutureExt;

use crate::{Delivery, Message, Result, Settlement, consumer::delivery::SettleMethod, escaped};

/// What happens to a delivery whose handler fails. By default it is dropped, or dead-lettered if its queue says so.
///
/// # How often a message may come back
/// A classic queue delivers it again without end. A quorum queue counts. When its delivery limit is passed, it sends
/// the message to its dead-letter exchange; **without one the message is lost** ([poison
/// messages](https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling)). What counts depends on the version
/// of RabbitMQ:
///
/// | | limit | counts |
/// |---|---|---|
/// | 4.3 and later | 20, or `x-delivery-limit` | a [`reject`](Delivery::reject) with requeue; a channel or connection that ends, or is lost, while the message is unacknowledged; not a `nack` |
/// | 4.0 to 4.2 | 20, or `x-delivery-limit` | the same, and a `nack` |
/// | 3.x | none, or `x-delivery-limit` | the same, and a `nack` |
///
/// To requeue, this crate sends a `nack`. So since 4.3 a failing handler does not use up the limit; in older versions
/// it does. If the messages of a quorum queue matter, give it a dead-letter exchange:
/// `quorum_queue("jobs").with("x-dead-letter-exchange", "failed")`.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessOptions {
    /// Whether to put it back into its queue. Default: no.
    pub requeue: bool,
    /// Whether to do this only once: a delivery that is already redelivered is rejected for good. Default: no.
    pub reject_on_redelivered: bool,
}

/// What a handler decides. `()` is [`Ack`](Outcome::Ack).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done: RabbitMQ deletes the message.
    Ack,
    /// Not done: it goes back to the queue ([how often](ProcessOptions#how-often-a-message-may-come-back)).
    Requeue,
    /// Must not be done: it is dropped, or dead-lettered.
    Reject,
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::Ack
    }
}

impl Delivery {
    /// Lets `handler` work on the message and settles it according to the result. With `Ok` the value decides; `Err` or
    /// a panic rejects or requeues according to `options`. The handler cannot settle the delivery itself, so it is
    /// never settled twice.
    ///
    /// A message that is put back comes again at once. A [`Worker`](crate::worker::tasks::Worker) pauses before it puts
    /// a task back.
    ///
    /// ```no_run
    /// # async fn example(delivery: common::Delivery) -> common::Result<()> {
    /// use common::{Error, Outcome, ProcessOptions};
    ///
    /// let once_more = ProcessOptions { requeue: true, reject_on_redelivered: true };
    /// delivery
    ///     .process(once_more, |message| async move {
    ///         println!("{}", message.display());
    ///         Ok::<_, Error>(Outcome::Ack)
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`ack`](Self::ack). The handler's own error is not returned: it is logged, and decides how to settle.
    pub async fn process<F, Fut, O, E>(self, options: ProcessOptions, handler: F) -> Result<Settlement>
    where
        F: FnOnce(Message) -> Fut,
        Fut: Future<Output = Result<O, E>>,
        O: Into<Outcome>,
        E: Display,
    {
        let (message, receipt) = self.split();
        let how = decide(message, options, handler).await;
        receipt.settle(how).await
    }
}

/// Runs a handler on a message. `None` if it panicked; its trace is then on stderr.
pub(crate) async fn run<Fut: Future>(handler: impl FnOnce(Message) -> Fut, message: Message) -> Option<Fut::Output> {
    // The handler is called inside, because it may panic before its `async` block.
    AssertUnwindSafe(async { handler(message).await }).catch_unwind().await.ok()
}

/// Lets `handler` work on the message. Returns how to settle it.
pub(crate) async fn decide<F, Fut, O, E>(message: Message, options: ProcessOptions, handler: F) -> SettleMethod
where
    F: FnOnce(Message) -> Fut,
    Fut: Future<Output = Result<O, E>>,
    O: Into<Outcome>,
    E: Display,
{
    let (tag, redelivered) = (message.delivery_tag, message.redelivered);
    let failure = match run(handler, message).await {
        Some(Ok(outcome)) => {
            return match outcome.into() {
                Outcome::Ack => SettleMethod::Ack { multiple: false },
                Outcome::Requeue => SettleMethod::Nack { requeue: true },
                Outcome::Reject => SettleMethod::Reject { requeue: false },
            };
        }
        Some(Err(error)) => error.to_string(),
        None => "it panicked".to_owned(),
    };
    tracing::warn!("the handler of delivery {tag} failed: {}", escaped(&failure));
    match options.requeue && !(options.reject_on_redelivered && redelivered) {
        // RabbitMQ 4.3 counts a rejected message towards a quorum queue's delivery limit, and at last drops it.
        true => SettleMethod::Nack { requeue: true },
        false => SettleMethod::Reject { requeue: false },
    }
}
