//! Decisions that depend on RabbitMQ's words, which were seen on 3.10.8, 4.0 and 4.3.6.
//!
//! RabbitMQ closes a channel, or the whole connection, without saying which request it means. Only its words say it. If
//! another version uses other words, these tests fail: `common/tests/rabbitmq/refusals.rs`, `permissions.rs`,
//! `declaring.rs`, `connection_limits.rs` and `getting.rs`.

/// How RabbitMQ names a queue when it closes the connection because of it.
pub(crate) fn queue(name: &str) -> String {
    format!("queue '{name}'")
}

/// How RabbitMQ 3 names an exchange type that it does not know.
pub(crate) fn exchange_type(name: &str) -> String {
    format!("exchange type '{name}'")
}

/// In the words about the limit for a user's channels.
pub(crate) const CHANNELS: &str = "channels";

/// The deprecated feature of a queue that is neither durable nor exclusive.
pub(crate) const TRANSIENT_QUEUES: &str = "transient_nonexcl_queues";

/// How many bytes of a name are compared. RabbitMQ cuts its words at 255 bytes, and with them the end of a long name.
pub(crate) const COMPARED: usize = 100;

/// Which message RabbitMQ refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused<'a> {
    Exchange(&'a str),
    Topic { exchange: &'a str, routing_key: &'a str },
    Size(usize),
    UserId(&'a str),
}

impl<'a> Refused<'a> {
    /// Parses the reply text. `None` if it does not say which message it means.
    pub fn in_words(text: &'a str) -> Option<Self> {
        if let Some((_, rest)) = text.split_once("message size ") {
            let digits = rest.split(' ').next()?;
            return digits.parse().ok().map(Self::Size);
        }
        if let Some((_, rest)) = text.split_once("user_id property set to '") {
            return quoted(rest, "' but authenticated").map(Self::UserId);
        }
        if let Some((_, rest)) = text.split_once("access to topic '") {
            let (routing_key, rest) = rest.split_once("' in exchange '")?;
            return quoted(rest, "' in vhost '").map(|exchange| Self::Topic { exchange, routing_key });
        }
        let (_, rest) = text.split_once("exchange '")?;
        quoted(rest, "' in vhost '").map(Self::Exchange)
    }
}

/// The name that ends before `end`. If the text was cut, what is left of the name, if it is as long as what is
/// compared.
fn quoted<'a>(text: &'a str, end: &str) -> Option<&'a str> {
    match text.rsplit_once(end) {
        // RabbitMQ's words call the exchange "" by this name.
        Some(("amq.default", _)) => Some(""),
        Some((name, _)) => Some(name),
        None => text.is_char_boundary(COMPARED).then_some(text),
    }
}

pub(crate) const ACKNOWLEDGEMENT_TIMEOUT: &str = "finish sooner, acknowledge earlier, or raise RabbitMQ's acknowledgement timeout \
     (`consumer_timeout` in rabbitmq.conf, in milliseconds; 30 minutes unless set)";

/// What a learner can do about the most common answers of the broker.
pub(crate) fn hint(doing: &str, code: u16, text: &str) -> String {
    let hint = match code {
        403 if text.contains("refused for user") => return missing_right(doing, text),
        403 if text.contains("exclusive use") => "; another consumer uses it exclusively",
        404 => "; declare it first, or check the name",
        405 => "; it is exclusive to another connection",
        406 if text.contains("inequivalent") => {
            "; it exists with other arguments: use another name, or delete the old one if you no longer need it"
        }
        406 if text.contains("delivery acknowledgement") => return format!("; {ACKNOWLEDGEMENT_TIMEOUT}"),
        406 if text.contains("prefetch count is not set") => {
            "; a stream needs a prefetch (`basic_qos`) and manual acknowledgement: leave `auto_ack` off"
        }
        540 if text.contains("acknowledgement") => "; a stream needs manual acknowledgement: leave `auto_ack` off",
        540 if text.contains("basic.get") => "; consume from it instead",
        541 if text.contains(TRANSIENT_QUEUES) => {
            "; this RabbitMQ refuses queues that are neither durable nor exclusive: declare it `durable`"
        }
        _ => "",
    };
    hint.into()
}

/// Which of the three rights is missing ([access control](https://www.rabbitmq.com/docs/access-control#authorisation)).
/// RabbitMQ 4 says it. For older versions it follows from what the program was doing.
fn missing_right(doing: &str, text: &str) -> String {
    let said = ["configure", "write", "read"].into_iter().find(|right| text.contains(&format!("{right} access")));
    let right = said.or_else(|| {
        let by_deed = [
            ("declare", "configure"),
            ("delete", "configure"),
            ("refused a message", "write"),
            ("consume", "read"),
            ("get", "read"),
            ("purge", "read"),
        ];
        by_deed.into_iter().find(|(deed, _)| doing.contains(deed)).map(|(_, right)| right)
    });
    let missing = match right {
        Some(right) => format!("the user lacks the right `{right}` there"),
        // Binding needs two rights: `write` on the destination and `read` on the source.
        None => "the user lacks a right there".into(),
    };
    format!("; {missing} (`rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ` grants it)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_without_a_cause_blame_nothing() {
        for text in ["", "INTERNAL_ERROR", "NOT_FOUND - no exchange 'short...", "PRECONDITION_FAILED - message size x"]
        {
            assert_eq!(Refused::in_words(text), None, "{text}");
        }
    }
}
