//! Errors. Each says what happened and what a person can do.

use std::{error, fmt, ops::Deref, sync::Arc, time::Duration};

use amqprs::BasicProperties;

use crate::{
    RemoteError,
    broker_words::{ACKNOWLEDGEMENT_TIMEOUT, hint},
    escaped,
};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between a program and its broker.
///
/// `Display` is one complete sentence: what happened, where, the broker's own words if there are any, and what to do.
/// Names and words of others in it are [`escaped`]. `Debug` puts the variant's name in front of the sentence, for logs
/// and panics. A `main` that returns [`MainResult`](crate::cli::MainResult) prints only the sentence. `source` is the
/// underlying error, if there is one: the I/O error of a [`Connect`](Self::Connect), or any error in an
/// [`Other`](Self::Other). The sentence repeats its words. No variant ever contains a password.
///
/// ```
/// # use common::Error;
/// # fn handle(error: Error) {
/// match error {
///     Error::Unroutable(message) => println!("no queue is bound for {}", message.routing_key),
///     Error::Unconfirmed { .. } => println!("perhaps arrived: repeat it if it may come twice"),
///     other => println!("{other}"),
/// }
/// # }
/// ```
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made to the broker: wrong address, nothing there, or something else there.
    #[error("cannot connect to RabbitMQ at {}: {}", escaped(address), escaped(reason))]
    Connect {
        /// `host:port` as it was asked for.
        address: String,
        /// What was seen, and what to do.
        reason: String,
        /// The I/O error, if there was one.
        source: Option<Cause>,
    },

    /// The broker was reached, but it refused this user or virtual host.
    #[error("RabbitMQ at {} refused the connection: {}", escaped(address), escaped(reason))]
    LoginRefused {
        /// `host:port` as it was asked for.
        address: String,
        /// The broker's words, and what to check.
        reason: String,
    },

    /// The connection broke. The request was not sent, or its answer was lost.
    #[error("the connection to RabbitMQ was lost: {}", escaped(reason))]
    Lost {
        /// The reply code, when it was the broker that closed it.
        code: Option<u16>,
        /// The broker's words, or what was seen.
        reason: String,
    },

    /// Because of a request, the broker closed the channel, or the connection if the code is 500 or higher.
    #[error("{}: {code} {}{}", escaped(doing), escaped(text), hint(doing, *code, text))]
    Closed {
        /// What the program was doing, such as ``cannot declare queue `hello` ``.
        doing: String,
        /// The reply code (AMQP 0-9-1, section 1.2 "Constants").
        code: u16,
        /// The reply text, such as `NOT_FOUND - no queue 'x' in vhost '/'`.
        text: String,
    },

    /// The broker ended a consumer: its queue was deleted, or a delivery was not acknowledged in time.
    #[error("RabbitMQ cancelled the consumer of queue `{}`{}", escaped(queue), why_cancelled(*unacknowledged))]
    Cancelled {
        /// The queue it consumed from.
        queue: String,
        /// Whether the consumer had unacknowledged deliveries, so that their acknowledgement may have been too late.
        unacknowledged: bool,
    },

    /// The connection broke again and again as soon as a consumer had subscribed, so the consumer has ended.
    #[error(
        "consuming from queue `{}` ended: the connection broke {losses} times in a row just after subscribing; \
         probably a message there cannot be decoded (a header that is not UTF-8): look at it in the management page and \
         remove it",
        escaped(queue)
    )]
    Poisoned {
        /// The queue it consumed from.
        queue: String,
        /// How many times in a row.
        losses: u32,
    },

    /// A mandatory message was returned, because no queue was bound for it.
    #[error("{0}")]
    Unroutable(Box<Returned>),

    /// The broker refused a message, as a full queue with `x-overflow=reject-publish` does.
    #[error("RabbitMQ refused the message (basic.nack): a queue is full or failed; try again later")]
    Nacked,

    /// A message was sent but its confirm never came. The message may or may not have arrived.
    #[error("the message was sent but not confirmed, so it may or may not have arrived: {}", escaped(reason))]
    Unconfirmed {
        /// Why there is no confirm.
        reason: String,
    },

    /// A message was sent but did not arrive: RabbitMQ had refused another message on the same channel, and ignores all
    /// later ones until the channel is reopened. Send it again.
    #[error("the message did not arrive, send it again: {reason}")]
    Ignored {
        /// The broker's words about the other message.
        reason: String,
    },

    /// A deadline passed before something was sent, or before the broker answered.
    #[error("{}: no answer within {}{}", escaped(doing), seconds(*after), because(reason))]
    Timeout {
        /// What the program was doing.
        doing: String,
        /// The deadline.
        after: Duration,
        /// The last error seen meanwhile, or the likely cause.
        reason: String,
    },

    /// This session of the channel has ended. Its successor runs the setup again, with a new
    /// [`SetupChannel`](crate::SetupChannel).
    #[error("this session of the channel has ended; use the SetupChannel of the new session")]
    Stale,

    /// An argument that the protocol does not allow. Nothing was sent.
    #[error("{}", escaped(.0))]
    Invalid(String),

    /// All the channels that the broker allows on one connection (`channel_max`) are in use.
    #[error(
        "RabbitMQ allows no more than {} on one connection, and all are in use: close one, use another connection manager, \
         or raise `channel_max` in rabbitmq.conf (each consumer has a channel of its own)",
        channels(*.0)
    )]
    ChannelLimit(u16),

    /// The connection manager or channel was closed by this program.
    #[error("the {0} was closed by this program")]
    Shutdown(&'static str),

    /// The other side of a remote procedure call answered with an error.
    #[error("the server answered with an error: {0}")]
    Remote(RemoteError),

    /// Any other error, for instance one that a setup or a handler of the program returns.
    #[error("{}", escaped(reason))]
    Other {
        /// What happened, with the words of `source`.
        reason: String,
        /// The error below, if there is one.
        source: Option<Cause>,
    },
}

