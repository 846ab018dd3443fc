//! Measures how fast `common` is, compared with amqprs alone, lapin and aio-pika.
//!
//!     cargo bench-all --quick
#![forbid(unsafe_code)]

mod args;
mod child;
mod instructions;
mod measure;
mod plot;
mod report;
mod soak;
mod stats;
mod topology;
mod url;
mod usage;
mod variants;
mod work;

use std::{fs, process::ExitCode, time::Duration, time::Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use testbed::Broker;

use crate::{
    args::{Args, Command, MeasureArgs},
    instructions::Counter,
    measure::{Measured, Setting, measure},
    report::Figure,
    topology::Builder,
    variants::{Variant, aio_pika::Python},
    work::{QueueKind, Reply, SMALL, Work},
};

/// The work whose instructions are counted.
const HOT_PATHS: [Work; 3] = [
    Work::Publish { size: SMALL, window: 500, queue: QueueKind::Classic },
    Work::Consume { prefetch: 200 },
    Work::Rpc { window: 100, reply: Reply::Callback },
];

#[tokio::main]
async fn main() -> ExitCode {
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
    match args.command {
        Some(Command::Child { work, variant, name }) => child::run(work, variant, name).await.map(|()| true),
        Some(Command::Soak(soak)) => {
            let broker = broker().await?;
            let well = soak::run(&soak, &broker.direct_url().await).await;
            broker.shutdown().await?;
            well
        }
        None if args.measure.list => {
            Work::all().iter().for_each(|work| println!("{work}"));
            Ok(true)
        }
        None => {
            let (works, variants) = (args.measure.works(), args.measure.variants());
            ensure!(!works.is_empty(), "no work has such a name; see --list");
            let broker = broker().await?;
            let well = bench(&args.measure, &works, variants, &broker).await;
            broker.shutdown().await?;
            well
        }
    }
}

async fn broker() -> Result<Broker> {
    Broker::find_or_start(|line| eprintln!("{line}")).await
}

async fn bench(args: &MeasureArgs, works: &[Work], mut variants: Vec<Variant>, broker: &Broker) -> Result<bool> {
    let begun = Instant::now();
    let python = match variants.contains(&Variant::AioPika) {
        true => Python::prepare().await.inspect_err(|error| eprintln!("aio-pika is left out: {error:#}")).ok(),
        false => None,
    };
    variants.retain(|variant| *variant != Variant::AioPika || python.is_some());
    let versions = python.as_ref().map_or("without aio-pika", |python| &python.version);
    eprintln!("RabbitMQ {}, {versions}", broker.version().await?);

    let url = broker.direct_url().await;
    let builder = Builder::connect(&url).await?;
    let seconds = args.seconds.unwrap_or(if args.quick { 0.1 } else { 1.0 });
    let setting = Setting {
        url: &url,
        port: broker.port(),
        builder: &builder,
        python: python.as_ref(),
        rounds: args.rounds.unwrap_or(if args.quick { 3 } else { 7 }).into(),
        target: Duration::from_secs_f64(seconds),
    };
    let (mut results, mut failures) = (Vec::new(), 0);
    for work in works {
        eprintln!("{work} …");
        let failed = |variant, error| {
            failures += 1;
            eprintln!("{work} with {variant} FAILED: {error:#}");
        };
        results.push((*work, measure(&setting, work, &variants, failed).await?));
    }
    let counts = match args.instructions || (!args.quick && args.only.is_empty()) {
        true => instructions(&setting, works, &variants).await?,
        false => Vec::new(),
    };
    builder.close().await?;
    show(args, &results, &counts)?;
    eprintln!("after {:.0} s", begun.elapsed().as_secs_f64());
    Ok(failures == 0)
}

/// The instruction counts of the most used paths among this work. If they cannot be counted, prints why.
async fn instructions(setting: &Setting<'_>, works: &[Work], variants: &[Variant]) -> Result<Vec<Figure>> {
    let counter = match Counter::find().await {
        Ok(counter) => counter,
        Err(error) => {
            eprintln!("{error:#}");
            return Ok(Vec::new());
        }
    };
    eprintln!("instructions, counted {} …", counter.name());
    let mut figures = Vec::new();
    for work in HOT_PATHS.iter().filter(|work| works.contains(work)) {
        let mut counted = Vec::new();
        // The instructions of an interpreter cannot be compared with ours.
        for &variant in variants.iter().filter(|variant| **variant != Variant::AioPika && variant.has(work)) {
            counted.push(counter.count(setting, work, variant).await?);
        }
        figures.extend(Figure::of_instructions(work, &counted));
    }
    Ok(figures)
}

fn show(args: &MeasureArgs, results: &[(Work, Vec<Measured>)], counts: &[Figure]) -> Result<()> {
    if args.json {
        let figures = results.iter().flat_map(|(work, measured)| report::figures(work, measured));
        for figure in figures.collect::<Vec<_>>().iter().chain(counts) {
            println!("{}", serde_json::to_string(figure)?);
        }
    } else {
        println!("{}", report::table(results));
        if !counts.is_empty() {
            println!("{}", report::instructions_table(counts));
        }
    }
    if let Some(file) = &args.plot {
        let svg = plot::svg(results).context("a plot needs work with at least two numbers in flight")?;
        fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
