//! `rabbitmqctl` for the RabbitMQ that the programs of this terminal use.
//!
//!     cargo ctl list_queues
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use testbed::ctl::rabbitmqctl;

/// Runs rabbitmqctl on the RabbitMQ that the lesson programs use in this terminal: the one that AMQP_URL names, or the
/// one at localhost:5672. It can run in Docker, in a `cargo broker`, or as a service of this machine.
#[derive(Parser)]
#[command(bin_name = "cargo ctl", after_help = "Examples:\n  cargo ctl list_queues\n  cargo ctl help list_queues")]
struct Options {
    /// A command of rabbitmqctl and its arguments; `cargo ctl help` lists all commands
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match rabbitmqctl(&Options::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
