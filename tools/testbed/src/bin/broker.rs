//! Starts a RabbitMQ to learn with. It runs as long as this program runs.
//!
//!     cargo broker
#![forbid(unsafe_code)]

use std::{
    io::{Write, stdout},
    process::ExitCode,
};

use anstyle::AnsiColor;
use anyhow::{Result, bail};
use clap::Parser;
use testbed::{Broker, DEFAULT_PORT, Listener, ctl::set_variable, listener};

/// Starts a RabbitMQ for the lessons, in Docker or with the rabbitmq-server of this machine.
/// Ctrl-C stops it.
#[derive(Parser)]
#[command(
    bin_name = "cargo broker",
    after_help = "Example, in two terminals:\n  cargo broker\n  cargo run --bin receive"
)]
struct Options {
    /// Port for the lessons; if it is in use, the next free one
    #[arg(long, default_value_t = DEFAULT_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Port for the management page; if it is in use, the next free one
    #[arg(long, default_value_t = 15672, value_parser = clap::value_parser!(u16).range(1..))]
    management_port: u16,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Options::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<ExitCode> {
    let mut signal = Signal::listen()?;
    let start = Broker::builder()
        .port_from(options.port)
        .management_port_from(options.management_port)
        .report(|line| eprintln!("{line}"))
        .start();
    let broker = tokio::select! {
        broker = start => broker?,
        // Dropping the future of the other branch stops what has been started so far.
        () = signal.come() => return Ok(ExitCode::from(130)),
    };
    if let Some(warning) = warning(&broker).await {
        let yellow = AnsiColor::Yellow.on_default().bold();
        anstream::eprintln!("{yellow}warning:{yellow:#} {warning}");
    }
    stdout().write_all(greeting(&broker).await?.as_bytes())?;
    tokio::select! {
        () = signal.come() => {
            broker.shutdown().await?;
            Ok(ExitCode::SUCCESS)
        }
        last_words = broker.ended() => bail!("RabbitMQ has stopped by itself: {}", last_words?),
    }
}

async fn greeting(broker: &Broker) -> Result<String> {
    let version = broker.version().await?;
    let url = broker.url();
    let set_variable = set_variable(url);
    let page = broker.management_url().unwrap_or_default();
    Ok(format!(
        "RabbitMQ {version} is ready.\n\n  \
           --url {url}\n  \
           {set_variable}\n\n\
         Give the first line to one program, or run the second one for all programs in a terminal.\n\
         Management page: {page} (user guest, password guest)\n\
         To see its queues, run in another terminal: cargo ctl list_queues\n\
         Press Ctrl-C to stop RabbitMQ; nothing is left behind.\n"
    ))
}

/// A warning if the learner's programs would use another RabbitMQ unless `AMQP_URL` is set.
async fn warning(broker: &Broker) -> Option<String> {
    if broker.port() == DEFAULT_PORT {
        return None;
    }
    let there = match listener(DEFAULT_PORT).await {
        Listener::RabbitMq(version) => format!("RabbitMQ {version} is at port {DEFAULT_PORT}"),
        Listener::Other => format!("a program that is not RabbitMQ is at port {DEFAULT_PORT}"),
        Listener::None => return None,
    };
    Some(format!(
        "{there}. In a terminal without AMQP_URL the lesson programs and `cargo ctl` use that port, not this RabbitMQ."
    ))
}

/// Ctrl-C, or another signal that asks a program to end.
#[cfg(unix)]
struct Signal([tokio::signal::unix::Signal; 3]);

#[cfg(unix)]
impl Signal {
    fn listen() -> Result<Signal> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signal([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    async fn come(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
            _ = hangup.recv() => (),
        }
        eprintln!("stopping RabbitMQ");
    }
}

#[cfg(not(unix))]
struct Signal;

#[cfg(not(unix))]
impl Signal {
    fn listen() -> Result<Signal> {
        Ok(Signal)
    }

    async fn come(&mut self) {
        // If this program cannot handle Ctrl-C, the system ends the process.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        eprintln!("stopping RabbitMQ");
    }
}
