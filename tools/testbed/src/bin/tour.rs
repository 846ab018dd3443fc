//! Plays all lessons with the real programs, and checks what they print.
//!
//!     cargo tour

use std::process::ExitCode;

use clap::Parser;
use testbed::tour::{Options, run};

#[tokio::main]
async fn main() -> ExitCode {
    run(Options::parse()).await
}
