//! What the lessons share: a connection to RabbitMQ that comes back by itself, confirmed publishing, streams of
//! deliveries, and remote procedure calls, over [amqprs](https://docs.rs/amqprs).

#![deny(missing_docs)]

mod channel;
mod consumer;
mod delivery;
mod error;
mod events;
mod ledger;
mod link;
mod loss;
mod manager;
mod opening;
mod options;
mod process;
mod publish;
mod reopen;
mod setup;
mod supervisor;
mod suspicion;
mod topology;
mod transaction;

pub mod cli;
pub mod rpc;

pub use channel::Channel;
pub use consumer::Consumer;
pub use delivery::{Delivery, Info, Message, Settlement};
pub use error::{Error, Result, Returned};
pub use events::{Event, Events};
pub use manager::ConnectionManager;
pub use options::ConnectOptions;
pub use process::{Outcome, ProcessOptions};
pub use publish::Confirm;
pub use setup::Setup;
pub use topology::{QueueDeclared, quorum_queue};
pub use transaction::Transaction;
