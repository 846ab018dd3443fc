//! Runs a RabbitMQ, and the lesson programs as processes: for the tests of the lessons, `cargo tour`, `cargo broker` and
//! `cargo ctl`.
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! use testbed::{Broker, Program};
//!
//! // One broker for all tests of a process, a virtual host for each.
//! let host = Broker::shared().await?.virtual_host().await?;
//! let mut receive = Program::new("target/debug/receive").url(host.url()).spawn()?;
//! receive.expect(" [*] Waiting for messages. To exit press CTRL+C").await?;
//! # Ok(())
//! # }
//! ```
//!
//! This crate starts a broker in Docker. Without Docker, it starts a private node: a process of the `rabbitmq-server` that
//! is installed here, or that a package manager can install. The function given to [`BrokerBuilder::report`] is called at
//! each step.
//!
//! | variable | meaning |
//! |---|---|
//! | `AMQP_URL` | the broker that [`Broker::find_or_start`] uses instead; tests never use it |
//! | `TESTBED_BROKER` | `docker` or `node`: start a broker of this kind only |
//! | `RABBITMQ_IMAGE` | the image for Docker, instead of `rabbitmq:4-management` |
//! | `DOCKER_HOST`, `DOCKER_CONTEXT`, `DOCKER_CONFIG` | where Docker is, as for its own command |
//!
//! Everything that is started here ends when its value is dropped, and when this process ends in any way, also when it is
//! killed: see the module `guard`. In two cases only destructors clean up: on Windows, and with Docker without its command
//! `docker`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod broker;
mod certificates;
mod guard;
pub mod lesson;
mod program;
mod programs;
mod proxy;
pub mod stranger;
pub mod tour;

pub use broker::{Broker, BrokerBuilder, DEFAULT_PORT, Listener, ServerTls, VirtualHost, ctl, listener, skip};
pub use certificates::{Authority, Identity};
pub use program::{Finished, Program, Running, Stream};
pub use programs::{build_examples, build_programs};
pub use proxy::Proxy;
