//! Makes a random fault every few seconds.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use clap::ValueEnum;
use fastrand::Rng;
use testbed::{Broker, Proxy, VirtualHost};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::VOLATILE;
use crate::{fault::Fault, kept_setup::KeptSetup, wait::within};

/// How often each kind is made, in per cent. Stopping or killing the broker takes ten seconds.
const WEIGHTS: [(Fault, u32); 9] = [
    (Fault::Fin, 18),
    (Fault::Rst, 18),
    (Fault::MidFrame, 18),
    (Fault::ChannelClosed, 18),
    (Fault::CloseConnections, 10),
    (Fault::QueueDeleted, 8),
    (Fault::Silence, 6),
    (Fault::StopStart, 2),
    (Fault::Kill, 2),
];

/// The deadline for a fault of the broker.
const PATIENCE: Duration = Duration::from_secs(90);

/// What faults need.
pub struct RandomFaults<'a> {
    /// The broker that all share.
    pub broker: &'a Broker,
    /// The virtual host that all share.
    pub host: &'a VirtualHost<'a>,
    /// The proxies that the connections go through.
    pub proxies: Vec<Arc<Proxy>>,
    /// Flags that make producers close their channels.
    pub close_flags: Vec<Arc<AtomicBool>>,
    /// Setup channels that make the broker close consumers' channels.
    pub kept_setups: Vec<KeptSetup>,
    /// Its own random choices.
    pub rng: Rng,
    /// How many were made of each kind.
    pub made: Made,
    /// Tasks that end the stall of a proxy after a while.
    pub stalls: JoinSet<()>,
}

/// How many faults were made of each kind.
#[derive(Debug, Default)]
pub struct Made(Vec<(Fault, u32)>);

impl Made {
    /// How many in all.
    pub fn total(&self) -> u32 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    fn count(&mut self, fault: Fault) {
        match self.0.iter_mut().find(|(kind, _)| *kind == fault) {
            Some((_, count)) => *count += 1,
            None => self.0.push((fault, 1)),
        }
    }
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for fault in Fault::value_variants() {
            let count = self.0.iter().find(|(kind, _)| kind == fault).map_or(0, |(_, count)| *count);
            write!(f, "{separator}{fault} {count}")?;
            separator = ", ";
        }
        Ok(())
    }
}

impl RandomFaults<'_> {
    /// Makes a fault in each interval `every`. If a fault takes long, the next ones follow after shorter pauses until
    /// it has caught up.
    ///
    /// # Errors
    /// When a fault cannot be made: for instance, the broker does not start again.
    pub async fn run(&mut self, every: Duration, end: Instant) -> Result<()> {
        let mut next = Instant::now() + every;
        while next < end {
            sleep_until(next).await;
            let fault = self.choose();
            within(PATIENCE, &format!("the end of the fault {fault}"), self.make(fault)).await??;
            self.made.count(fault);
            next = (next + every).max(Instant::now() + every / 3);
        }
        while self.stalls.join_next().await.is_some() {}
        Ok(())
    }

    fn choose(&mut self) -> Fault {
        let mut left = self.rng.u32(0..WEIGHTS.iter().map(|(_, weight)| weight).sum());
        for (fault, weight) in WEIGHTS {
            match left.checked_sub(weight) {
                Some(rest) => left = rest,
                None => return fault,
            }
        }
        Fault::Fin
    }

    async fn make(&mut self, fault: Fault) -> Result<()> {
        let proxy = self.rng.usize(0..self.proxies.len());
        let proxy = self.proxies[proxy].clone();
        match fault {
            Fault::Fin => proxy.cut(),
            Fault::Rst => proxy.reset(),
            Fault::MidFrame => proxy.cut_after(self.rng.u32(1..100_000)),
            Fault::Silence => self.stall(proxy),
            Fault::CloseConnections => self.close_connections().await,
            Fault::ChannelClosed => self.close_a_channel().await,
            // The queue may still be missing since the last time.
            Fault::QueueDeleted => drop(self.host.delete(&format!("/api/queues/{{vhost}}/{VOLATILE}")).await),
            Fault::StopStart => self.broker.restart().await?,
            Fault::Kill => {
                self.broker.kill().await?;
                self.broker.start_again().await?;
            }
        }
        Ok(())
    }

    /// Stalls the proxy for a time that may be shorter or longer than the heartbeat's.
    fn stall(&mut self, proxy: Arc<Proxy>) {
        let silence = Duration::from_millis(self.rng.u64(200..8_000));
        proxy.stall();
        self.stalls.spawn(async move {
            sleep(silence).await;
            proxy.resume();
        });
    }

    /// Closes all connections that the broker knows at this moment.
    async fn close_connections(&self) {
        // This can fail while connections come and go. The next one may succeed.
        let path = format!("/api/connections/username/{}", self.host.name());
        drop(self.host.delete(&path).await);
    }

    async fn close_a_channel(&mut self) {
        let choice = self.rng.usize(0..self.close_flags.len() + self.kept_setups.len());
        match self.close_flags.get(choice) {
            // The producer does it when it publishes next.
            Some(close_flag) => close_flag.store(true, Ordering::Relaxed),
            None => {
                let kept_setup = self.kept_setups[choice - self.close_flags.len()].clone();
                // The result depends on the other faults of this channel.
                drop(kept_setup.close_channel().await);
            }
        }
    }
}
