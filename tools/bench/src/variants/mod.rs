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
    /// amqprs alone, with only what makes confirms and replies usable
    #[value(name = "amqprs")]
    Bare,
    /// The same, but requests and replies are confirmed, as in `common`; only for RPC
    #[value(name = "amqprs-confirming")]
    BareConfirming,
    /// The crate of this workspace
    #[value(name = "common")]
    Ours,
    /// lapin 4, at its fastest
    Lapin,
    /// aio-pika, in Python
    #[value(name = "aio-pika")]
    AioPika,
}

/// Work that is ready to begin: connected and subscribed.
#[async_trait]
pub trait Ready: Send {
    /// Does `count` units, and returns how long they took.
    async fn run(&mut self, count: u64) -> Result<Duration>;
}

impl Variant {
    pub const ALL: [Variant; 5] =
        [Variant::Bare, Variant::BareConfirming, Variant::Ours, Variant::Lapin, Variant::AioPika];

    /// Whether this variant can do this work. Only two variants recover a connection by themselves.
    pub fn has(self, work: &Work) -> bool {
        match work {
            Work::Recover => matches!(self, Variant::Ours | Variant::AioPika),
            Work::Rpc { .. } => true,
            _ => self != Variant::BareConfirming,
        }
    }

    /// Prepares work in Rust. Its queue or exchange is called `name`, and exists already.
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
