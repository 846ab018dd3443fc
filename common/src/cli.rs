//! The command-line arguments that all programs share, and their logs.

use std::{
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{ConnectOptions, Error, Result, escaped};

/// A longer file cannot be a password.
const LONGEST_PASSWORD: u64 = 64 * 1024;

/// What `main` returns: an error ends the program with exit code 1, and with one line on stderr, `Error: ` and its sentence.
///
/// Rust prints what `main` returns with `{:?}`. For an [`Error`] this includes the variant, which does not help the
/// people who use a program.
///
/// ```no_run
/// #[tokio::main]
/// async fn main() -> common::cli::MainResult {
///     let connections = common::ConnectionManager::new("amqp://localhost".parse()?);
///     connections.channel("send").await?;
///     connections.close_all().await?;
///     Ok(())
/// }
/// ```
pub type MainResult = Result<(), MainError>;

/// The error of a [`MainResult`]. `?` makes it from everything that is an [`Error`] or can become one.
pub struct MainError(Error);

impl<E: Into<Error>> From<E> for MainError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Debug for MainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The address of the broker, and how much to log. Flatten it into a program's arguments.
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
    /// The URL of RabbitMQ; better set the variable, because other users can see the command line. With `?fail_fast=0` at its
    /// end, the program waits until RabbitMQ runs
    #[arg(
        long,
        env = "AMQP_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "amqp://guest:guest@localhost:5672"
    )]
    url: String,

    /// A file that contains the password, for instance in a container; it replaces the password in the URL
    #[arg(long, env = "AMQP_PASSWORD_FILE", value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// Print more on stderr (-vv: everything)
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
        let options = match &self.password_file {
            Some(file) => options.password(&password_in(file)?)?,
            None => options,
        };
        options.check_password()?;
        Ok(options)
    }

    /// Sends logs to stderr, so that stdout contains only the lesson. Logs warnings and changes of the connection; with
    /// `-v` and `-vv` more; or what the environment variable `RUST_LOG` asks for (`RUST_LOG=common=debug`).
    ///
    /// If a reader of stdout goes away, as in `receive | head -1`, the program ends quietly.
    pub fn log_to_stderr(&self) {
        let usual = match self.verbose {
            0 => Targets::new().with_default(LevelFilter::WARN).with_target("common", LevelFilter::INFO),
            1 => Targets::new().with_default(LevelFilter::INFO).with_target("common", LevelFilter::DEBUG),
            // amqprs can log credentials at TRACE (AMQPRS.md, "Features").
            _ => Targets::new().with_default(LevelFilter::TRACE).with_target("amqprs", LevelFilter::DEBUG),
        };
        let filter = match std::env::var("RUST_LOG") {
            Ok(asked) if !asked.is_empty() => asked.parse().unwrap_or_else(|_| {
                eprintln!(
                    "RUST_LOG is ignored: {:?} cannot be read; an example is RUST_LOG=common=debug",
                    escaped(&asked)
                );
                usual
            }),
            _ => usual,
        };
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal() && wants_colour(|name| std::env::var_os(name)))
            .with_target(self.verbose > 0);
        let layer: Box<dyn tracing_subscriber::Layer<_> + Send + Sync> =
            if self.verbose > 0 { Box::new(lines) } else { Box::new(lines.without_time()) };
        // A second call, as in tests, keeps the first subscriber.
        let _ = tracing_subscriber::registry().with(layer).with(filter).try_init();
        end_quietly_when_stdout_is_closed();
    }
}

/// Whether a terminal may get colours. Not with `NO_COLOR` ([no-color.org](https://no-color.org)), and not if the
/// terminal has no colours.
fn wants_colour(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    variable("NO_COLOR").is_none_or(|value| value.is_empty())
        && variable("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// Reads the command line, as [`clap::Parser::parse`] does, but reports a mistake without a password. Clap shows the
/// wrong argument, which may be a URL.
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

/// Everything between `://` and the last `@` is user and password.
fn without_password(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 < at => format!("{}***{}", &text[..scheme + 3], &text[at..]),
        _ => text.into(),
    }
}

fn password_in(file: &Path) -> Result<String> {
    let unusable = |reason: &str| {
        let name = file.to_string_lossy();
        Error::Invalid(format!("the password cannot be read from the file `{}`: {reason}", escaped(&*name)))
    };
    let read = || {
        let mut bytes = Vec::new();
        File::open(file)?.take(LONGEST_PASSWORD + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error: io::Error| unusable(&error.to_string()))?;
    if bytes.len() as u64 > LONGEST_PASSWORD {
        return Err(unusable("it is longer than 64 KiB; is it the right file?"));
    }
    let text = String::from_utf8(bytes).map_err(|_| unusable("it is not UTF-8"))?;
    // Some editors on Windows begin a file with this mark.
    let password = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let password = password.strip_suffix('\n').unwrap_or(password);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(unusable("it is empty"));
    }
    Ok(password.to_owned())
}

/// `println!` panics when stdout cannot be written. If stdout is a pipe whose reader has ended, this is a normal end.
/// Otherwise (a full disk) it is an error, reported in one sentence without a backtrace.
fn end_quietly_when_stdout_is_closed() {
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
    use std::{ffi::OsString, fs};

    use super::{password_in, wants_colour, without_password};

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        for (no_color, term, wanted) in [
            (None, None, true),
            (None, Some("xterm"), true),
            (Some(""), Some("xterm"), true),
            (Some("1"), Some("xterm"), false),
            (None, Some("dumb"), false),
        ] {
            let variable = |name: &str| if name == "NO_COLOR" { no_color } else { term }.map(OsString::from);
            assert_eq!(wants_colour(variable), wanted, "{no_color:?} {term:?}");
        }
    }

    #[test]
    fn a_password_file_is_the_password_or_one_sentence() {
        let directory = std::env::temp_dir().join(format!("common-cli-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory");
        let file = directory.join("password");
        let read = |bytes: &[u8]| {
            fs::write(&file, bytes).expect("a file");
            password_in(&file).map_err(|error| error.to_string())
        };
        for bytes in ["s3cret", "s3cret\n", "s3cret\r\n", "\u{feff}s3cret\r\n"] {
            assert_eq!(read(bytes.as_bytes()), Ok("s3cret".into()), "{bytes:?}");
        }
        assert_eq!(read(b" two words \n\n"), Ok(" two words \n".into()));
        for (bytes, reason) in [
            (vec![], "it is empty"),
            (b"\n".to_vec(), "it is empty"),
            (b"s3cret\xff".to_vec(), "it is not UTF-8"),
            (vec![b'x'; 64 * 1024 + 1], "it is longer than 64 KiB"),
        ] {
            let error = read(&bytes).expect_err(reason);
            assert!(error.contains(reason) && !error.contains("s3cret"), "{error}");
        }
        for (path, reason) in [(&directory, "directory"), (&directory.join("missing"), "o such file")] {
            let error = password_in(path).expect_err(reason).to_string();
            assert!(cfg!(windows) || error.contains(reason), "{error}");
        }
        fs::remove_dir_all(&directory).expect("it is removed");
    }

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
