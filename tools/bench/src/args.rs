//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::{variants::Variant, work::Work};

/// Measures confirmed publishing, consuming, RPC and more, with bare amqprs, `common`, lapin and aio-pika side by side.
///
/// All variants take turns, in processes of their own, on one broker: the one that AMQP_URL names, or else one that is
/// started. You can compare ratios between machines, but not absolute figures.
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo bench-all",
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  cargo bench-all --quick\n  cargo bench-all --only publish/64B --only rpc --plot bench.svg\n  cargo \
                  bench-all soak --messages 100000"
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub measure: MeasureArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Does much work with `common` and shows its memory over time; fails if the memory grows
    Soak(SoakArgs),
    /// Does one kind of work, as often as stdin says; this program starts it itself
    #[command(hide = true)]
    Child { work: Work, variant: Variant, name: String },
}

#[derive(Debug, ClapArgs)]
pub struct MeasureArgs {
    /// Run only a selection, in less than two minutes
    #[arg(long)]
    pub quick: bool,

    /// Only work whose name contains this; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,

    /// Only this variant; may be given several times
    #[arg(long = "variant", value_name = "VARIANT")]
    pub variants: Vec<Variant>,

    /// How many rounds count, after the warm-up [default: 7, with --quick 3]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: Option<u16>,

    /// How long one round should take, in seconds [default: 1, with --quick 0.1]
    #[arg(long, value_parser = seconds)]
    pub seconds: Option<f64>,

    /// Print one line of JSON for each figure, instead of the table
    #[arg(long)]
    pub json: bool,

    /// Draw throughput against messages in flight into this file
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,

    /// Also count the instructions of the most used paths; a full run always does
    #[arg(long)]
    pub instructions: bool,

    /// Print the names of all work, and measure nothing
    #[arg(long)]
    pub list: bool,
}

#[derive(Debug, Clone, ClapArgs)]
pub struct SoakArgs {
    /// How many messages are published and consumed
    #[arg(long, default_value_t = 1_000_000)]
    pub messages: u64,

    /// How many calls are made
    #[arg(long, default_value_t = 100_000)]
    pub calls: u64,

    /// How many channels are open at once
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=2_000))]
    pub channels: u16,

    /// How many messages of 1 KiB wait for the slow consumer
    #[arg(long, default_value_t = 200_000)]
    pub backlog: u64,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("it must be a number from 0.01 to 60".into()),
    }
}

impl MeasureArgs {
    /// The work that the options choose.
    pub fn works(&self) -> Vec<Work> {
        let chosen = |work: &Work| {
            let name = work.to_string();
            match &*self.only {
                [] => !self.quick || work.is_quick(),
                only => only.iter().any(|text| name.contains(text)),
            }
        };
        Work::all().into_iter().filter(chosen).collect()
    }

    pub fn variants(&self) -> Vec<Variant> {
        let wanted = |variant: &Variant| self.variants.is_empty() || self.variants.contains(variant);
        Variant::ALL.into_iter().filter(wanted).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::Args;

    #[test]
    fn a_filter_chooses_by_name() {
        let args = Args::parse_from(["bench", "--only", "rpc/1/", "--only", "connect"]);
        let names: Vec<_> = args.measure.works().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["rpc/1/callback", "rpc/1/direct", "connect"]);
    }
}
