//! The deliveries that a consumer has received and its reader has not taken yet.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use amqprs::channel::{BasicCancelArguments, ConsumerMessage};

use crate::{
    Delivery, Error, Result,
    encoding::nesting::Messages,
    session::{Session, own_queues},
};

/// The subscriptions of one consumer, the oldest first. The task that subscribes adds them, and removes old ones. The
/// reader takes the deliveries.
#[derive(Default)]
pub(crate) struct DeliveryBuffer(Mutex<Contents>);

#[derive(Default)]
struct Contents {
    subscriptions: VecDeque<Subscription>,
    /// Of the newest subscription.
    queue: String,
    end: End,
    reader: Option<Waker>,
}

#[derive(Default)]
enum End {
    /// Another subscription may come.
    #[default]
    Open,
    /// No more subscriptions come. An error is the reader's last item.
    Ended(Option<Error>),
    /// The reader has been dropped.
    Unread,
}

/// The deliveries of one subscription: amqprs's own receiver, so that a message is moved once and never copied.
pub(crate) struct Subscription {
    pub session: Arc<Session>,
    pub messages: Messages,
    /// Already taken out, and read before the others.
    pub first: Option<ConsumerMessage>,
    pub consumer_tag: String,
    pub queue: String,
    pub auto_ack: bool,
}

impl DeliveryBuffer {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        // No code that can panic may run under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue consumed from, or the last one.
    pub fn queue(&self) -> String {
        self.lock().queue.clone()
    }

    /// Adds a subscription. Returns whether there is a reader for it.
    pub fn put(&self, subscription: Subscription) -> bool {
        let mut contents = self.lock();
        if matches!(contents.end, End::Unread) {
            return false;
        }
        contents.queue.clone_from(&subscription.queue);
        contents.subscriptions.push_back(subscription);
        contents.wake();
        true
    }

    /// Discards what RabbitMQ delivers again: the messages of lost sessions. Automatically acknowledged ones stay,
    /// because they would otherwise be lost.
    pub fn drop_stale(&self) {
        let mut contents = self.lock();
        contents.subscriptions.retain(|it| !it.session.is_lost() || (it.auto_ack && !it.messages.is_empty()));
        contents.wake();
    }

    /// Takes the subscriptions of a session with manual acknowledgement out, so that their messages can go back to
    /// RabbitMQ.
    pub fn take_back(&self, session: &Arc<Session>) -> Vec<Subscription> {
        let mut contents = self.lock();
        let (taken, kept) = std::mem::take(&mut contents.subscriptions)
            .into_iter()
            .partition(|it: &Subscription| Arc::ptr_eq(&it.session, session) && !it.auto_ack);
        contents.subscriptions = kept;
        taken.into()
    }

    /// The tag of the newest subscription on this session.
    pub fn newest_tag(&self, session: &Arc<Session>) -> Option<String> {
        let contents = self.lock();
        let newest = contents.subscriptions.iter().rev().find(|it| Arc::ptr_eq(&it.session, session))?;
        Some(newest.consumer_tag.clone())
    }

    /// No more subscriptions come. The first reason is kept.
    pub fn end(&self, error: Option<Error>) {
        let mut contents = self.lock();
        if matches!(contents.end, End::Open) {
            contents.end = End::Ended(error);
            contents.wake();
        }
    }

    /// The reader has been dropped. Its unread messages have to go back to the queue.
    pub fn close(&self) -> VecDeque<Subscription> {
        let mut contents = self.lock();
        contents.end = End::Unread;
        std::mem::take(&mut contents.subscriptions)
    }

    /// The next delivery; `None` after the end.
    pub fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Result<Delivery>>> {
        let mut contents = self.lock();
        let contents = &mut *contents;
        if let End::Ended(error @ Some(_)) = &mut contents.end {
            contents.subscriptions.clear();
            return Poll::Ready(error.take().map(Err));
        }
        while let Some(subscription) = contents.subscriptions.front_mut() {
            match subscription.poll(context) {
                Poll::Ready(Some(message)) => {
                    if let Some(delivery) =
                        Delivery::from_consumer(message, &subscription.session, subscription.auto_ack)
                    {
                        return Poll::Ready(Some(Ok(delivery)));
                    }
                }
                Poll::Ready(None) => drop(contents.subscriptions.pop_front()),
                Poll::Pending => break,
            }
        }
        if !matches!(contents.end, End::Open) {
            return Poll::Ready(None);
        }
        if !contents.reader.as_ref().is_some_and(|reader| reader.will_wake(context.waker())) {
            contents.reader = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Contents {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Subscription {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<ConsumerMessage>> {
        match self.session.is_lost() {
            // RabbitMQ delivers these again, on the next session.
            true if !self.auto_ack => Poll::Ready(None),
            // All deliveries have come: the end of a session is reported after its deliveries.
            true => Poll::Ready(self.messages.try_recv()),
            false => match self.first.take() {
                Some(first) => Poll::Ready(Some(first)),
                None => self.messages.poll_recv(context),
            },
        }
    }

    /// The reader has been dropped: cancels the consumer, returns prefetched messages, and deletes the queues whose
    /// names only this consumer knows. Deliveries that the user still holds keep the channel open.
    pub async fn give_up(mut self) {
        let cancel = BasicCancelArguments::new(&self.consumer_tag);
        let doing = || "cannot cancel a consumer".to_owned();
        if self.session.is_lost()
            || self.session.call(doing, |raw| async move { raw.basic_cancel(cancel).await }).await.is_err()
        {
            return;
        }
        self.give_back().await;
        own_queues::delete(&self.session, own_queues::take(&self.session)).await;
    }

    /// Returns the prefetched messages once the consumer is cancelled, which ends the receiver.
    pub async fn give_back(&mut self) {
        while let Some(message) = match self.first.take() {
            Some(first) => Some(first),
            None => self.messages.recv().await,
        } {
            if let Some(delivery) =
                Delivery::from_consumer(message, &self.session, self.auto_ack).filter(|_| !self.auto_ack)
            {
                let _ = delivery.nack(true).await;
            }
        }
    }
}
