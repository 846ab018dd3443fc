//! Makes every kind of fault with every kind of user, each at least twice in a row, on a broker of its own.
//!
//!     cargo faults
#![forbid(unsafe_code)]

use std::{process::ExitCode, time::Instant};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use faults::{
    fault::Fault,
    logs,
    matrix::{self, Outcome},
    panics,
    users::Kind,
};
use testbed::Broker;

/// Makes every kind of fault, and checks that every kind of user recovers and has lost nothing.
#[derive(Parser)]
#[command(bin_name = "cargo faults", after_help = "Example:\n  cargo faults --fault kill --user publisher --rounds 5")]
struct Args {
    /// Only this fault; may be given several times
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<Fault>,

    /// Only this user; may be given several times
    #[arg(long = "user", value_name = "USER")]
    users: Vec<Kind>,

    /// How often each fault is made, in a row
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Show the logs of `common` on stderr
    #[arg(short, long)]
    verbose: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    panics::count();
    match run(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether everything went well.
async fn run(args: Args) -> Result<bool> {
    if args.verbose {
        logs::to_stderr();
    }
    let faults = if args.faults.is_empty() { Fault::value_variants() } else { &args.faults };
    let users = if args.users.is_empty() { Kind::value_variants() } else { &args.users };
    let broker = Broker::builder().report(|line| eprintln!("{line}")).start().await?;
    println!("RabbitMQ {}; each fault {} times in a row", broker.version().await?, args.rounds);
    let begun = Instant::now();
    let (mut cells, mut failed) = (0, 0);
    for &fault in faults {
        for outcome in matrix::run(&broker, fault, users, args.rounds).await? {
            println!("{}", line(fault, &outcome));
            cells += 1;
            failed += u32::from(outcome.result.is_err());
        }
    }
    broker.shutdown().await?;
    let panics = panics::counted();
    println!("{cells} cells, {failed} failed, {panics} panics, after {} s", begun.elapsed().as_secs());
    Ok(failed == 0 && panics == 0)
}

fn line(fault: Fault, outcome: &Outcome) -> String {
    let verdict = match &outcome.result {
        Ok((measured, times)) => {
            let times: Vec<_> = times.iter().map(|time| time.as_millis().to_string()).collect();
            format!("ok, {measured} {} ms", times.join(" and "))
        }
        Err(error) => format!("FAILED {error:#}"),
    };
    format!("{fault:17} × {:13} {verdict}", outcome.kind)
}
