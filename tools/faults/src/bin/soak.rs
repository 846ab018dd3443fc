//! Makes random faults for minutes, and at the end checks that nothing was lost and nothing is left.
//!
//!     cargo soak --minutes 10
#![forbid(unsafe_code)]

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use faults::{
    logs, panics,
    soak::{self, Options},
};

/// Publishes and consumes numbered messages, makes a random fault every few seconds, and checks at the end that no
/// message was lost and nothing is left.
#[derive(Parser)]
#[command(bin_name = "cargo soak", after_help = "Example:\n  cargo soak --minutes 2 --seed 7")]
struct Args {
    /// For how many minutes faults are made
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,

    /// How many producers
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=100))]
    producers: u16,

    /// How many consumers, each with a queue of its own
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=100))]
    consumers: u16,

    /// The seed of all random choices; without it, each run is different
    #[arg(long)]
    seed: Option<u64>,

    /// Milliseconds from one fault to the next
    #[arg(long, default_value_t = 2_500, value_parser = clap::value_parser!(u64).range(100..))]
    every_ms: u64,

    /// Messages per second and producer
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,

    /// Show the logs of `common` on stderr
    #[arg(short, long)]
    verbose: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    panics::count();
    let args = Args::parse();
    if args.verbose {
        logs::to_stderr();
    }
    let options = Options {
        duration: Duration::try_from_secs_f64(args.minutes * 60.0).unwrap_or_default(),
        producers: args.producers.into(),
        consumers: args.consumers.into(),
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
        every: Duration::from_millis(args.every_ms),
        rate: args.rate,
    };
    match soak::run(&options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
