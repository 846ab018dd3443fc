//! Finds out which of several messages the broker refused.
//!
//! RabbitMQ handles the messages of a channel in order. When it refuses one, it closes the channel and ignores all
//! later ones. It does not say which message it was, but its words name the exchange, the size or the user of that
//! message. So this module keeps a mark of each message in flight, and compares it with those words.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
};

use amqprs::{BasicProperties, channel::BasicPublishArguments};

use crate::{
    Error, Result,
    broker_words::{COMPARED, Refused},
};

/// RabbitMQ's answer to a message for a missing exchange repeats the exchange's name, and is cut at 255 bytes. If the
/// name has letters that are not ASCII, this ends the connection and all its channels (3.10: if the cut is inside a
/// letter, the answer is not UTF-8, and amqprs gives up; 4.3: always, with 541).
pub(crate) fn check_can_be_refused(exchange: &str, virtual_host: &str) -> Result<()> {
    let words = ["NOT_FOUND - no exchange '", exchange, "' in vhost '", virtual_host, "'"];
    if words.iter().map(|word| word.len()).sum::<usize>() <= 255 || words.iter().all(|word| word.is_ascii()) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the exchange name is {} bytes long and not ASCII: if there is no such exchange, RabbitMQ cannot say so, and ends \
         the whole connection; use a shorter name",
        exchange.len()
    )))
}

/// What the broker's words can contain of a message. They are kept as hashes, so that a message in flight needs no copy
/// of its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    exchange: u64,
    routing_key: u64,
    user_id: u64,
    size: usize,
    /// Of a message that has a correlation id of its own.
    unique_id: u64,
}

impl Mark {
    pub fn of(arguments: &BasicPublishArguments, properties: &BasicProperties, body: &[u8]) -> Self {
        Self {
            exchange: hash(&arguments.exchange),
            routing_key: hash(&arguments.routing_key),
            user_id: properties.user_id().map_or(0, |user| hash(user)),
            size: body.len(),
            unique_id: 0,
        }
    }

    /// No other message has its correlation id.
    pub fn set_unique_id(&mut self, properties: &BasicProperties) {
        self.unique_id = properties.correlation_id().map_or(0, |id| hash(id));
    }

    /// Whether a returned message with these properties is this one.
    pub fn has_id_of(&self, returned: &BasicProperties) -> bool {
        self.unique_id != 0 && returned.correlation_id().is_some_and(|id| hash(id) == self.unique_id)
    }
}

fn hash(name: &str) -> u64 {
    if name.is_empty() {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    name.as_bytes()[..name.len().min(COMPARED)].hash(&mut hasher);
    hasher.finish()
}

/// Whether the broker's words can mean this message.
pub(crate) fn fits(refused: &Refused<'_>, mark: &Mark) -> bool {
    match *refused {
        Refused::Exchange(exchange) => mark.exchange == hash(exchange),
        Refused::Topic { exchange, routing_key } => {
            (mark.exchange, mark.routing_key) == (hash(exchange), hash(routing_key))
        }
        Refused::Size(size) => mark.size == size,
        Refused::UserId(user) => mark.user_id == hash(user),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(exchange: &str, key: &str, user: &str, size: usize) -> Mark {
        let mut properties = BasicProperties::default();
        if !user.is_empty() {
            properties.with_user_id(user);
        }
        Mark::of(&BasicPublishArguments::new(exchange, key), &properties, &vec![0; size])
    }

    /// The words of RabbitMQ 3.10.8 and 4.3.6.
    #[test]
    fn the_words_of_the_broker_tell_which_message_it_refused() {
        let long = "n".repeat(240);
        let cut = format!("NOT_FOUND - no exchange '{}...", &long[..227]);
        for (text, guilty, innocent) in [
            ("NOT_FOUND - no exchange 'a'b' in vhost '/'", mark("a'b", "", "", 0), mark("a", "", "", 0)),
            (&cut, mark(&long, "", "", 0), mark("n", "", "", 0)),
            (
                "ACCESS_REFUSED - write access to exchange 'x' in vhost 'v' refused for user 'u'",
                mark("x", "", "", 0),
                mark("v", "", "", 0),
            ),
            (
                "ACCESS_REFUSED - access to exchange 'amq.default' in vhost 'v' refused for user 'u'",
                mark("", "q", "", 0),
                mark("v", "q", "", 0),
            ),
            (
                "ACCESS_REFUSED - write access to topic 'k.l' in exchange 't' in vhost 'v' refused for user 'u'",
                mark("t", "k.l", "", 0),
                mark("t", "k", "", 0),
            ),
            (
                "ACCESS_REFUSED - cannot publish to internal exchange 'x' in vhost 'v'",
                mark("x", "", "", 0),
                mark("", "x", "", 0),
            ),
            (
                "PRECONDITION_FAILED - message size 17 is larger than configured max size 16",
                mark("", "q", "", 17),
                mark("", "q", "", 16),
            ),
            (
                "PRECONDITION_FAILED - user_id property set to 'a' but authenticated user was 'b'",
                mark("", "q", "a", 0),
                mark("", "q", "b", 0),
            ),
        ] {
            let refused = Refused::in_words(text).expect(text);
            assert!(fits(&refused, &guilty), "{text}: {refused:?} {guilty:?}");
            assert!(!fits(&refused, &innocent), "{text}: {refused:?} {innocent:?}");
        }
    }
}
