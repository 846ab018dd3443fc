//! Names: short strings (AMQP 0-9-1, section 4.2.5.3).

use crate::{Error, Result};

/// amqprs panics on a longer name: AMQP's short strings have a length of one byte.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    match name.len() {
        0..=255 => Ok(()),
        length => Err(Error::Invalid(format!("the {what} is {length} bytes long; AMQP allows 255"))),
    }
}
