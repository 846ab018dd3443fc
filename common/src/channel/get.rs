//! `basic.get`: fetches one message for a caller that may be dropped before it comes.

use std::{sync::Arc, time::Duration};

use amqprs::channel::{BasicGetArguments, Channel as RawChannel};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    Delivery, Error, Result, broker_words, connection::core::ConnectionCore, encoding::nesting::fetched,
    session::Session,
};

/// How long after the end of a channel it may take until it is certain whether a call had an answer.
const ANSWERED_OR_NOT: Duration = Duration::from_secs(5);

pub(crate) async fn get(
    core: Arc<ConnectionCore>,
    session: Arc<Session>,
    arguments: BasicGetArguments,
) -> Result<Option<Delivery>> {
    let (queue, no_ack) = (arguments.queue.clone(), arguments.no_ack);
    let doing = || format!("cannot get a message from queue `{queue}`");
    let (sender, answer) = oneshot::channel();
    let on = session.clone();
    let call = move |raw: RawChannel| async move {
        let message = raw.basic_get(arguments).await?.map(fetched);
        let delivery = message.map(|message| Delivery::from_get(message, on, no_ack));
        // If the caller has been dropped, the message goes back to its queue.
        drop(sender.send(Fetched { delivery, core }));
        Ok(())
    };
    let failure = match session.call(doing, call).await {
        Ok(()) => None,
        Err(error) => match explained(error, &queue, doing) {
            error if no_ack => Some(error),
            error => return Err(error),
        },
    };
    // Without acknowledgement a message is delivered only once, and it may have come just before the channel ended.
    let patience = match failure {
        None | Some(Error::Stale | Error::Lost { .. }) => ANSWERED_OR_NOT,
        Some(_) => Duration::ZERO,
    };
    if let Ok(Ok(mut fetched)) = timeout(patience, answer).await {
        return Ok(fetched.delivery.take());
    }
    let lost = |reason| format!("{reason}; if a message was on its way without acknowledgement, it is lost");
    Err(match failure {
        Some(Error::Lost { code, reason }) => Error::Lost { code, reason: lost(reason) },
        Some(Error::Timeout { doing, after, reason }) => Error::Timeout { doing, after, reason: lost(reason) },
        failure => failure.unwrap_or(Error::Stale),
    })
}

fn explained(error: Error, queue: &str, doing: impl Fn() -> String) -> Error {
    match error {
        // If RabbitMQ had closed it, it would have said why.
        Error::Lost { code: None, reason } => Error::lost(format!(
            "{reason}; if it happens each time, look at the first message of queue `{queue}` in the management page: a \
             header of it may not be UTF-8"
        )),
        // RabbitMQ closes the whole connection if the queue is a stream.
        error => error.blame(doing, &broker_words::queue(queue)),
    }
}

/// The result of `basic.get`, for a caller that may have been dropped meanwhile.
struct Fetched {
    delivery: Option<Delivery>,
    core: Arc<ConnectionCore>,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if let Some(delivery) = self.delivery.take() {
            self.core.spawn(async { drop(delivery.give_back().await) });
        }
    }
}
