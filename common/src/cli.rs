//! The command line that all programs share, and their logs.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{ConnectOptions, Error, Result};

/// No password is longer.
const LONGEST_PASSWORD: u64 = 64 * 1024;

/// Where the broker is and how much to say: flatten it into a program's arguments.
///
/// ```
/// use clap::Parser;
///
/// /// Sends one message.
/// #[derive(Parser)]
/// struct Args {
///     #[command(flatten)]
///     broker: common::cli::BrokerArgs,
/// }
///
/// let args = Args::parse_from(["send", "--url", "amqp://guest:guest@localhost:5672"]);
/// assert_eq!(args.broker.options()?.address(), "localhost:5672");
/// # Ok::<(), common::Error>(())
/// ```
// No `Debug`: the URL holds a password.
#[derive(clap::Args)]
pub struct BrokerArgs {
    /// Where RabbitMQ is; prefer the variable, other users can see a command line
    #[arg(
        long,
        env = "AMQP_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "amqp://guest:guest@localhost:5672"
    )]
    url: String,

    /// A file with the password, as containers get it; it replaces the URL's
    #[arg(long, env = "AMQP_PASSWORD_FILE", value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// Tell more on stderr (-vv: everything)
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

impl BrokerArgs {
    /// How to connect: from `--url` or the environment variable `AMQP_URL`, which is better, because every user of a
    /// machine can read the command lines of all processes. With `--password-file` or `AMQP_PASSWORD_FILE` the password
    /// is the file's text, without the line break at its end, and may be missing from the URL.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the URL is malformed, or the file cannot be read.
    pub fn options(&self) -> Result<ConnectOptions> {
        let options: ConnectOptions = self.url.parse()?;
        match &self.password_file {
            Some(file) => options.password(&password_in(file)?),
            None => Ok(options),
        }
    }

    /// Sends logs to stderr, so that stdout holds the lesson and nothing else: warnings and changes of the
    /// connection, more with `-v` and `-vv`, or what the environment variable `RUST_LOG` asks for
    /// (`RUST_LOG=common=debug`).
    ///
    /// A reader of stdout that goes away, as in `receive | head -1`, ends the program quietly.
    pub fn log_to_stderr(&self) {
        let usual = match self.verbose {
            0 => Targets::new().with_default(LevelFilter::WARN).with_target("common", LevelFilter::INFO),
            1 => Targets::new().with_default(LevelFilter::INFO).with_target("common", LevelFilter::DEBUG),
            // amqprs can log credentials at TRACE (AMQPRS.md, "Features").
            _ => Targets::new().with_default(LevelFilter::TRACE).with_target("amqprs", LevelFilter::DEBUG),
        };
        let filter = std::env::var("RUST_LOG").ok().and_then(|filter| filter.parse().ok()).unwrap_or(usual);
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(self.verbose > 0);
        let layer: Box<dyn tracing_subscriber::Layer<_> + Send + Sync> =
            if self.verbose > 0 { Box::new(lines) } else { Box::new(lines.without_time()) };
        // A second call, as in tests, keeps the first subscriber.
        let _ = tracing_subscriber::registry().with(layer).with(filter).try_init();
        end_quietly_when_nobody_reads();
    }
}

/// Reads the command line, as [`clap::Parser::parse`] does; but a mistake in it is told without a password. Clap shows
/// the argument at which it stumbled, and that may be a URL.
pub fn parse<T: clap::Parser>() -> T {
    T::try_parse().unwrap_or_else(|error| {
        let text = error.to_string();
        let shown = without_password(&text);
        if error.use_stderr() && shown != text {
            eprint!("{shown}");
            std::process::exit(error.exit_code());
        }
        error.exit()
    })
}

/// What stands between `://` and the last `@` is user and password, whatever else is in there.
fn without_password(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 < at => format!("{}***{}", &text[..scheme + 3], &text[at..]),
        _ => text.into(),
    }
}

fn password_in(file: &Path) -> Result<String> {
    let read = || {
        let mut password = String::new();
        File::open(file)?.take(LONGEST_PASSWORD).read_to_string(&mut password)?;
        Ok(password)
    };
    let mut password = read().map_err(|error: io::Error| {
        Error::Invalid(format!("the password cannot be read from the file `{}`: {error}", file.display()))
    })?;
    if password.ends_with('\n') {
        password.pop();
    }
    if password.ends_with('\r') {
        password.pop();
    }
    Ok(password)
}

/// `println!` panics when stdout cannot be written. In a pipe whose reader has gone that is an ordinary end;
/// otherwise (a full disk) it is an error that deserves a sentence and no backtrace.
fn end_quietly_when_nobody_reads() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>().map(String::as_str).unwrap_or_default();
        if !message.starts_with("failed printing to stdout") {
            return usual(panic);
        }
        // EPIPE, and ERROR_NO_DATA or ERROR_BROKEN_PIPE on Windows.
        if ["(os error 32)", "(os error 232)", "(os error 109)"].iter().any(|code| message.ends_with(code)) {
            std::process::exit(0);
        }
        eprintln!("Error: {message}");
        std::process::exit(1);
    }));
}

#[cfg(test)]
mod tests {
    use super::without_password;

    #[test]
    fn a_mistake_is_shown_without_the_password() {
        for (text, shown) in [
            ("error: unexpected argument 'amqp://u:s@h' found", "error: unexpected argument 'amqp://***@h' found"),
            ("'amqps://u:s@\n3cret@h?x=1'", "'amqps://***@h?x=1'"),
            ("amqp://h and a@b", "amqp://***@b"),
            ("unexpected argument '--x'", "unexpected argument '--x'"),
            ("a@b://", "a@b://"),
        ] {
            assert_eq!(without_password(text), shown);
        }
    }
}
