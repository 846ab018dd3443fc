//! What the lessons share: a connection to RabbitMQ that reconnects automatically, confirmed publishing, streams of
//! deliveries, and remote procedure calls. It is built on [amqprs](https://docs.rs/amqprs).
//!
//! # The one idea: topology is code that runs again
//!
//! Other clients record what was declared and replay the record after a reconnect. Here you give a long-lived channel
//! or consumer a **setup**, a function that declares what it needs. The setup runs when the channel is opened. It runs
//! again, the same code, each time the channel is reopened. The crate keeps only this function.
//!
//! ```no_run
//! use common::amqprs::channel::BasicConsumeArguments;
//! use common::{ConnectOptions, ConnectionManager, Result, SetupChannel, quorum_queue};
//!
//! # async fn example() -> Result<()> {
//! let connections = ConnectionManager::new("amqp://localhost".parse()?);
//! let channel = connections.channel("worker").await?;
//!
//! let mut messages = channel.consume(subscribe).await?;
//! while let Some(message) = messages.try_next().await? { // continues after a reconnect
//!     println!("{}", message.display());
//!     message.ack().await?;
//! }
//! # Ok(())
//! # }
//!
//! async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
//!     channel.queue_declare(quorum_queue("hello")).await?;
//!     Ok(BasicConsumeArguments::new("hello", ""))
//! }
//! ```
//!
//! # A complete program
//!
//! This program publishes orders and works on them. It survives a restart of the broker, and loses no order.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use common::amqprs::{
//!     BasicProperties, DELIVERY_MODE_PERSISTENT,
//!     channel::{BasicConsumeArguments, BasicPublishArguments, BasicQosArguments},
//! };
//! use common::{ConnectOptions, ConnectionManager, Error, Event, Message, ProcessOptions, Result, SetupChannel, quorum_queue};
//!
//! #[tokio::main]
//! async fn main() -> Result<()> {
//!     let options: ConnectOptions = "amqp://localhost/?heartbeat=10&fail_fast=0".parse()?;
//!     let connections = ConnectionManager::new(options.name("orders"));
//!
//!     // Reports every loss and every reconnect.
//!     let mut events = connections.events();
//!     tokio::spawn(async move {
//!         while let Some(event) = events.next().await {
//!             match event {
//!                 Event::Lost(reason) => eprintln!("not connected: {reason}"),
//!                 _ => eprintln!("{event:?}"),
//!             }
//!         }
//!     });
//!
//!     // Declares what the publisher needs, now and again each time the channel is reopened.
//!     let publisher = connections.channel("publisher").await?;
//!     publisher.setup(declare).await?;
//!     for number in 1..=3 {
//!         let to = BasicPublishArguments::new("", "orders").mandatory(true).finish();
//!         let properties = BasicProperties::default().with_delivery_mode(DELIVERY_MODE_PERSISTENT).finish();
//!         match publisher.publish(to, properties, format!("order {number}")).await {
//!             Ok(()) => println!("order {number} is safe"),
//!             Err(Error::Unconfirmed { reason }) => println!("order {number} may have arrived: {reason}"),
//!             Err(error) => return Err(error),
//!         }
//!     }
//!
//!     // One stream, as long as the program runs.
//!     let mut orders = connections.channel("worker").await?.consume(subscribe).await?;
//!     while let Some(order) = orders.try_next().await? {
//!         let once_more = ProcessOptions { requeue: true, reject_on_redelivered: true };
//!         order.process(once_more, work_on).await?;
//!     }
//!     connections.close_all().await
//! }
//!
//! async fn declare(channel: SetupChannel) -> Result<()> {
//!     channel.queue_declare(quorum_queue("orders")).await.map(drop)
//! }
//!
//! async fn subscribe(channel: SetupChannel) -> Result<BasicConsumeArguments> {
//!     channel.queue_declare(quorum_queue("orders")).await?;
//!     channel.basic_qos(BasicQosArguments::new(0, 5, false)).await?;
//!     Ok(BasicConsumeArguments::new("orders", ""))
//! }
//!
//! /// `Ok` acknowledges; an error puts the order back, once.
//! async fn work_on(order: Message) -> Result<()> {
//!     println!("{}", order.display());
//!     tokio::time::sleep(Duration::from_secs(1)).await;
//!     Ok(())
//! }
//! ```
//!
//! # What is restored after a loss
//!
//! A loss is one of these: either side or the network closes or cuts the connection; the peer is silent (missing
//! heartbeats show it); the broker is stopped or killed; the broker closes a channel; the broker cancels a consumer.
//!
//! | | afterwards | what a caller sees |
//! |---|---|---|
//! | the connection | connects again, host after host, with growing pauses up to `reconnect_interval`, or to 30 s while RabbitMQ refuses the login | [`Event::Lost`], [`Event::Recovered`]; one warning in the log |
//! | a channel | opened again in confirm mode, after its [`setup`](Channel::setup) steps ran in order | calls wait, up to their deadline |
//! | what a setup declares | declared again, by running the setup | nothing; a failure is logged and retried |
//! | what was declared outside a setup | only what the broker has kept: durable queues and exchanges, but not exclusive or auto-delete ones | [`Error::Closed`] with 404 |
//! | a consumer | its function runs again, then it consumes again, on the same [`Consumer`] | the stream pauses |
//! | deliveries not yet read, manual acknowledgement | discarded; RabbitMQ delivers them again | `redelivered` |
//! | deliveries not yet read, automatic acknowledgement | can still be read, because otherwise they would be lost | nothing |
//! | deliveries on their way, automatic acknowledgement | lost: RabbitMQ forgot them when it sent them | nothing |
//! | a message that cannot be decoded (a header that is not UTF-8) | the connection breaks; with automatic acknowledgement the message is lost, and those sent after it on this connection | [`Event::Lost`] |
//! | a delivery that the program has read and not settled | RabbitMQ delivers it again | settling it returns [`Settlement::TooLate`] |
//! | the same, if RabbitMQ only cancelled its consumer | stays valid, because its channel lives | settling it works |
//! | a message whose confirm was lost | may or may not have arrived | [`Error::Unconfirmed`] |
//! | a message published meanwhile | waits for the connection | [`Error::Timeout`] past the deadline: nothing was sent |
//! | [`Channel::publish_at_least_once`] | published again until confirmed | nothing, or a duplicate at the receiver |
//! | a server-named queue | declared again, empty, under another name | [`Consumer::queue`] |
//! | an RPC call in progress | fails, because its reply queue is deleted | [`Error::Lost`] at once |
//! | a transaction | rolled back, or unknown if it was lost during the commit | [`Error::Lost`], [`Error::Unconfirmed`] |
//!
//! First the connection is restored. Then all channels and consumers are restored at the same time, each separately, so
//! that a setup that fails does not delay the others. So a publisher may be ready before a receiver's queue exists. A
//! message that it then publishes to a fanout exchange reaches no queue, and is confirmed.
//!
//! [`Event::Recovered`] says that the connection is restored. [`ConnectionManager::ready`] also waits until all
//! channels and consumers are.
//!
//! If the first run of a setup fails, the caller gets the error. Later failures are logged and retried without end,
//! with one exception: a message that breaks the connection each time it is delivered ends its consumer
//! ([`Error::Poisoned`]). The consumer ends only if there is proof: with a prefetch of 1, the connection broke three
//! times just when one of the waiting messages should come. So after a connection has broken several times in a row, a
//! consumer has a prefetch of 1 for a few seconds.
//!
//! # Where setups run
//!
//! A setup, or a `subscribe` function, runs in a task on the Tokio runtime that called [`setup`](Channel::setup) or
//! [`consume`](Channel::consume), not on the connection's own thread. It may block or spawn tasks. If it panics, or
//! does not end within the operation timeout, this counts as a failure. The runtime must keep running. On a
//! current-thread runtime, later runs wait until the program awaits something.
//!
//! A channel keeps its setups until it is closed, and runs all of them each time it is reopened. So call `setup` once
//! for each thing that the channel needs, not once for each request.
//!
//! # What you may lose without an error
//!
//! - RabbitMQ deletes an exclusive queue when its connection ends. All its messages are lost, also confirmed ones.
//! - A server-named queue that a consumer declares is deleted when you drop the [`Consumer`]. After a loss it is a new
//!   queue with another name, and empty.
//! - With automatic acknowledgement RabbitMQ forgets a message as soon as it sends it. The message is lost if the
//!   connection breaks on the way, if you drop the [`Consumer`], or if you drop a [`Channel::get`] with `no_ack` before
//!   it returns.
//! - RabbitMQ may close so many channels of a connection (each because of an error, such as a 404) that no channel
//!   number is left, because amqprs never uses their numbers again. Then the connection is replaced. This is a loss
//!   like any other.
//! - If you drop a [`Delivery`] without settling it, it stays unacknowledged until its channel closes, and counts
//!   against the prefetch. A consumer that has dropped as many deliveries as its prefetch receives no more.
//!
//! # The log
//!
//! This crate logs events that no call returns: losses, failed setups, cancelled consumers, refused
//! messages, and deliveries dropped without being settled. It logs with [`tracing`](https://docs.rs/tracing), so
//! **without a subscriber you see nothing of this.** [`BrokerArgs::log_to_stderr`](cli::BrokerArgs::log_to_stderr)
//! installs a subscriber. `tracing_subscriber::fmt::init()` works, too.
//!
//! # Which error means what
//!
//! | error | was it sent? | what to do |
//! |---|---|---|
//! | [`Connect`](Error::Connect) | no | check the address: nothing, or another service, listens there; the message says what was seen |
//! | [`LoginRefused`](Error::LoginRefused) | no | check user, password, virtual host, certificate |
//! | [`Lost`](Error::Lost) | perhaps | repeat it: the manager reconnects |
//! | [`Closed`](Error::Closed) | refused | fix the argument that the broker names; the channel can still be used |
//! | [`Cancelled`](Error::Cancelled) | | nothing: the consumer subscribes again, and logs it |
//! | [`Poisoned`](Error::Poisoned) | | remove the message that breaks the connection |
//! | [`Unroutable`](Error::Unroutable) | returned | declare the queue, or start its receiver; the error contains the message |
//! | [`Nacked`](Error::Nacked) | refused | try later: a queue is full, or failing |
//! | [`Unconfirmed`](Error::Unconfirmed) | yes, outcome unknown | repeat it if the message may come twice |
//! | [`Ignored`](Error::Ignored) | yes, and did not arrive | send it again: another message on its channel was refused before it |
//! | [`ChannelLimit`](Error::ChannelLimit) | no | use fewer channels and consumers, or another connection manager |
//! | [`Timeout`](Error::Timeout) | a message: no; another request: yes, but without an answer | see the likely cause in its text |
//! | [`Stale`](Error::Stale) | no | use a current [`SetupChannel`], not one kept from before a loss |
//! | [`Invalid`](Error::Invalid) | no | fix the argument |
//! | [`Shutdown`](Error::Shutdown) | no | this program closed it |
//! | [`Remote`](Error::Remote) | yes | the other side's own error |
//! | [`Other`](Error::Other) | | the program's own error |
//!
//! # Limits
//!
//! You may drop any call at any point. Every call has a deadline ([`ConnectOptions::operation_timeout`]). On each
//! channel 8,192 messages or 16 MiB may be unconfirmed; then publishing waits. A message that is given up after the
//! deadline still counts, because it may wait in a buffer. When all the unconfirmed messages are given up, the channel
//! is reopened. A consumer with manual acknowledgement has a prefetch of 100 unless its setup sets one. With automatic
//! acknowledgement nothing limits what the broker sends. An RPC server or a worker never runs more handlers at a time
//! than its prefetch, also after losses. If a peer stops reading, one socket and its tasks of amqprs remain until the
//! connection manager is closed or dropped, because amqprs cannot abort a write.
//!
//! In headers, tables and arrays may be nested 64 levels deep. Deeper ones could overflow the stack of a thread. They
//! are removed from incoming messages, with a warning, and refused in outgoing ones. The connection's thread has a
//! stack for the deepest frame of 1 MiB (RabbitMQ's default is 128 KiB): 1 GiB of address space in a debug build, 256
//! MiB in a release build. Only the part that is used takes memory. A broker that allows larger frames (`frame_max`) is
//! refused.
//!
//! # Messages from strangers
//!
//! Every program that may publish to a queue decides what is in its messages. Print a body with [`Message::display`],
//! and any other text with [`escaped`], so that it cannot control the terminal. Everything that this crate prints or
//! logs is escaped, also the texts of errors and [`Message::info`].
//!
//! # What this crate refuses
//!
//! This crate refuses what would make RabbitMQ close the connection, or would hide an error from the program:
//! `immediate`, `no_wait`, names over 255 bytes, a heartbeat of 0 or 1 second, a `basic_qos` with a `prefetch_size` or
//! `global`, an exchange without a type, an invalid `x-stream-offset`, a [`QueueDeclaration`] that contradicts itself,
//! properties, headers and arguments larger than a frame or nested more than 64 levels deep, an expiration that is not
//! a number, and an exchange name of more than about 200 bytes that is not ASCII. It does not offer `channel.flow`:
//! RabbitMQ refuses to stop a consumer in this way. Use the prefetch instead.
//!
//! # Layout
//!
//! From bottom to top: a file uses only files that stand above it in this list, and a test checks this.
//!
//! | in `common/src` | |
//! |---|---|
//! | `error.rs`, `broker_words.rs`, `escape.rs`, `json.rs`, `deadline.rs` | errors, what is decided by RabbitMQ's words, and small helpers |
//! | `options/` | how to connect: URL, TLS |
//! | `encoding/` | field tables and names as they are sent: their size, their depth |
//! | `connection/` | one TCP connection: connecting, why a login failed, its loss, and the supervisor that reconnects |
//! | `session/` | one AMQP channel until it is lost: declarations, setups, confirms, and how it is opened again |
//! | `consumer/` | the stream of deliveries, what keeps it subscribed, and settling |
//! | `channel/` | a name over many sessions: publishing, transactions, `get` |
//! | `worker/` | running handlers on deliveries, tasks |
//! | `rpc/` | remote procedure calls |
//! | `manager.rs`, `cli.rs` | the connection manager; the arguments that all programs take |

#![deny(missing_docs)]

mod broker_words;
mod channel;
mod connection;
mod consumer;
mod deadline;
mod encoding;
mod error;
mod escape;
mod json;
mod manager;
mod options;
mod remote_error;
mod session;
mod worker;

pub mod cli;
pub mod rpc;

pub use amqprs;
pub use channel::Channel;
pub use channel::publish::Confirm;
pub use channel::transaction::Transaction;
pub use connection::events::{Event, Events};
pub use consumer::Consumer;
pub use consumer::delivery::{Delivery, Info, Message, Settlement};
pub use encoding::table::{TableValue, table};
pub use error::{Cause, Error, Result, Returned};
pub use escape::{Escaped, escaped};
pub use manager::ConnectionManager;
pub use options::ConnectOptions;
pub use options::tls::Tls;
pub use remote_error::RemoteError;
pub use session::queue::{
    QueueDeclaration, classic_queue, exclusive_queue, existing_queue, quorum_queue, stream_queue,
};
pub use session::setup_channel::{QueueDeclared, SetupChannel};
pub use worker::handler::{Outcome, ProcessOptions};
pub use worker::tasks;
