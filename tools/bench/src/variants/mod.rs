//! The same work with each client.

pub mod aio_pika;
mod bare;
mod lapin;
mod ours;

use std::{fmt, time::Duration};

use anyhow::Result;
use async_trait::async_trait;
use clap::ValueEnum;

use crate::work::Work;

/// A client to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// amqprs by itself, with the least that makes confirms and replies usable
    #[value(name = "amqprs")]
    Bare,
    /// The same, where requests and replies are confirmed, as `common` has it: RPC only
    #[value(name = "amqprs-confirming")]
    BareConfirming,
    /// The crate of this workspace
    #[value(name = "common")]
    Ours,
    /// lapin 4, used at its best
    Lapin,
    /// aio-pika, in Python
    #[value(name = "aio-pika")]
    AioPika,
}

/// Work made ready: connected, subscribed.
#[async_trait]
pub trait Ready: Send {
    /// Does `count` units of it and tells how long they took.
    async fn run(&mut self, count: u64) -> Result<Duration>;
}

impl Variant {
    pub const ALL: [Variant; 5] =
        [Variant::Bare, Variant::BareConfirming, Variant::Ours, Variant::Lapin, Variant::AioPika];

    /// Whether it has this work. A connection comes back by itself with two of them.
    pub fn has(self, work: &Work) -> bool {
        match work {
            Work::Recover => matches!(self, Variant::Ours | Variant::AioPika),
            Work::Rpc { .. } => true,
            _ => self != Variant::BareConfirming,
        }
    }

    /// Makes work ready, in Rust. What it uses on the broker is called `name`, and is there.
    pub async fn prepare(self, work: &Work, url: &str, name: &str) -> Result<Box<dyn Ready>> {
        match self {
            Variant::Bare => bare::prepare(work, url, name, false).await,
            Variant::BareConfirming => bare::prepare(work, url, name, true).await,
            Variant::Ours => ours::prepare(work, url, name).await,
            Variant::Lapin => lapin::prepare(work, url, name).await,
            Variant::AioPika => anyhow::bail!("aio-pika is a Python program of its own"),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Variant::Bare => "amqprs",
            Variant::BareConfirming => "amqprs-confirming",
            Variant::Ours => "common",
            Variant::Lapin => "lapin",
            Variant::AioPika => "aio-pika",
        })
    }
}
