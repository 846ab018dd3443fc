//! Shows on standard error what happens before the first lesson: with a spinner if it is a terminal, otherwise in lines.

use std::{
    io::IsTerminal,
    sync::Mutex,
    time::{Duration, Instant},
};

use console::Term;
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

use super::page::{columns, wrap};

/// Something that takes a while.
pub(super) struct Progress {
    /// `None` if standard error is not a terminal.
    spinner: Option<ProgressBar>,
    started: Instant,
    /// The last line written without a terminal. Cargo names a crate with a build script twice; we show it once.
    last: Mutex<String>,
}

impl Progress {
    pub(super) fn start(what: &str) -> Progress {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("  {spinner} {prefix} {msg}");
            let spinner = ProgressBar::new_spinner()
                .with_prefix(what.to_owned())
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
                // Also if Ctrl-C ends the tour.
                .with_finish(ProgressFinish::AndClear);
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        if spinner.is_none() {
            eprintln!("{what}");
        }
        Progress { spinner, started: Instant::now(), last: Mutex::default() }
    }

    /// What is being done now.
    pub(super) fn now(&self, step: &str) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(step.to_owned()),
            None => self.line(step),
        }
    }

    /// Something worth keeping on the screen.
    pub(super) fn note(&self, line: &str) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| {
                for (number, line) in wrap(line, columns(&Term::stderr()) - 4).iter().enumerate() {
                    eprintln!("  {} {line}", if number == 0 { '·' } else { ' ' });
                }
            }),
            None => self.line(line),
        }
    }

    pub(super) fn done(&self, result: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        match &self.spinner {
            Some(spinner) => {
                spinner.finish_and_clear();
                eprintln!("  ✓ {result} ({seconds:.1} s)");
            }
            None => eprintln!("{result} ({seconds:.1} s)"),
        }
    }

    fn line(&self, line: &str) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *last != line {
            eprintln!("  {line}");
            line.clone_into(&mut last);
        }
    }
}
