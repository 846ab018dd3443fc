//! Measures how large a message's properties and the arguments of a declaration will be when they are sent.
//!
//! A body is split into frames, but everything else has to fit into one frame. RabbitMQ answers a larger frame by
//! closing the connection (501), with all its channels.

use amqprs::{BasicProperties, FieldTable};

use crate::{Error, Result};

/// The size of what is around a frame's payload: type, channel, size, and the end.
const AROUND: usize = 8;

/// Before the properties in their frame: class, weight, and the size of the body.
const BEFORE: usize = 12;

/// The size of what a method frame contains beside its names and their table: class, method, a reserved number, flags.
const BESIDE: usize = 7;

/// The size of a message's header frame. 0 without headers: the other properties take at most 3.4 KB, and RabbitMQ's
/// smallest frame is larger.
pub(crate) fn header_frame(properties: &BasicProperties) -> Result<usize> {
    if properties.headers().is_none() {
        return Ok(0);
    }
    let properties = amqp_serde::to_bytes(properties).map_err(|error| Error::Invalid(error.to_string()))?;
    Ok(AROUND + BEFORE + properties.len())
}

/// Whether such a frame can be sent on this connection. With a `frame_max` of 0 there is no limit.
pub(crate) fn check_header_frame(size: usize, frame_max: usize) -> Result<()> {
    if fits(size, frame_max) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the message's properties and headers take {size} bytes; they have to fit into one frame, and RabbitMQ takes \
         frames of {frame_max} bytes (`frame_max`): put what is large into the body"
    )))
}

/// 0 means no limit.
fn fits(size: usize, frame_max: usize) -> bool {
    size <= frame_max || frame_max == 0
}

/// The size of the frame of a method with these names and arguments.
pub(crate) fn method_frame(names: &[&str], arguments: &FieldTable) -> Result<usize> {
    let arguments = amqp_serde::to_bytes(arguments).map_err(|error| Error::Invalid(error.to_string()))?;
    Ok(around_arguments(names) + arguments.len())
}

/// The size of such a frame without its arguments.
pub(crate) fn around_arguments(names: &[&str]) -> usize {
    AROUND + BESIDE + names.iter().map(|name| 1 + name.len()).sum::<usize>()
}

/// Whether such a frame can be sent on this connection.
pub(crate) fn check_method_frame(doing: &str, size: usize, frame_max: usize) -> Result<()> {
    if fits(size, frame_max) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{doing}: with its arguments it takes {size} bytes; it has to fit into one frame, and RabbitMQ takes frames of \
         {frame_max} bytes (`frame_max`)"
    )))
}
