//! Counts how many instructions a unit of work takes, in the client alone. It makes two runs of different length, and
//! divides the difference by the difference in length. So starting and connecting do not count.
//!
//! The processor counts if `perf stat` may read its counters. Otherwise valgrind counts, which also works in a virtual
//! machine.

use std::{ffi::OsString, fs, path::Path, process::Stdio};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::{child::ChildProcess, measure::Setting, variants::Variant, work::Work};

const SHORT: u64 = 2_000;
const LONG: u64 = 12_000;

/// The tool that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    Perf,
    Valgrind,
}

/// The instructions that one variant took.
pub struct Counted {
    pub variant: Variant,
    pub per_unit: f64,
}

impl Counter {
    /// The counter that works on this machine.
    ///
    /// # Errors
    /// Why no counter works.
    pub async fn find() -> Result<Counter> {
        let directory = tempfile::tempdir()?;
        let mut why = Vec::new();
        for counter in [Counter::Perf, Counter::Valgrind] {
            let file = directory.path().join("counted");
            let words = counter.command(&file);
            let run = Command::new(&words[0]).args(&words[1..]).arg("true").stdin(Stdio::null()).output().await;
            match run.map_err(anyhow::Error::from).and_then(|_| counter.read(&file)) {
                Ok(_) => return Ok(counter),
                Err(error) => why.push(format!("{}: {error:#}", words[0].display())),
            }
        }
        bail!("instructions cannot be counted here ({})", why.join("; "))
    }

    /// The command that runs another command and writes the count into this file.
    fn command(self, file: &Path) -> Vec<OsString> {
        match self {
            Counter::Perf => {
                let words = ["perf", "stat", "--field-separator", ",", "--event", "instructions:u", "--output"];
                words.map(OsString::from).into_iter().chain([file.into(), "--".into()]).collect()
            }
            Counter::Valgrind => {
                let mut out = OsString::from("--callgrind-out-file=");
                out.push(file);
                vec!["valgrind".into(), "--quiet".into(), "--tool=callgrind".into(), out]
            }
        }
    }

    fn read(self, file: &Path) -> Result<f64> {
        let text = fs::read_to_string(file).context("it did not run")?;
        let count = match self {
            Counter::Perf => {
                text.lines().find(|line| line.contains("instructions")).and_then(|line| line.split(',').next())
            }
            Counter::Valgrind => {
                text.lines().find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")))
            }
        };
        let count = count.context("it counted nothing")?.trim();
        count.parse().with_context(|| format!("it says `{count}`"))
    }

    pub fn name(self) -> &'static str {
        match self {
            Counter::Perf => "by the processor, in user mode (perf stat)",
            Counter::Valgrind => "by valgrind: the processor's counters cannot be read here",
        }
    }

    /// How many instructions one unit of this work takes with this variant.
    pub async fn count(self, setting: &Setting<'_>, work: &Work, variant: Variant) -> Result<Counted> {
        let (short, long) =
            (self.run(setting, work, variant, SHORT).await?, self.run(setting, work, variant, LONG).await?);
        Ok(Counted { variant, per_unit: (long - short) / (LONG - SHORT) as f64 })
    }

    async fn run(self, setting: &Setting<'_>, work: &Work, variant: Variant, count: u64) -> Result<f64> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("counted");
        let topology = setting.builder.build(work, variant).await?;
        topology.fill(count).await?;
        let tool = self.command(&file);
        let mut process =
            ChildProcess::start(work, variant, setting.url, &topology.name, setting.python, &tool).await?;
        process.round(count).await?;
        process.finish().await?;
        topology.remove().await?;
        self.read(&file)
    }
}
