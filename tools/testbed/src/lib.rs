//! What the tests of the lessons, `cargo tour`, `cargo broker` and `cargo ctl` stand on: a RabbitMQ, and the
//! lesson programs as processes.
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
//! A broker of our own runs in Docker; where that is not to be had, as a private process of the `rabbitmq-server` that is
//! installed here, or that a package manager can install. [`BrokerBuilder::report`] hears about each step.
//!
//! | variable | meaning |
//! |---|---|
//! | `AMQP_URL` | the broker that [`Broker::find_or_start`] takes instead; tests never use it |
//! | `TESTBED_BROKER` | `docker` or `node`: a broker of our own is of this kind, and of no other |
//! | `RABBITMQ_IMAGE` | the image for Docker, instead of `rabbitmq:4-management` |
//! | `DOCKER_HOST`, `DOCKER_CONTEXT`, `DOCKER_CONFIG` | where Docker is, as for its own command |
//!
//! Whatever is started here is gone when its value is dropped, and when this process ends in any way, be it killed: see
//! the module `guard`. Two cases are left to destructors alone, as nobody else is there to clean up: Windows, and
//! Docker without its command `docker`.
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