/// The error below an [`Error`], such as an [`io::Error`](std::io::Error). `source` returns what is in it.
// Not an `Arc` alone: that is an error itself, and `source` would return it instead of what is in it.
#[derive(Debug, Clone)]
pub struct Cause(Arc<dyn error::Error + Send + Sync>);

impl Cause {
    pub(crate) fn new(error: impl Into<Box<dyn error::Error + Send + Sync>>) -> Self {
        Self(error.into().into())
    }
}

impl Deref for Cause {
    type Target = dyn error::Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variant = match self {
            Self::Connect { .. } => "Connect",
            Self::LoginRefused { .. } => "LoginRefused",
            Self::Lost { .. } => "Lost",
            Self::Closed { .. } => "Closed",
            Self::Cancelled { .. } => "Cancelled",
            Self::Poisoned { .. } => "Poisoned",
            Self::Unroutable(_) => "Unroutable",
            Self::Nacked => "Nacked",
            Self::Unconfirmed { .. } => "Unconfirmed",
            Self::Ignored { .. } => "Ignored",
            Self::Timeout { .. } => "Timeout",
            Self::Stale => "Stale",
            Self::Invalid(_) => "Invalid",
            Self::ChannelLimit(_) => "ChannelLimit",
            Self::Shutdown(_) => "Shutdown",
            Self::Remote(_) => "Remote",
            Self::Other { .. } => "Other",
        };
        write!(f, "{variant}({self})")
    }
}

impl Error {
    /// An error of the program's own, or of another library, for use in a setup or a handler.
    ///
    /// ```
    /// use std::error::Error as _;
    ///
    /// let error = common::Error::other("the price list is empty");
    /// assert_eq!(error.to_string(), "the price list is empty");
    ///
    /// let error = "many".parse::<u32>().map_err(common::Error::other).unwrap_err();
    /// assert!(error.source().is_some_and(|source| source.is::<std::num::ParseIntError>()));
    /// ```
    pub fn other(error: impl Into<Box<dyn error::Error + Send + Sync>>) -> Self {
        let source = Cause::new(error);
        Self::Other { reason: source.to_string(), source: Some(source) }
    }

