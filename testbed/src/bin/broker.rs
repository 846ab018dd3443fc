//! A RabbitMQ to learn with, for as long as this program runs.
//!
//!     cargo broker
#![forbid(unsafe_code)]

use std::{
    io::{Write, stdout},
    process::ExitCode,
};

use anyhow::{Result, bail};
use clap::Parser;
use testbed::Broker;

/// Starts a RabbitMQ for the lessons, in Docker or with the rabbitmq-server of this machine,
/// and ends it with Ctrl-C.
#[derive(Parser)]
#[command(
    bin_name = "cargo broker",
    after_help = "Example, in two terminals:\n  cargo broker\n  cargo run --bin receive"
)]
struct Options {
    /// Port for the lessons; if it is taken, the next free one
    #[arg(long, default_value_t = 5672, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
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
        .management_port_from(15672)
        .report(|line| eprintln!("{line}"))
        .start();
    let broker = tokio::select! {
        broker = start => broker?,
        // What has been started so far ends with the other branch's future.
        () = signal.come() => return Ok(ExitCode::from(130)),
    };
    stdout().write_all(greeting(&broker).await?.as_bytes())?;
    tokio::select! {
        () = signal.come() => {
            broker.shutdown().await?;
            Ok(ExitCode::SUCCESS)
        }
        last_words = broker.ended() => bail!("RabbitMQ has ended by itself: {}", last_words?),
    }
}

async fn greeting(broker: &Broker) -> Result<String> {
    let version = broker.version().await?;
    let url = broker.url();
    let mut text = format!(
        "RabbitMQ {version} is ready.\n\n  \
           --url {url}\n  \
           export AMQP_URL={url}\n"
    );
    let rabbitmqctl = broker.rabbitmqctl_command();
    if let Some(command) = &rabbitmqctl {
        text += &format!("  alias rabbitmqctl='{command}'\n");
    }
    text += "\nThe first is an argument for one program, the second is for all in a terminal.\n";
    if rabbitmqctl.is_some() {
        text += "The third lets you look into this RabbitMQ, as with `rabbitmqctl list_queues`.\n";
    }
    if let Some(page) = broker.management_url() {
        text += &format!("Management page: {page} (user guest, password guest)\n");
    }
    text += "Ctrl-C ends this RabbitMQ, and nothing of it is left.\n";
    Ok(text)
}

/// Ctrl-C, or whatever else asks a program to end.
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
        eprintln!("ending RabbitMQ");
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
        // Where Ctrl-C cannot be listened to, it ends this process by itself.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        eprintln!("ending RabbitMQ");
    }
}
