//! Sending one message on a session: numbered, and among those whose confirm is awaited.

use std::sync::atomic::Ordering;

use amqprs::{BasicProperties, channel::BasicPublishArguments};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{
    Error,
    deadline::by,
    encoding::frame_size::{check_header_frame, header_frame},
    session::{
        Session,
        confirms::ConfirmSender,
        message_number::{NUMBER_FIELD, put_number},
        refused_message::Mark,
    },
};

/// A message on its way to the broker. In a box: all the futures that hand it on would have it inside, and each twice.
pub(crate) struct Outgoing {
    pub arguments: BasicPublishArguments,
    pub properties: BasicProperties,
    pub body: Vec<u8>,
    /// Of what may be in flight on its channel.
    pub share: Option<OwnedSemaphorePermit>,
    pub confirm: Option<ConfirmSender>,
}

/// Why a message was not sent.
pub(crate) enum NotSent {
    /// The session had ended before. Here is the message, for the next one.
    Ended(Box<Outgoing>),
    /// The deadline has passed.
    Late,
    Failed(Error),
}

impl From<Error> for NotSent {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Outgoing {
    pub fn new(arguments: BasicPublishArguments, properties: BasicProperties, body: impl Into<Vec<u8>>) -> Box<Self> {
        Box::new(Self { arguments, properties, body: body.into(), share: None, confirm: None })
    }
}

impl Session {
    /// Sends a message. On a session in confirm mode its outcome is told to its `confirm`.
    pub async fn publish(&self, deadline: Instant, mut message: Box<Outgoing>) -> Result<(), NotSent> {
        let confirms = self.confirms.load(Ordering::Relaxed);
        // RabbitMQ returns a message without saying which one it is.
        let numbered = confirms && message.arguments.mandatory;
        let header = header_frame(&message.properties)? + if numbered { NUMBER_FIELD } else { 0 };
        check_header_frame(header, self.frame_max)?;
        let mark = Mark::of(&message.arguments, &message.properties, &message.body);
        // One critical section: the broker numbers messages in the order in which they arrive.
        let _in_order = by(deadline, self.in_order()).await.ok_or(NotSent::Late)?;
        let mut unsent = None;
        if confirms {
            let Outgoing { share, confirm, .. } = &mut *message;
            unsent = self.state.pending_confirms.register(&self.state.closed, share, confirm, mark);
        }
        // Nothing may follow the close of a channel.
        if self.is_lost() && unsent.is_none() {
            return Err(NotSent::Ended(message));
        }
        if numbered && let Some(unsent) = &unsent {
            put_number(&mut message.properties, unsent.number);
        }
        let Outgoing { arguments, properties, body, share: _share, .. } = *message;
        // In a box, too: only one at a time is here, but each that waits would have the room for it.
        let publishing = Box::pin(self.raw()?.basic_publish(properties, body, arguments));
        // The body is gone with a failure, so there is no second try here; the caller knows it was not sent.
        match by(deadline, publishing).await {
            Some(Ok(())) => {
                if let Some(unsent) = unsent {
                    unsent.sent();
                }
                Ok(())
            }
            Some(Err(error)) => Err(self.failed(error).await.into()),
            None => Err(NotSent::Late),
        }
    }
}
