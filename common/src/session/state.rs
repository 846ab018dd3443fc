//! The part of a session that may be shared without keeping its channel open: with amqprs's callbacks, and with callers
//! that wait.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use amqprs::CloseChannel;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{Error, connection::loss::Loss, session::confirms::PendingConfirms};

#[derive(Default)]
pub(crate) struct SessionState {
    /// The end of the session. It is the only signal for it.
    pub closed: Loss,
    pub pending_confirms: PendingConfirms,
    /// Held while a message is numbered and sent, or while a delivery is settled. Both depend on the order on the wire.
    pub order: Mutex<()>,
    /// All deliveries up to this tag have been settled together (`basic.ack` with `multiple`).
    pub settled_up_to: AtomicU64,
    /// Whether any delivery has been settled.
    pub has_settled: AtomicBool,
    /// RabbitMQ has cancelled the consumer.
    pub cancelled: CancellationToken,
    /// RabbitMQ closed the channel because of a message that was published or settled on it, not because of another
    /// call.
    by_message: AtomicBool,
}

impl SessionState {
    /// The session has ended, and not because of a message. The first reason counts.
    pub fn end(&self, reason: Error) {
        self.pending_confirms.end(&self.closed, reason);
    }

    /// RabbitMQ has closed the channel.
    pub fn end_by_broker(&self, close: &CloseChannel) {
        let (code, text) = (close.reply_code(), close.reply_text().clone());
        // basic.publish; basic.ack, reject, nack.
        let refused = (close.class_id(), close.method_id()) == (60, 40);
        let unsettled = matches!((close.class_id(), close.method_id()), (60, 80 | 90 | 120));
        self.by_message.store(refused || unsettled, Ordering::Relaxed);
        match refused {
            true => self.pending_confirms.refuse(&self.closed, code, &text),
            false => self.end(Error::Closed { doing: "RabbitMQ closed the channel".into(), code, text }),
        }
    }

    /// Whether RabbitMQ closed the channel because of a message published or settled on it.
    pub fn closed_by_message(&self) -> bool {
        self.by_message.load(Ordering::Relaxed)
    }

    /// Once the session has ended: whether RabbitMQ ended it because of something sent, which may be any of the
    /// messages in flight.
    pub fn suspects_all(&self) -> bool {
        match self.pending_confirms.refusal() {
            Some(refusal) => !refusal.is_clear,
            None => self.closed.reason().is_some_and(|reason| reason.is_connection_exception()),
        }
    }
}
