//! Free ports for a broker of our own.

use std::{
    hash::{BuildHasher, RandomState},
    io::ErrorKind,
    net::TcpListener,
    ops::Range,
};

use anyhow::{Context, Result};

/// Below the ports that operating systems hand out by themselves (from 32768 on Linux, from 49152
/// elsewhere). While a broker is stopped its port must stay free: among those, an outgoing
/// connection could get it, and a client that keeps trying to connect could even reach itself.
const RANGE: Range<u16> = 20_000..30_000;

/// Where the programs reach a broker of our own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) amqp: u16,
    pub(super) management: u16,
    pub(super) tls: Option<u16>,
}

impl Ports {
    /// The first free ones from those wanted on, or any.
    pub(super) fn choose(amqp: Option<u16>, management: Option<u16>, tls: bool) -> Result<Ports> {
        let amqp = free_port(amqp, &[])?;
        let management = free_port(management, &[amqp])?;
        let tls = if tls { Some(free_port(None, &[amqp, management])?) } else { None };
        Ok(Ports { amqp, management, tls })
    }

    /// All of them, for who looks for yet another.
    pub(super) fn taken(&self) -> Vec<u16> {
        [self.amqp, self.management].into_iter().chain(self.tls).collect()
    }
}

/// The first port from `wanted` on that nobody listens on; without a wish, one at a random place,
/// as others look for one at the same time.
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

/// Whether nobody listens on a port, be it on one of this machine's addresses or on all of them.
/// `localhost` may mean either family, so both must be free.
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
