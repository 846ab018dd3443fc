//! How large a message's properties are on the wire, before they are sent.
//!
//! A body is cut into frames, but the properties have to fit into one. RabbitMQ answers a larger frame by closing the
//! connection (501), and with it every channel on it.

use amqprs::BasicProperties;

use crate::{Error, Result};

/// Around what a frame carries: type, channel, size, and the end.
const AROUND: usize = 8;

/// Before the properties in their frame: class, weight, and the size of the body.
const BEFORE: usize = 12;

/// The size of a message's header frame. 0 without headers: the other properties take 3.4 KB at most, and the smallest
/// frame that RabbitMQ offers is larger.
pub(crate) fn header_frame(properties: &BasicProperties) -> Result<usize> {
    if properties.headers().is_none() {
        return Ok(0);
    }
    let properties = amqp_serde::to_bytes(properties).map_err(|error| Error::Invalid(error.to_string()))?;
    Ok(AROUND + BEFORE + properties.len())
}

/// Whether such a frame can be sent on this connection. A `frame_max` of 0 is no limit.
pub(crate) fn check_header_frame(size: usize, frame_max: usize) -> Result<()> {
    if size <= frame_max || frame_max == 0 {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the message's properties and headers take {size} bytes; they have to fit into one frame, and RabbitMQ takes \
         frames of {frame_max} bytes (`frame_max`): put what is large into the body"
    )))
}
