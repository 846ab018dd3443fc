//! How a queue is declared: its type, properties and arguments. Contradictions between them are refused.

use amqprs::channel::QueueDeclareArguments;

use crate::{
    Error, Result, TableValue,
    encoding::{frame_size::method_frame, headers::rebuilt_arguments, short_string::check_name, table::table},
    session::declared_arguments::{Checked, check_printed},
};

/// The argument with the type of a queue.
const TYPE: &str = "x-queue-type";

/// The declaration of a durable **quorum queue**, the type that RabbitMQ recommends for messages that must not be lost.
/// It is replicated in a cluster, and it notices a message that comes back again and again ([quorum
/// queues](https://www.rabbitmq.com/docs/quorum-queues)).
///
/// The chapters declare quorum queues in every language, so that their programs work with each other.
///
/// ```
/// use common::quorum_queue;
///
/// let plain = quorum_queue("task_queue");
/// let patient = quorum_queue("jobs").with("x-delivery-limit", 5).with("x-dead-letter-exchange", "failed");
/// ```
pub fn quorum_queue(name: &str) -> QueueDeclaration {
    QueueDeclaration::of_type("quorum", name)
}

/// The declaration of a durable **classic queue**. It is on one node. Only this type can be exclusive, be deleted with
/// its last consumer, or be transient ([classic queues](https://www.rabbitmq.com/docs/classic-queues)).
///
/// ```
/// use common::classic_queue;
///
/// let newest = classic_queue("newest").with("x-max-length", 10).with("x-overflow", "drop-head");
/// let for_a_session = classic_queue("session").auto_delete(true);
/// ```
pub fn classic_queue(name: &str) -> QueueDeclaration {
    QueueDeclaration::of_type("classic", name)
}

/// The declaration of a **stream**. Any number of consumers can read its messages, again and again
/// ([streams](https://www.rabbitmq.com/docs/streams)). Consume from it with manual acknowledgement. To begin somewhere
/// else than at its end, use the argument `x-stream-offset` (see [`table`]).
///
/// ```
/// let events = common::stream_queue("events").with("x-max-age", "7D");
/// ```
pub fn stream_queue(name: &str) -> QueueDeclaration {
    QueueDeclaration::of_type("stream", name)
}

/// The declaration of a queue for this connection only. The broker chooses its name, and deletes it with the connection
/// ([exclusive queues](https://www.rabbitmq.com/docs/queues#exclusive-queues)).
///
/// ```no_run
/// # async fn example(channel: common::SetupChannel) -> common::Result<()> {
/// let name = channel.queue_declare(common::exclusive_queue().with("x-max-length", 1_000)).await?.name;
/// # Ok(())
/// # }
/// ```
pub fn exclusive_queue() -> QueueDeclaration {
    QueueDeclaration { durable: false, exclusive: true, ..QueueDeclaration::of_type("classic", "") }
}

/// A **passive** declaration. It creates nothing: the broker only says whether this queue exists (404 if not), and how
/// many messages and consumers it has.
///
/// ```no_run
/// # async fn example(channel: common::Channel) -> common::Result<()> {
/// let waiting = channel.queue_declare(common::existing_queue("task_queue")).await?.messages;
/// # Ok(())
/// # }
/// ```
pub fn existing_queue(name: &str) -> QueueDeclaration {
    QueueDeclaration { queue_type: None, passive: true, ..QueueDeclaration::of_type("", name) }
}

/// What `queue_declare` takes ([`queue.declare`](https://www.rabbitmq.com/amqp-0-9-1-reference#queue.declare)). Made by
/// [`quorum_queue`], [`classic_queue`], [`stream_queue`], [`exclusive_queue`] or [`existing_queue`], or from amqprs's
/// [`QueueDeclareArguments`]. These are sent unchanged, or refused if a key is twice in their table.
///
/// What contradicts the type of queue is refused before anything is sent, with [`Invalid`](Error::Invalid) and a
/// reason. Quorum queues and streams are durable and have a name. They cannot be exclusive or be deleted with their
/// last consumer.
#[derive(Debug, Clone)]
#[must_use = "a declaration does nothing until `queue_declare` gets it"]
pub struct QueueDeclaration {
    /// Amqprs's arguments; then the rest is not used.
    raw: Option<QueueDeclareArguments>,
    queue_type: Option<&'static str>,
    name: String,
    passive: bool,
    durable: bool,
    exclusive: bool,
    auto_delete: bool,
    arguments: Vec<(String, TableValue)>,
}

