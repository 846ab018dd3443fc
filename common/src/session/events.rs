//! What the broker says on a session without being asked.

use std::{sync::Arc, time::Duration};

use amqprs::{
    Ack, BasicProperties, Cancel, CloseChannel, Nack, Return, callbacks::ChannelCallback,
    channel::Channel as RawChannel,
};
use async_trait::async_trait;
use tokio::time::sleep;

use crate::{
    Error, Result, Returned,
    connection::live::ConnectionState,
    encoding::nesting::shallow,
    session::{confirms::Verdict, message_number::remove_number, state::SessionState},
};

/// How long to wait before the broker's close of a channel is answered and amqprs's dispatcher ends. Deliveries may
/// still come after the close: in RabbitMQ they come from another process, and a quorum queue delivers until the
/// prefetch is used up. A delivery that finds no dispatcher ends the whole connection. On a busy machine 20 ms were too
/// short.
const LINGER: Duration = Duration::from_secs(1);

/// Runs inside amqprs's dispatcher, so it never calls the channel. It holds the state but not the session, which it would keep
/// open.
pub(crate) struct SessionEvents {
    pub state: Arc<SessionState>,
    pub connection: Arc<ConnectionState>,
}

impl Drop for SessionEvents {
    fn drop(&mut self) {
        let reason = self.connection.closed.reason().unwrap_or(Error::lost("the channel ended"));
        self.state.end(reason);
    }
}

#[async_trait]
impl ChannelCallback for SessionEvents {
    async fn close(&mut self, raw: &RawChannel, close: CloseChannel) -> Result<(), amqprs::error::Error> {
        self.connection.numbers.lose(raw.channel_id());
        self.state.end_by_broker(&close);
        // The answer has to wait: otherwise a frame that is still on its way, in either direction, ends the whole
        // connection. But it must be sent, because until then a quorum queue keeps what was delivered on this channel
        // unacknowledged.
        let quiet = async {
            sleep(LINGER).await;
            // When this lock is free, tasks that published or settled have sent everything. Later ones see the loss.
            drop(self.state.order.lock().await);
        };
        tokio::select! {
            () = self.connection.ended() => {}
            () = quiet => {}
        }
        // If the connection has ended, or ends in a moment, there is no peer to answer, and amqprs would panic. Its
        // writer may end before the loss is reported.
        if raw.is_connection_open() && !self.connection.is_ending() {
            Ok(())
        } else {
            Err(amqprs::error::Error::ChannelCloseError("closed by RabbitMQ".into()))
        }
    }

    async fn cancel(&mut self, _: &RawChannel, _: Cancel) -> Result<(), amqprs::error::Error> {
        // The channel still lives, and its deliveries can be settled.
        self.state.cancelled.cancel();
        Ok(())
    }

    async fn flow(&mut self, _: &RawChannel, active: bool) -> Result<bool, amqprs::error::Error> {
        Ok(active)
    }

    async fn publish_ack(&mut self, _: &RawChannel, ack: Ack) {
        self.state.pending_confirms.settle(ack.delivery_tag(), ack.mutiple(), Verdict::Ack);
    }

    async fn publish_nack(&mut self, _: &RawChannel, nack: Nack) {
        self.state.pending_confirms.settle(nack.delivery_tag(), nack.multiple(), Verdict::Nack);
    }

    async fn publish_return(&mut self, _: &RawChannel, ret: Return, properties: BasicProperties, body: Vec<u8>) {
        let (properties, number) = remove_number(shallow(properties, || format!("a returned message ({ret})")));
        let message = Box::new(Returned {
            code: ret.reply_code(),
            text: ret.reply_text().clone(),
            exchange: ret.exchange().clone(),
            routing_key: ret.routing_key().clone(),
            properties,
            body,
        });
        if let Some(number) = number {
            self.state.pending_confirms.returned(number, message);
        } else if let Err(message) = self.state.pending_confirms.returned_by_id(message) {
            tracing::warn!("a message was returned that was not published here: {message}");
        }
    }
}
