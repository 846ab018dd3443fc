//! Measures one kind of work with all variants in turn: A B C D, A B C D, …

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testbed::Proxy;
use tokio::time::sleep;

use crate::{
    child::{ChildProcess, Round},
    topology::{Builder, Topology},
    url::Address,
    variants::{Variant, aio_pika::Python},
    work::Work,
};

/// What all measurements share.
pub struct Setting<'a> {
    pub url: &'a str,
    /// The broker's port on this machine, where a proxy connects that cuts connections.
    pub port: u16,
    pub builder: &'a Builder,
    pub python: Option<&'a Python>,
    pub rounds: usize,
    /// How long a round should take.
    pub target: Duration,
}

/// The figures of one variant.
pub struct Measured {
    pub variant: Variant,
    /// The main figure of each round, in the work's unit.
    pub figures: Vec<f64>,
    /// Microseconds of processor time per unit, of each round.
    pub cpu: Vec<f64>,
    pub peak_mib: Option<f64>,
}

struct Runner {
    process: ChildProcess,
    topology: Topology,
    proxy: Option<Proxy>,
    count: u64,
    measured: Measured,
}

/// Measures one kind of work. Calls `failed` for each variant that fails, and leaves it out.
pub async fn measure(
    setting: &Setting<'_>,
    work: &Work,
    variants: &[Variant],
    mut failed: impl FnMut(Variant, anyhow::Error),
) -> Result<Vec<Measured>> {
    let mut runners = Vec::new();
    for &variant in variants.iter().filter(|variant| variant.has(work)) {
        match Runner::start(setting, work, variant).await {
            Ok(runner) => runners.push(runner),
            Err(error) => failed(variant, error),
        }
    }
    for _ in 0..setting.rounds {
        let mut well = Vec::new();
        for mut runner in runners {
            match runner.round(work).await {
                Ok(()) => well.push(runner),
                Err(error) => failed(runner.process.variant, error),
            }
        }
        runners = well;
    }
    let mut measured = Vec::new();
    for runner in runners {
        measured.push(runner.finish().await?);
    }
    Ok(measured)
}

impl Runner {
    async fn start(setting: &Setting<'_>, work: &Work, variant: Variant) -> Result<Runner> {
        let topology = setting.builder.build(work, variant).await?;
        let proxy = match work {
            Work::Recover => Some(Proxy::start(setting.port).await?),
            _ => None,
        };
        let url = match &proxy {
            Some(proxy) => Address::through(setting.url, proxy.port())?,
            None => setting.url.to_owned(),
        };
        let process = ChildProcess::start(work, variant, &url, &topology.name, setting.python, &[]).await?;
        let measured = Measured { variant, figures: Vec::new(), cpu: Vec::new(), peak_mib: None };
        let mut runner = Runner { process, topology, proxy, count: work.least(), measured };
        runner.warm_up(setting.target.as_secs_f64(), work).await?;
        Ok(runner)
    }

    /// Finds out how many units fill a round, in rounds that grow.
    async fn warm_up(&mut self, target: f64, work: &Work) -> Result<()> {
        if self.proxy.is_some() {
            return self.one(work).await.map(drop);
        }
        loop {
            let Round { seconds, .. } = self.one(work).await?;
            let enough = self.count as f64 * target / seconds.max(1e-6);
            let close = seconds >= target / 4.0;
            self.count = (enough.min(self.count as f64 * 20.0) as u64).max(work.least());
            if close {
                return Ok(());
            }
        }
    }

    async fn round(&mut self, work: &Work) -> Result<()> {
        let Round { seconds, cpu } = self.one(work).await?;
        ensure!(seconds > 0.0, "a round took no time");
        self.measured.figures.push(work.figure(self.count, seconds));
        self.measured.cpu.extend(cpu.map(|cpu| cpu * 1e6 / self.count as f64));
        Ok(())
    }

    async fn one(&mut self, work: &Work) -> Result<Round> {
        self.topology.fill(self.count).await?;
        let round = match &self.proxy {
            Some(proxy) => {
                let begun = Instant::now();
                cut(proxy).await;
                let round = self.process.round(self.count).await?;
                Round { seconds: begun.elapsed().as_secs_f64(), ..round }
            }
            None => self.process.round(self.count).await?,
        };
        if !matches!(work, Work::Recover) {
            self.topology.empty().await?;
        }
        Ok(round)
    }

    async fn finish(mut self) -> Result<Measured> {
        let peak_kib = self.process.finish().await?;
        self.measured.peak_mib = peak_kib.map(|kib| kib as f64 / 1024.0);
        self.topology.remove().await?;
        Ok(self.measured)
    }
}

/// Resets all connections, and waits until they are reset. Otherwise the next message could still pass on the old
/// connection.
async fn cut(proxy: &Proxy) {
    let (open, accepted) = (proxy.open(), proxy.accepted());
    proxy.reset();
    while proxy.open() >= open && proxy.accepted() == accepted {
        sleep(Duration::from_millis(1)).await;
    }
}