impl QueueDeclaration {
    fn of_type(queue_type: &'static str, name: &str) -> Self {
        Self {
            raw: None,
            queue_type: Some(queue_type),
            name: name.to_owned(),
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            arguments: Vec::new(),
        }
    }

    /// Adds an argument ([optional arguments](https://www.rabbitmq.com/docs/queues#optional-arguments)), or replaces the one
    /// of that name. The value is a text, a number, a `bool`, or another [`TableValue`].
    ///
    /// RabbitMQ checks the arguments that it knows, and ignores unknown names. So check the spelling.
    ///
    /// ```
    /// use common::quorum_queue;
    ///
    /// let queue = quorum_queue("orders")
    ///     .with("x-message-ttl", 60_000) // milliseconds
    ///     .with("x-max-length", 100_000)
    ///     .with("x-overflow", "reject-publish");
    /// ```
    pub fn with(mut self, name: &str, value: impl Into<TableValue>) -> Self {
        self.arguments.retain(|(known, _)| known != name);
        self.arguments.push((name.to_owned(), value.into()));
        self
    }

    /// Whether the queue survives a restart of the broker. Default: yes, except for [`exclusive_queue`].
    ///
    /// RabbitMQ 4.3 can be configured to refuse queues that are neither durable nor exclusive. It then closes the
    /// connection.
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// Whether only this connection can use the queue, which is deleted with it. Default: no, except for
    /// [`exclusive_queue`].
    pub fn exclusive(mut self, exclusive: bool) -> Self {
        self.exclusive = exclusive;
        self
    }

    /// Whether the queue is deleted when its last consumer ends. Default: no.
    pub fn auto_delete(mut self, auto_delete: bool) -> Self {
        self.auto_delete = auto_delete;
        self
    }

    pub(crate) fn check(self) -> Result<Checked> {
        if let Some(raw) = &self.raw {
            if !self.arguments.is_empty() || self.durable || self.exclusive || self.auto_delete {
                return Err(Error::Invalid(
                    "amqprs's QueueDeclareArguments have their own table and properties: set them there, or begin with \
                     `classic_queue` or `quorum_queue`"
                        .into(),
                ));
            }
            return check_printed(raw.clone());
        }
        check_name("queue name", &self.name)?;
        self.check_type()?;
        let Self { queue_type, name, passive, durable, exclusive, auto_delete, mut arguments, .. } = self;
        if let Some(queue_type) = queue_type {
            arguments.push((TYPE.into(), queue_type.into()));
        }
        let arguments = rebuilt_arguments(&format!("cannot declare queue `{name}`"), table(arguments)?)?;
        let size = method_frame(&[&name], &arguments)?;
        let declared = QueueDeclareArguments::new(&name)
            .passive(passive)
            .durable(durable && !passive)
            .exclusive(exclusive)
            .auto_delete(auto_delete)
            .arguments(arguments)
            .finish();
        let shared_and_transient = !(passive || durable || exclusive);
        Ok(Checked { arguments: declared, name, size, exclusive, shared_and_transient })
    }

