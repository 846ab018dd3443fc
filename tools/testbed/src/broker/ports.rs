//! Free ports for a broker that we start.

use std::{
    hash::{BuildHasher, RandomState},
    io::ErrorKind,
    net::TcpListener,
    ops::Range,
};

use anyhow::{Context, Result};

/// This range is below the ports that operating systems choose themselves (from 32768 on Linux, from 49152 elsewhere). While
/// a broker is stopped, its port must stay free. If the system chose it for an outgoing connection, a client that keeps
/// trying to connect could even connect to itself.
const RANGE: Range<u16> = 20_000..30_000;

/// The ports at which programs reach a broker that we start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) amqp: u16,
    pub(super) management: u16,
    pub(super) tls: Option<u16>,
}

impl Ports {
    /// The first free ports from the wanted ones on, or any free ports.
    pub(super) fn choose(amqp: Option<u16>, management: Option<u16>, tls: bool) -> Result<Ports> {
        let amqp = free_port(amqp, &[])?;
        let management = free_port(management, &[amqp])?;
        let tls = if tls { Some(free_port(None, &[amqp, management])?) } else { None };
        Ok(Ports { amqp, management, tls })
    }

    /// All of them, so that a search for another port can skip them.
    pub(super) fn taken(&self) -> Vec<u16> {
        [self.amqp, self.management].into_iter().chain(self.tls).collect()
    }
}

/// The first free port from `wanted` on. Without a wanted port, the search starts at a random one, because other processes
/// look for a port at the same time.
pub(super) fn free_port(wanted: Option<u16>, except: &[u16]) -> Result<u16> {
    let count = u64::from(RANGE.end - RANGE.start);
    let start = match wanted {
        Some(port) => port,
        None => RANGE.start + u16::try_from(random() % count)?,
    };
    (start..=u16::MAX)
        .take(1000)
        .find(|port| !except.contains(port) && is_free(*port))
        .with_context(|| format!("no free port from {start} on"))
}

/// Whether a port is free, on single addresses of this machine and on all of them. `localhost` may mean IPv4 or IPv6, so the
/// port must be free in both.
fn is_free(port: u16) -> bool {
    let taken = |address: &str| match TcpListener::bind((address, port)) {
        Ok(_) => false,
        // A machine without IPv6 has no such address.
        Err(error) => !address.contains(':') || error.kind() == ErrorKind::AddrInUse,
    };
    !["127.0.0.1", "0.0.0.0", "::1", "::"].into_iter().any(taken)
}

/// A random number, from the seed that the standard library gives every hash map.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0)
}
