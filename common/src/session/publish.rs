//! Sends one message on a session: it gets a number, and is added to the pending confirms.

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

/// A message on its way to the broker. It is in a box, because each future that passes it on would otherwise contain it
/// twice.
pub(crate) struct Outgoing {
    pub arguments: BasicPublishArguments,
    pub properties: BasicProperties,
    pub body: Vec<u8>,
    /// Its share of what may be in flight on its channel.
    pub share: Option<OwnedSemaphorePermit>,
    pub confirm: Option<ConfirmSender>,
    /// No other message has its correlation id, by which it is found when RabbitMQ returns it. It needs no number in a header.
    pub has_unique_id: bool,
}

/// Why a message was not sent.
pub(crate) enum NotSent {
    /// The session had already ended. This returns the message for the next session.
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
        Box::new(Self { arguments, properties, body: body.into(), share: None, confirm: None, has_unique_id: false })
    }
}

impl Session {
    /// Sends a message. On a session in confirm mode, `confirm` receives its outcome.
    pub async fn publish(&self, deadline: Instant, mut message: Box<Outgoing>) -> Result<(), NotSent> {
        let confirms = self.confirms.load(Ordering::Relaxed);
        if message.arguments.mandatory && !confirms {
            let reason = "`mandatory` needs a channel with confirms, which can report a returned message";
            return Err(Error::Invalid(reason.into()).into());
        }
        // RabbitMQ returns a message without its number.
        let numbered = message.arguments.mandatory && !message.has_unique_id;
        let header = header_frame(&message.properties)? + if numbered { NUMBER_FIELD } else { 0 };
        check_header_frame(header, self.frame_max)?;
        let mut mark = Mark::of(&message.arguments, &message.properties, &message.body);
        if message.has_unique_id {
            mark.set_unique_id(&message.properties);
        }
        // One critical section: the broker numbers messages in the order in which they arrive.
        let Some(_in_order) = self.in_order(deadline).await else {
            return Err(if self.is_lost() { NotSent::Ended(message) } else { NotSent::Late });
        };
        let mut unsent = None;
        if confirms {
            let Outgoing { share, confirm, .. } = &mut *message;
            unsent = self.state.pending_confirms.register(&self.state.closed, share, confirm, mark);
        }
        // After the close of a channel nothing may be sent on it.
        if self.is_lost() && unsent.is_none() {
            return Err(NotSent::Ended(message));
        }
        if numbered && let Some(unsent) = &unsent {
            put_number(&mut message.properties, unsent.number);
        }
        let Outgoing { arguments, properties, body, share: _share, .. } = *message;
        // Also in a box: only one call at a time is here, but each waiting call would reserve the space.
        let publishing = Box::pin(self.raw()?.basic_publish(properties, body, arguments));
        // If this fails, the body is gone, so there is no second try here. The caller knows that it was not sent.
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