    /// Refuses what contradicts the chosen type.
    fn check_type(&self) -> Result<()> {
        let Self { queue_type, name, durable, exclusive, auto_delete, arguments, .. } = self;
        let Some(queue_type) = queue_type else {
            if arguments.is_empty() && *durable && !exclusive && !auto_delete {
                return Ok(());
            }
            return Err(Error::Invalid(format!(
                "the declaration of queue `{name}` is passive: RabbitMQ would only look at the name"
            )));
        };
        let asked = arguments.iter().find(|(argument, _)| argument == TYPE).map(|(_, value)| value);
        if asked.is_some_and(|asked| asked.text() != Some(queue_type)) {
            return Err(Error::Invalid(format!(
                "queue `{name}` is declared as a {queue_type} queue, and its `{TYPE}` says otherwise: leave that out, and \
                 take `quorum_queue`, `classic_queue` or `stream_queue`"
            )));
        }
        let contradiction = match *queue_type {
            "classic" => None,
            _ if name.is_empty() => Some("needs a name"),
            _ if !durable => Some("is always durable"),
            _ if *exclusive => Some("cannot be exclusive"),
            _ if *auto_delete => Some("cannot be deleted with its last consumer (`auto_delete`)"),
            _ => None,
        };
        match contradiction {
            Some(reason) => Err(Error::Invalid(format!(
                "queue `{name}` is declared as a {queue_type} queue, which {reason}; take a `classic_queue`"
            ))),
            None => Ok(()),
        }
    }
}

impl From<QueueDeclareArguments> for QueueDeclaration {
    fn from(raw: QueueDeclareArguments) -> Self {
        Self { raw: Some(raw), queue_type: None, durable: false, ..Self::of_type("", "") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(declaration: QueueDeclaration, words: &str) {
        match declaration.check() {
            Err(Error::Invalid(text)) => assert!(text.contains(words), "{text}"),
            Err(other) => panic!("{other}"),
            Ok(checked) => panic!("it would be sent: {:?}", checked.arguments),
        }
    }

    #[test]
    fn declarations_that_contradict_the_type_of_a_queue_are_refused_with_a_reason() {
        for queue in [quorum_queue, stream_queue] {
            refused(queue("q").durable(false), "which is always durable; take a `classic_queue`");
            refused(queue("q").exclusive(true), "which cannot be exclusive");
            refused(queue("q").auto_delete(true), "`auto_delete`");
            refused(queue(""), "which needs a name");
            refused(queue("q").with(TYPE, "classic"), "its `x-queue-type` says otherwise");
        }
        refused(exclusive_queue().with(TYPE, "quorum"), "says otherwise");
        refused(classic_queue("q").with(TYPE, 1), "says otherwise");
        refused(existing_queue("q").with("x-max-length", 1), "is passive");
        refused(quorum_queue(&"n".repeat(256)), "256 bytes long; AMQP allows 255");
        refused(quorum_queue("q").with(&"n".repeat(256), 1), "256 bytes long; AMQP allows 255");
        refused(quorum_queue("q").with("x-max-length-bytes", u64::MAX), "`x-max-length-bytes`: 18446744073709551615");
        let raw = QueueDeclareArguments::durable_client_named("q");
        refused(QueueDeclaration::from(raw).with("x-max-length", 1), "have their own table");
    }

    #[test]
    fn an_argument_is_added_to_the_type_and_given_twice_it_is_replaced() {
        let queue = quorum_queue("q").with("x-delivery-limit", 1).with(TYPE, "quorum").with("x-delivery-limit", 5);
        let print = format!("{:?}", queue.check().expect("a declaration").arguments);
        assert!(print.contains("l(5)") && !print.contains("l(1)"), "{print}");
        assert_eq!(print.matches("\"quorum\"").count(), 1, "{print}");
        assert!(print.contains("durable: true"), "{print}");
    }

    #[test]
    fn amqprs_own_arguments_are_read_whatever_they_are_called() {
        for name in ["q", "", "\", passive: true", "no_wait: true", "a\"b\\c"] {
            let raw = QueueDeclareArguments::new(name);
            let checked = QueueDeclaration::from(raw.clone()).check().expect("a declaration");
            assert!(checked.shared_and_transient, "{name}");
            let checked = QueueDeclaration::from(raw.clone().exclusive(true).finish()).check().expect("a declaration");
            assert!(checked.exclusive && !checked.shared_and_transient, "{name}");
            assert!(QueueDeclaration::from(raw.clone().no_wait(true).finish()).check().is_err(), "{name}");
            let passive = raw.clone().passive(true).finish();
            assert!(!QueueDeclaration::from(passive).check().expect("a declaration").shared_and_transient, "{name}");
        }
    }
}
