//! What the lessons share: a connection to RabbitMQ that comes back by itself, confirmed publishing, streams of
//! deliveries, and remote procedure calls, over [amqprs](https://docs.rs/amqprs).
//!
//! # The one idea: topology is code that runs again
//!
//! Other clients record what was declared and replay the record after a reconnect. Here a long-lived channel or consumer
//! is given a *setup*, a function that declares what it needs. It runs when the channel is opened, and again, the same
//! code, whenever the channel has to be opened anew. All that is kept is the function.
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
//! while let Some(message) = messages.try_next().await? { // goes on across reconnects
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
//! # A program, whole
//!
//! It publishes orders and works on them; it survives a restart of the broker, and loses none.
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
//!     // Tells of every loss and every return.
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
//!     // What the publisher needs is declared now, and again whenever the channel is opened anew.
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
//!     // One stream, for as long as the program runs.
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
//! # What is there again after a loss
//!
//! A loss is any of: the connection closed or cut by either side or the network, a peer gone silent (noticed by
//! heartbeat), the broker stopped or killed, a channel closed by the broker, a consumer cancelled by it.
//!
//! | | afterwards | what a caller sees |
//! |---|---|---|
//! | the connection | dialled again, host after host, with growing pauses up to `reconnect_interval`, or to 30 s while RabbitMQ refuses the login | [`Event::Lost`], [`Event::Recovered`]; one warning in the log |
//! | a channel | opened again in confirm mode, after its [`setup`](Channel::setup) steps ran in order | calls wait, up to their deadline |
//! | what a setup declares | declared again, by running the setup | nothing; a failure is logged and retried |
//! | what was declared outside a setup | only what the broker kept: durable yes, exclusive and auto-delete no | [`Error::Closed`] with 404 |
//! | a consumer | its function runs again, then it consumes again, on the same [`Consumer`] | the stream pauses |
//! | deliveries not yet read, manual acknowledgement | forgotten; RabbitMQ delivers them again | `redelivered` |
//! | deliveries not yet read, automatic acknowledgement | still read: nobody else would | nothing |
//! | deliveries on their way, automatic acknowledgement | lost: RabbitMQ forgot them when it sent them | nothing |
//! | a message that cannot be decoded (a header that is not UTF-8) | the connection breaks; with automatic acknowledgement the message is lost, and those sent after it on this connection | [`Event::Lost`] |
//! | a delivery in hand | RabbitMQ delivers it again | settling it gives [`Settlement::TooLate`] |
//! | a delivery in hand of a consumer that RabbitMQ cancelled | stays valid: its channel lives | settling it works |
//! | a message whose confirm was lost | may or may not have arrived | [`Error::Unconfirmed`] |
//! | a message published meanwhile | waits for the connection | [`Error::Timeout`] past the deadline: nothing was sent |
//! | [`Channel::publish_at_least_once`] | published again until confirmed | nothing, or a duplicate at the receiver |
//! | a server-named queue | declared again, empty, under another name | [`Consumer::queue`] |
//! | an RPC call on its way | over: its reply queue is gone | [`Error::Lost`] at once |
//! | a transaction | rolled back, or unknown if it was lost during the commit | [`Error::Lost`], [`Error::Unconfirmed`] |
//!
//! The order: first the connection; then all channels and consumers at once, each by itself, so that one whose setup
//! fails holds up no other. Hence a publisher may be back before a receiver's queue exists: a message to a fanout exchange
//! then goes nowhere, and is confirmed.
//!
//! [`Event::Recovered`] tells that the connection is back. [`ConnectionManager::ready`] waits until all channels and
//! consumers are, too.
//!
//! The first run of a setup fails to its caller. Later failures are logged and retried for ever, with one exception: a
//! message that breaks the connection each time it is delivered ends its consumer ([`Error::Poisoned`]). The consumer ends only
//! with proof: with a prefetch of 1, three times, the connection broke just when one of the waiting messages should come.
//! Hence a consumer has a prefetch of 1 for some seconds after the connection broke several times in a row.
//!
//! # Where setups run
//!
//! A setup, or a `subscribe` function, runs in a task on the Tokio runtime that called [`setup`](Channel::setup) or
//! [`consume`](Channel::consume), and not on the connection's own thread. It may block or spawn tasks; a panic in it, or
//! no end within the operation timeout, is a failure like others. That runtime has to go on running: on a
//! current-thread runtime, later runs wait until the program awaits something.
//!
//! A channel keeps its setup steps until it is closed, and runs all of them again at each opening. So call `setup` once for
//! each thing that the channel needs, and not once for each request.
//!
//! # What you may lose without an error
//!
//! - RabbitMQ deletes an exclusive queue when its connection ends, with all the messages in it: those that were
//!   published to it and confirmed, too.
//! - A server-named queue that a consumer declares is deleted when you drop the [`Consumer`]. After a loss it is
//!   another queue, under another name, and empty.
//! - With automatic acknowledgement RabbitMQ forgets a message as soon as it sends it. It is lost when the connection breaks
//!   on the way, or when you drop the [`Consumer`]; and when you drop a [`Channel::get`] with `no_ack` half-way.
//! - When RabbitMQ has closed so many channels of a connection (each over an error, such as a 404) that no number is left for
//!   another one, the connection is renewed, because amqprs never uses their numbers again. That is a loss as any other.
//! - A [`Delivery`] that you drop without settling it stays unacknowledged until its channel closes, and counts against the
//!   prefetch meanwhile. A consumer that has dropped as many as its prefetch receives nothing any more.
//!
//! # The log
//!
//! What this crate does by itself, and nobody's call returns, it tells through
//! [`tracing`](https://docs.rs/tracing): losses, failed setups, cancelled consumers, refused messages, deliveries
//! dropped without being settled. **Without a subscriber you see none of it.** [`BrokerArgs::log_to_stderr`](cli::BrokerArgs::log_to_stderr) installs one; or use
//! `tracing_subscriber::fmt::init()`.
//!
//! # Which error means what
//!
//! | error | was it sent? | what to do |
//! |---|---|---|
//! | [`Connect`](Error::Connect) | no | nothing listens there, or something else: the message says what was seen |
//! | [`LoginRefused`](Error::LoginRefused) | no | check user, password, virtual host, certificate |
//! | [`Lost`](Error::Lost) | perhaps | repeat it: the connection is coming back |
//! | [`Closed`](Error::Closed) | refused | fix the argument that the broker complains about; the channel goes on |
//! | [`Cancelled`](Error::Cancelled) | | nothing: the consumer subscribes again, and logs it |
//! | [`Poisoned`](Error::Poisoned) | | remove the message that breaks the connection |
//! | [`Unroutable`](Error::Unroutable) | came back | declare the queue, or start its receiver; the message is inside |
//! | [`Nacked`](Error::Nacked) | refused | try later: a queue is full, or failing |
//! | [`Unconfirmed`](Error::Unconfirmed) | yes, outcome unknown | repeat it if twice does no harm |
//! | [`Ignored`](Error::Ignored) | yes, and did not arrive | send it again: another message on its channel was refused before it |
//! | [`ChannelLimit`](Error::ChannelLimit) | no | use fewer channels and consumers, or another connection manager |
//! | [`Timeout`](Error::Timeout) | a message: no; a question: without an answer | see the likely cause in its text |
//! | [`Stale`](Error::Stale) | no | use a current [`SetupChannel`], not one kept from before a loss |
//! | [`Invalid`](Error::Invalid) | no | fix the argument |
//! | [`Shutdown`](Error::Shutdown) | no | this program closed it |
//! | [`Remote`](Error::Remote) | yes | the other side's own error |
//! | [`Other`](Error::Other) | | the program's own |
//!
//! # What is bounded
//!
//! Every call may be dropped at any point, and has a deadline ([`ConnectOptions::operation_timeout`]). On each channel
//! 8,192 messages or 16 MiB may be unconfirmed, then publishing waits. A message that is given up after the deadline still
//! counts, because it may be in a buffer on the way; when there is nothing else, the channel is opened anew. A consumer with
//! manual acknowledgement has a prefetch of 100 unless its setup chooses one; with automatic acknowledgement nothing bounds what the broker sends, as AMQP has
//! it. An RPC server and a worker run no more handlers at a time than their prefetch, even after losses. A peer that
//! stops reading keeps one socket and its tasks of amqprs until the connection manager is closed or dropped: amqprs cannot
//! abort a write.
//!
//! In headers, tables and arrays may be nested 64 levels deep. What is deeper is removed from a message that comes, with a
//! warning, and refused in one that goes: it could overflow the stack of a thread. The thread of the connection has a
//! stack for what a frame of 1 MiB can bring (RabbitMQ's default is 128 KiB): 1 GiB of address space in a debug build,
//! 256 MiB in a release build, of which only the part that was needed takes memory. A broker that allows larger frames
//! (`frame_max`) is refused.
//!
//! # What strangers send
//!
//! Whoever may publish to a queue decides what is in its messages. Print a body with [`Message::display`], and any other
//! text with [`escaped`], so that it cannot write on the terminal as it likes. What this crate prints or logs itself, the
//! texts of errors and [`Message::info`] too, is escaped.
//!
//! # What is refused here
//!
//! What would make RabbitMQ close the connection, or leave the program in the dark: `immediate`, `no_wait`, names over 255
//! bytes, a heartbeat of 0 or 1 second, a `basic_qos` with a `prefetch_size` or `global`, an exchange without a type, an
//! `x-stream-offset` that is none, a [`QueueDeclaration`] that contradicts itself, properties, headers and arguments larger
//! than a frame or nested more than 64 levels deep,
//! an expiration that is not a number, and an exchange name of more than some 200 bytes that is not ASCII. `channel.flow` is
//! not offered at all: RabbitMQ refuses to stop a consumer that way, prefetch does it.
//!
//! # Layout
//!
//! Bottom up; a file uses only what stands above it in this list, and a test keeps it so.
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
