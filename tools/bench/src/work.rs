//! The kinds of work that are measured, and their names.

use std::{fmt, str::FromStr};

use anyhow::{Context, Error};

/// One kind of work, the same for all variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Confirmed publishing to one queue, with `window` messages unconfirmed.
    Publish { size: Size, window: usize, queue: QueueKind },
    /// Confirmed publishing of 64 bytes to a fanout exchange with this number of queues, 500 unconfirmed.
    Fanout { queues: usize },
    /// Consuming messages of 64 bytes, with one acknowledgement for each.
    Consume { prefetch: u16 },
    /// Calls of 64 bytes, `window` at a time. The server is in the same process, on another connection.
    Rpc { window: usize, reply: Reply },
    /// A connection and one channel, opened and closed, one after the other.
    Connect,
    /// From the reset of a connection until a message has been published and received again.
    Recover,
}

/// The size of a body in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueKind {
    Classic,
    Quorum,
}

/// Where replies go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// An exclusive queue of the client's own.
    Callback,
    /// RabbitMQ's pseudo-queue `amq.rabbitmq.reply-to`.
    Direct,
}

/// What `Publish` and `Fanout` need for publishing.
pub struct Publishing {
    pub exchange: String,
    pub routing_key: String,
    pub body: Vec<u8>,
    pub window: usize,
}

/// The size of the bodies that are consumed, of calls, and of messages to a fanout exchange.
pub const SMALL: Size = Size(64);

/// How many messages to a fanout exchange are unconfirmed.
const FANOUT_WINDOW: usize = 500;

const SIZES: [Size; 3] = [SMALL, Size(1 << 10), Size(64 << 10)];
const WINDOWS: [usize; 3] = [1, 50, 500];

impl Work {
    /// All work, in the order in which it is measured and shown.
    pub fn all() -> Vec<Work> {
        let mut all = Vec::new();
        for queue in [QueueKind::Classic, QueueKind::Quorum] {
            for size in SIZES {
                all.extend(WINDOWS.map(|window| Work::Publish { size, window, queue }));
            }
        }
        // This one shows how much memory messages in flight take.
        all.push(Work::Publish { size: Size(1 << 10), window: 10_000, queue: QueueKind::Classic });
        all.extend([1, 20, 200].map(|prefetch| Work::Consume { prefetch }));
        for reply in [Reply::Callback, Reply::Direct] {
            all.extend([1, 100, 1_000].map(|window| Work::Rpc { window, reply }));
        }
        all.extend([1, 10, 100].map(|queues| Work::Fanout { queues }));
        all.extend([Work::Connect, Work::Recover]);
        all
    }

    /// Whether it belongs to a quick run: one work of each kind, and each work that has a goal.
    pub fn is_quick(&self) -> bool {
        match *self {
            Work::Publish { size, window, queue } => match queue {
                QueueKind::Classic => (size == SMALL && window != 50) || window == 10_000,
                QueueKind::Quorum => window == 500 && size == SMALL,
            },
            Work::Fanout { queues } => queues == 10,
            Work::Consume { prefetch } => prefetch > 1,
            Work::Rpc { window, reply } => window < 1_000 && reply == Reply::Callback,
            Work::Connect | Work::Recover => true,
        }
    }

    /// The least number of units in a round. With fewer, there would never be so many in flight.
    pub fn least(&self) -> u64 {
        let in_flight = match *self {
            Work::Publish { window, .. } | Work::Rpc { window, .. } => window,
            Work::Fanout { .. } => FANOUT_WINDOW,
            Work::Consume { prefetch } => prefetch.into(),
            Work::Connect | Work::Recover => return 1,
        };
        2 * in_flight as u64
    }

    /// What one unit of it is called.
    pub fn noun(&self) -> &'static str {
        match self {
            Work::Publish { .. } | Work::Fanout { .. } | Work::Consume { .. } => "message",
            Work::Rpc { .. } => "call",
            Work::Connect => "connection",
            Work::Recover => "cut",
        }
    }

    /// The unit of its main figure: units per second, or milliseconds for connecting and recovering.
    pub fn unit(&self) -> &'static str {
        match self {
            Work::Rpc { .. } => "calls/s",
            Work::Connect | Work::Recover => "ms",
            _ => "msg/s",
        }
    }

    /// Its main figure.
    pub fn figure(&self, count: u64, seconds: f64) -> f64 {
        match self {
            Work::Connect | Work::Recover => seconds * 1e3 / count as f64,
            _ => count as f64 / seconds,
        }
    }

    /// Its point in the plot: the name of the line, and the units in flight.
    pub fn point(&self) -> Option<(String, usize)> {
        match *self {
            Work::Publish { size, window, queue } if window <= 500 => {
                Some((format!("publish {size}, {queue} queue"), window))
            }
            Work::Consume { prefetch } => Some(("consume and ack, by prefetch".into(), prefetch.into())),
            Work::Rpc { window, reply } => Some((format!("RPC, {reply}"), window)),
            _ => None,
        }
    }

    /// What publishing needs; `name` is the queue's or the fanout exchange's.
    pub fn publishing(&self, name: &str) -> Option<Publishing> {
        let (exchange, routing_key, size, window) = match *self {
            Work::Publish { size, window, .. } => (String::new(), name.to_owned(), size, window),
            Work::Fanout { .. } => (name.to_owned(), String::new(), SMALL, FANOUT_WINDOW),
            _ => return None,
        };
        Some(Publishing { exchange, routing_key, body: vec![b'x'; size.0], window })
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Work::Publish { size, window, queue } => write!(f, "publish/{size}/{window}/{queue}"),
            Work::Fanout { queues } => write!(f, "fanout/{queues}"),
            Work::Consume { prefetch } => write!(f, "consume/{prefetch}"),
            Work::Rpc { window, reply } => write!(f, "rpc/{window}/{reply}"),
            Work::Connect => f.write_str("connect"),
            Work::Recover => f.write_str("recover"),
        }
    }
}

impl FromStr for Work {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Work::all()
            .into_iter()
            .find(|work| work.to_string() == name)
            .with_context(|| format!("there is no work `{name}`; see --list"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            size if size % 1024 == 0 => write!(f, "{}KiB", size / 1024),
            size => write!(f, "{size}B"),
        }
    }
}

impl fmt::Display for QueueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QueueKind::Classic => "classic",
            QueueKind::Quorum => "quorum",
        })
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reply::Callback => "callback",
            Reply::Direct => "direct",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Work;

    #[test]
    fn every_work_is_found_by_its_own_name() {
        for work in Work::all() {
            assert_eq!(work.to_string().parse::<Work>().unwrap(), work);
        }
    }
}