    pub(crate) fn text(reason: impl Into<String>) -> Self {
        Self::Other { reason: reason.into(), source: None }
    }

    pub(crate) fn connect(address: String, reason: String) -> Self {
        Self::Connect { address, reason, source: None }
    }

    pub(crate) fn lost(reason: impl Into<String>) -> Self {
        Self::Lost { code: None, reason: reason.into() }
    }

    /// The broker closed the connection with words that name what this call asked for. Then this is the call's own
    /// error, and not a loss after which it would be tried again.
    pub(crate) fn blame(self, doing: impl Fn() -> String, words: &str) -> Self {
        match self {
            Self::Lost { code: Some(code @ 500..), reason } if reason.contains(words) => {
                let (_, text) = reason.split_once(&format!("{code} ")).unwrap_or(("", &reason));
                // For a deprecated feature the broker sends several lines. The first line names it.
                let text = text.lines().next().unwrap_or_default().trim_end_matches('.').to_owned();
                Self::Closed { doing: doing(), code, text }
            }
            error => error,
        }
    }

    /// The connection was lost for a reason that is not the call's. The call may be tried again on the next connection.
    pub(crate) fn is_loss(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Stale)
    }

    /// The broker closed the connection because of something that a program asked for on it (AMQP 0-9-1, section 1.2
    /// "Constants": the "hard" errors, except 320, with which an operator closes a connection).
    pub(crate) fn is_connection_exception(&self) -> bool {
        matches!(self, Self::Lost { code: Some(500..), .. })
    }
}

/// amqprs's errors rarely say why (`AMQPRS.md`, "Errors without a reason"). If there is a reason, it is in our own
/// variants.
impl From<amqprs::error::Error> for Error {
    fn from(error: amqprs::error::Error) -> Self {
        Self::lost(error.to_string())
    }
}

/// A value that does not fit its place in a frame, such as a name over 255 bytes.
impl From<std::num::TryFromIntError> for Error {
    fn from(error: std::num::TryFromIntError) -> Self {
        Self::Invalid(format!("a name or value is too long for AMQP: {error}"))
    }
}

/// A mandatory message that was returned (AMQP 0-9-1, `basic.return`).
#[derive(Debug, Clone)]
pub struct Returned {
    /// The reply code: 312 (`NO_ROUTE`).
    pub code: u16,
    /// The broker's words.
    pub text: String,
    /// The exchange that it was published to.
    pub exchange: String,
    /// The routing key that it was published with.
    pub routing_key: String,
    /// The message's properties, as published.
    pub properties: BasicProperties,
    /// The message's body, as published.
    pub body: Vec<u8>,
}

impl fmt::Display for Returned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, .. } = self;
        let [text, exchange, routing_key] = [&self.text, &self.exchange, &self.routing_key].map(escaped);
        if self.exchange.is_empty() {
            write!(f, "no queue `{routing_key}`: the message came back ({code} {text}); is its receiver running?")
        } else {
            write!(
                f,
                "no queue is bound to exchange `{exchange}` for routing key `{routing_key}`: the message came back \
                 ({code} {text})"
            )
        }
    }
}

fn channels(count: u16) -> String {
    if count == 1 { "one channel".into() } else { format!("{count} channels") }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", (duration.as_secs_f64() * 10.0).round() / 10.0)
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({})", escaped(reason)) }
}

fn why_cancelled(unacknowledged: bool) -> String {
    if unacknowledged {
        format!(": the queue was deleted, or a delivery was not acknowledged in time (then {ACKNOWLEDGEMENT_TIMEOUT})")
    } else {
        " (was the queue deleted?)".into()
    }
}
