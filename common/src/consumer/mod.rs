//! A stream of deliveries that continues after reconnects.

pub(crate) mod buffer;
pub(crate) mod delivery;
pub(crate) mod poison;
pub(crate) mod subscriber;

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use amqprs::channel::BasicConsumeArguments;
use futures_util::Stream;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Delivery, Error, Result,
    connection::{core::ConnectionCore, handle::ConnectionHandle},
    consumer::{
        buffer::DeliveryBuffer,
        subscriber::{CurrentSubscription, Subscriber},
    },
    escaped,
    session::setup::Function,
};

/// The deliveries of one consumer, made by [`Channel::consume`](crate::Channel::consume).
///
/// Read it with [`try_next`](Self::try_next), or as a [`Stream`]. After a lost connection, a closed channel or a
/// consumer that the broker cancelled, the setup runs again and the stream continues. With manual acknowledgement,
/// unread prefetched messages are then discarded, because RabbitMQ delivers them again. With automatic acknowledgement
/// they can still be read, because otherwise they would be lost.
///
/// A header that is nested too deeply is removed from its message, see [`Message`](crate::Message). A header that is
/// not UTF-8 breaks the connection, because amqprs cannot decode it. With manual acknowledgement RabbitMQ delivers all
/// messages again. With automatic acknowledgement the message is lost, and so are those that were on their way behind
/// it.
///
/// Dropping it cancels the consumer, gives prefetched messages back to the queue, and deletes the exclusive queues that
/// RabbitMQ has named for its setup, because no other program knows them. Deliveries that have been read can still be
/// settled.
pub struct Consumer {
    buffer: Arc<DeliveryBuffer>,
    current: watch::Receiver<Option<CurrentSubscription>>,
    max_body_size: usize,
    /// A message that is too large and is being rejected. This happens before a later message is handed out, because an
    /// acknowledgement of that one may include all earlier ones.
    refusal: Option<JoinHandle<()>>,
    stop: CancellationToken,
    handle: Arc<ConnectionHandle>,
}

pub(crate) async fn start(
    handle: Arc<ConnectionHandle>,
    name: &str,
    subscribe: Function<BasicConsumeArguments>,
) -> Result<Consumer> {
    let core = handle.core.clone();
    let (current_sender, current) = watch::channel(None);
    let (first, answer) = oneshot::channel();
    let (stop, buffer) = (core.closing.child_token(), Arc::new(DeliveryBuffer::default()));
    core.spawn(Subscriber::new(name, &core, &stop, subscribe, &buffer, current_sender, first).run());
    // From here on, dropping the caller ends the task.
    let consumer = Consumer { buffer, current, max_body_size: usize::MAX, refusal: None, stop, handle };
    // Each run has its own deadline. This deadline is for everything else.
    match timeout(core.options.operation_timeout * 2, answer).await {
        Ok(answer) => answer.unwrap_or(Err(Error::Shutdown("channel"))).map(|()| consumer),
        Err(_) => Err(core.timed_out("cannot consume")),
    }
}

impl Consumer {
    /// The next delivery. Waits while the connection is lost. `None` when this program has closed the connection
    /// manager.
    ///
    /// It may be dropped while it waits, for instance in `tokio::select!`, without losing a message.
    ///
    /// # Errors
    /// Why consuming ended. It is the last item.
    pub async fn try_next(&mut self) -> Result<Option<Delivery>> {
        poll_fn(|context| self.poll(context)).await.transpose()
    }

    /// Rejects messages with a larger body, without requeue: they are dropped, or dead-lettered if the queue says so. A
    /// warning is logged, and the stream continues with the next message. Default: no limit.
    ///
    /// This protects only the code that handles the message, because the body is already in memory when its size is
    /// checked. The broker's `max_message_size` ([16 MiB since RabbitMQ 4.0, 128 MiB
    /// before](https://www.rabbitmq.com/docs/configure)) protects the memory: it needs this size times the prefetch at
    /// most.
    ///
    /// ```no_run
    /// # async fn example(channel: common::Channel) -> common::Result<()> {
    /// # async fn subscribe(_: common::SetupChannel) -> common::Result<amqprs::channel::BasicConsumeArguments> { todo!() }
    /// let mut messages = channel.consume(subscribe).await?.max_body_size(64 * 1024);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_body_size(mut self, bytes: usize) -> Self {
        self.max_body_size = bytes;
        self
    }

    /// The queue that it consumes from. A server-named queue may have another name after each reconnect.
    pub fn queue(&self) -> String {
        self.buffer.queue()
    }

    pub(crate) fn core(&self) -> Arc<ConnectionCore> {
        self.handle.core.clone()
    }

    /// Where it consumes from. `None` while there is no subscription.
    pub(crate) fn current_subscription(&self) -> watch::Receiver<Option<CurrentSubscription>> {
        self.current.clone()
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Delivery>>> {
        loop {
            if let Some(refusal) = &mut self.refusal {
                let _ = ready!(Pin::new(refusal).poll(context));
                self.refusal = None;
            }
            match ready!(self.buffer.poll(context)) {
                Some(Ok(delivery)) if delivery.body.len() > self.max_body_size => {
                    let (size, most, queue) = (delivery.body.len(), self.max_body_size, self.queue());
                    tracing::warn!(
                        "a message from queue `{}` is refused: {size} bytes, allowed are {most}",
                        escaped(&queue)
                    );
                    if delivery.receipt().is_due() {
                        self.refusal = self.handle.core.spawn(async { drop(delivery.reject(false).await) });
                    }
                }
                item => return Poll::Ready(item),
            }
        }
    }
}

impl Stream for Consumer {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(context)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop.cancel();
        for subscription in self.buffer.close() {
            self.handle.core.spawn(subscription.give_up());
        }
    }
}
