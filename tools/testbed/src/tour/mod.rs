//! `cargo tour`: plays the lessons with the real programs, and checks what they print.

mod lessons;
mod page;
mod pause;
mod processes;
mod progress;
mod queue;
mod steps;

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, ValueEnum, error::ErrorKind};
use percent_encoding::percent_decode_str;
use tokio::{signal::ctrl_c, time::sleep};
use url::Url;

use self::{
    lessons::Lesson,
    page::Page,
    pause::Pause,
    progress::Progress,
    steps::{Step, Steps, Stop},
};
use crate::{Broker, build_programs};

/// The exit code that a shell reports for a program that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

/// How long the tour may take to end after Ctrl-C.
const PATIENCE: Duration = Duration::from_secs(2);

/// Plays the lessons with the real programs, on a RabbitMQ of its own, and checks what they print.
///
/// If AMQP_URL is set, the tour uses the RabbitMQ that it names.
#[derive(Parser)]
#[command(
    name = "cargo tour",
    bin_name = "cargo tour",
    after_help = "Examples:\n  cargo tour\n  cargo tour --lesson topics\n  cargo tour --lesson hello_world,rpc --pause"
)]
pub struct Options {
    /// Play only this lesson; give it several times, or as a list with commas, for several lessons
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LESSON")]
    lesson: Vec<Lesson>,

    /// Wait for Enter between the steps, for the classroom
    #[arg(long)]
    pause: bool,
}

/// Plays the lessons that the options name. The exit code is 0 if everything was as expected. It is 1 if not, or if the
/// lessons cannot be played.
pub async fn run(options: Options) -> ExitCode {
    if options.pause && !io::stdin().is_terminal() {
        let message = "--pause waits for Enter, but standard input is not a terminal";
        Options::command().error(ErrorKind::ArgumentConflict, message).exit();
    }
    // Ctrl-C drops the running future, which ends the programs and the broker. If that takes too long, this process ends, and
    // the guards end them.
    tokio::spawn(async {
        if ctrl_c().await.is_ok() {
            sleep(PATIENCE).await;
            stopped();
        }
    });
    let outcome = tokio::select! {
        outcome = tour(&options) => outcome,
        Ok(()) = ctrl_c() => stopped(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // The program that reads our output has closed it: it needs no more.
        Err(error) if error.downcast_ref::<io::Error>().map(io::Error::kind) == Some(io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            anstream::eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn stopped() -> ! {
    // On a terminal, this overwrites what is on the line: `^C`, or a spinner.
    eprintln!("{}Stopped.", if io::stderr().is_terminal() { "\r\x1b[2K" } else { "" });
    std::process::exit(INTERRUPTED)
}

/// Returns whether everything was as expected.
async fn tour(options: &Options) -> Result<bool> {
    let building = Progress::start("Building the lesson programs");
    let programs = build_programs(|step| building.now(step)).await?;
    building.done("The lesson programs are built");

    let looking = Arc::new(Progress::start("Looking for a RabbitMQ"));
    let notes = looking.clone();
    let broker = Broker::find_or_start(move |line| notes.note(line)).await?;
    queue::log_in(broker.url()).await?;
    // With TLS the version is unknown.
    let version = broker.version().await.map_or_else(|_| String::new(), |version| format!(" {version}"));
    looking.done(&format!("RabbitMQ{version} is ready"));

    let mut page = Page::new();
    page.opening(&introduce(&broker, &version)?)?;
    let mut pause = options.pause.then(Pause::new);
    let lessons = match options.lesson.as_slice() {
        [] => Lesson::value_variants().iter().copied().collect(),
        some => some.iter().copied().collect::<BTreeSet<_>>(),
    };
    let mut verdicts = Vec::new();
    for lesson in lessons {
        page.title(lesson.number(), lesson.title(), &lesson.name())?;
        let steps = Steps::new(&mut page, pause.as_mut(), &programs, broker.url());
        let difference = match play(lesson, steps).await {
            Ok(()) => None,
            Err(Stop::Difference(difference)) => Some(difference),
            Err(Stop::Failure(error)) => return Err(error),
        };
        if let Some(difference) = &difference {
            page.difference(difference)?;
        }
        verdicts.push((lesson, difference));
    }
    page.rule()?;
    for (lesson, difference) in &verdicts {
        page.verdict(lesson.number(), lesson.title(), lesson.summary(), difference.as_ref())?;
    }
    let all_seen = verdicts.iter().all(|(_, difference)| difference.is_none());
    page.closing(if all_seen {
        "Now try it yourself: start `cargo broker`, and follow a chapter's README."
    } else {
        ""
    })?;
    broker.shutdown().await?;
    Ok(all_seen)
}

/// Plays a chapter. When this returns, all its programs have ended.
async fn play(lesson: Lesson, mut steps: Steps<'_>) -> Step {
    let played = match lesson.play(&mut steps).await {
        Ok(()) => steps.close().await,
        stopped => stopped,
    };
    // The result of the chapter counts more than an error while tidying up.
    drop(steps.tidy_up().await);
    played
}

/// Says which RabbitMQ it is, and where. Must not contain the password that is in the URL.
fn introduce(broker: &Broker, version: &str) -> Result<String> {
    let url = Url::parse(broker.url()).context("the broker's URL")?;
    let host = url.host_str().unwrap_or("localhost");
    let whose = if broker.management_url().is_some() { "started for this tour" } else { "as AMQP_URL says" };
    let virtual_host = match url.path().strip_prefix('/').unwrap_or_default() {
        "" => String::new(),
        name => format!(", virtual host {}", percent_decode_str(name).decode_utf8_lossy()),
    };
    Ok(format!("RabbitMQ{version} at {host}:{}{virtual_host}, {whose}", broker.port()))
}
