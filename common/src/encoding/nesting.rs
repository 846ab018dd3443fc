//! Messages that are nested so deeply that decoding or dropping them would overflow a normal stack, and end the
//! process.
//!
//! One frame has room for some 26,000 tables or arrays inside each other. amqprs decodes them by recursion on the
//! connection's thread, whose stack is large enough. This module removes such a header before the program sees the
//! message, and drops it on a stack that is large enough.

use std::{
    io,
    mem::{forget, take},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    thread,
};

use amqprs::{
    BasicProperties, FieldTable,
    channel::{ConsumerMessage, GetMessage},
};
use futures_util::FutureExt;
use tokio::{sync::mpsc, task::unconstrained};

use crate::{
    Error, Result,
    encoding::headers::{MOST_LEVELS, is_too_deep},
    escaped,
    options::Host,
};

/// The largest frame that may be negotiated; RabbitMQ's default is 131,072 bytes.
const MOST_FRAME: u32 = if cfg!(target_pointer_width = "64") { 1 << 20 } else { 131_072 };

/// Decoding takes up to 681 bytes of stack for each byte of a frame in a debug build, 113 in a release build (amqprs
/// 2.1.5, x86-64: tables inside each other, 6 bytes each, and arrays, 5). This is address space. Only the part that is
/// used takes memory.
pub(crate) const STACK: usize = MOST_FRAME as usize * if cfg!(debug_assertions) { 1024 } else { 256 };

/// The smallest frame that AMQP allows (0-9-1, section 4.2.3).
const LEAST_FRAME: u32 = 4096;

/// amqprs accepts the frame size that the broker offers. 0 means any size. amqprs's encoder cannot handle 0, nor a size
/// that leaves no room for content.
pub(crate) fn check_frame_max(frame_max: u32, host: &Host) -> Result<()> {
    let address = host.to_string();
    if (LEAST_FRAME..=MOST_FRAME).contains(&frame_max) {
        return Ok(());
    }
    if (1..LEAST_FRAME).contains(&frame_max) {
        let reason = format!("it allows frames of {frame_max} bytes, and AMQP asks for {LEAST_FRAME} at least");
        return Err(Error::connect(address, reason));
    }
    let size = if frame_max == 0 { "any size".into() } else { format!("{frame_max} bytes") };
    let reason = format!(
        "it allows frames of {size}, and a message with so large a header could end this program; set `frame_max` in \
         rabbitmq.conf to {MOST_FRAME} or less (its default is 131072)"
    );
    Err(Error::connect(address, reason))
}

/// The size of the stack of every thread that amqprs runs on.
pub(crate) fn stack_size() -> io::Result<usize> {
    // Tokio panics if it cannot start a thread, for instance if the address space is limited (`ulimit -v`).
    drop(thread::Builder::new().stack_size(STACK).spawn(|| {})?.join());
    Ok(STACK)
}

/// The properties without what is nested too deeply. A warning says what was removed, and from which message.
pub(crate) fn shallow(properties: BasicProperties, of: impl Fn() -> String) -> BasicProperties {
    let Some(headers) = properties.headers().filter(|_| has_deep_header(&properties)) else { return properties };
    let mut kept = FieldTable::new();
    for (name, value) in headers.as_ref() {
        if is_too_deep(value) {
            tracing::warn!(
                "header {:?} of {} is removed: it is nested deeper than {MOST_LEVELS} levels",
                escaped(name.as_ref()),
                escaped(&of())
            );
        } else {
            kept.insert(name.clone(), value.clone());
        }
    }
    let rest = BasicProperties::new(
        properties.content_type().cloned(),
        properties.content_encoding().cloned(),
        Some(kept),
        properties.delivery_mode(),
        properties.priority(),
        properties.correlation_id().cloned(),
        properties.reply_to().cloned(),
        properties.expiration().cloned(),
        properties.message_id().cloned(),
        properties.timestamp(),
        properties.message_type().cloned(),
        properties.user_id().cloned(),
        properties.app_id().cloned(),
        properties.cluster_id().cloned(),
    );
    drop_deep(vec![properties]);
    rest
}

fn has_deep_header(properties: &BasicProperties) -> bool {
    properties.headers().is_some_and(|headers| headers.as_ref().values().any(is_too_deep))
}

/// Drops them on a thread whose stack is large enough. They cannot be taken apart, because amqprs does not give their
/// headers away.
fn drop_deep(properties: Vec<BasicProperties>) {
    let slot = Arc::new(Mutex::new(properties));
    let take_out = |slot: &Mutex<Vec<_>>| take(&mut *slot.lock().unwrap_or_else(PoisonError::into_inner));
    let theirs = slot.clone();
    let dropping = thread::Builder::new().stack_size(STACK).spawn(move || drop(take_out(&theirs)));
    match dropping {
        // One such thread at a time for each task that reads messages.
        Ok(dropping) => drop(dropping.join()),
        // A leak is better than the end of the process.
        Err(_) => forget(take_out(&slot)),
    }
}

/// A message fetched by `basic.get`, safe for the program.
pub(crate) fn fetched((get, properties, body): GetMessage) -> GetMessage {
    let properties = shallow(properties, || origin("fetched", get.delivery_tag(), get.exchange(), get.routing_key()));
    (get, properties, body)
}

/// amqprs's receiver of deliveries. It makes each message safe before it returns it, and drops unread ones safely on
/// any thread.
pub(crate) struct Messages(pub mpsc::UnboundedReceiver<ConsumerMessage>);

impl Messages {
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<ConsumerMessage>> {
        self.0.poll_recv(context).map(|message| message.map(fit))
    }

    pub async fn recv(&mut self) -> Option<ConsumerMessage> {
        self.0.recv().await.map(fit)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn try_recv(&mut self) -> Option<ConsumerMessage> {
        self.0.try_recv().ok().map(fit)
    }
}

fn fit(mut message: ConsumerMessage) -> ConsumerMessage {
    let ConsumerMessage { deliver: Some(deliver), basic_properties, .. } = &mut message else { return message };
    let origin = || origin("delivered", deliver.delivery_tag(), deliver.exchange(), deliver.routing_key());
    *basic_properties = basic_properties.take().map(|properties| shallow(properties, origin));
    message
}

fn origin(how: &str, tag: u64, exchange: &str, routing_key: &str) -> String {
    format!("the message {how} as {tag} (exchange `{exchange}`, routing key `{routing_key}`)")
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.0.close();
        let mut deep = Vec::new();
        loop {
            match unconstrained(self.0.recv()).now_or_never() {
                Some(Some(message)) => deep.extend(message.basic_properties.filter(has_deep_header)),
                Some(None) => break,
                // One message is being handed over at this moment.
                None => thread::yield_now(),
            }
        }
        if !deep.is_empty() {
            drop_deep(deep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST_FRAME, check_frame_max};
    use crate::ConnectOptions;

    #[test]
    fn frames_are_bounded() {
        let options = ConnectOptions::default();
        let host = &options.hosts[0];
        assert!([4096, 131_072, MOST_FRAME].iter().all(|size| check_frame_max(*size, host).is_ok()));
        for (size, shown) in [(0, "any size"), (MOST_FRAME + 1, "1048577 bytes")] {
            let refusal = check_frame_max(size, host).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(refusal.contains(shown), "{refusal}");
        }
    }
}
