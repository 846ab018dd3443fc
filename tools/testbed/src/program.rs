//! A lesson program as a child process, read line by line.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::mpsc,
    time::timeout,
};

use crate::guard::{Watched, watch};

/// A program to run, with its arguments and its environment.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    deadline: Duration,
}

/// One of the two streams that a program prints to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stream {
    /// Standard output: the lesson.
    Stdout,
    /// Standard error: everything else.
    Stderr,
}

impl Program {
    /// The program in the file `path`. A test says `Program::new(env!("CARGO_BIN_EXE_send"))`.
    pub fn new(path: impl AsRef<Path>) -> Program {
        Program {
            path: path.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            deadline: Duration::from_secs(20),
        }
    }

    /// Sets `AMQP_URL` for the program. Without this call the program does not have the variable, even if this process has it.
    pub fn url(self, url: impl AsRef<OsStr>) -> Program {
        self.env("AMQP_URL", url)
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Program {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Program {
        let arguments = arguments.into_iter();
        self.arguments.extend(arguments.map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Program {
        let entry = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.environment.push(entry);
        self
    }

    /// How long each wait for the program may take, for a line or for its end. The default is 20 seconds.
    pub fn deadline(mut self, deadline: Duration) -> Program {
        self.deadline = deadline;
        self
    }

    /// Starts it. Must be called inside a Tokio runtime. The program has no input. It is killed when the returned value is
    /// dropped or this process ends.
    pub fn spawn(self) -> Result<Running> {
        let mut command_line = self
            .path
            .file_name()
            .map_or_else(|| self.path.display().to_string(), |name| name.to_string_lossy().into_owned());
        for argument in &self.arguments {
            // Writing to a string cannot fail.
            let _ = write!(command_line, " {argument:?}");
        }
        let mut child = Command::new(&self.path)
            .args(&self.arguments)
            .env_remove("AMQP_URL")
            .env_remove("AMQP_PASSWORD_FILE")
            .envs(self.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.path.display()))?;
        let watched = child.id().map(watch);
        let (sender, lines) = mpsc::unbounded_channel();
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(read(Stream::Stdout, stdout, sender.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(read(Stream::Stderr, stderr, sender));
        }
        Ok(Running {
            child,
            command_line,
            deadline: self.deadline,
            lines,
            unread: VecDeque::new(),
            stdout: String::new(),
            stderr: String::new(),
            _watched: watched,
        })
    }

    /// Runs it to its end.
    pub async fn run(self) -> Result<Finished> {
        self.spawn()?.wait().await
    }
}

/// Passes on what a program prints, line by line, as long as there is a receiver. Lines are read at once, so that the program
/// never waits because its pipe is full.
async fn read(stream: Stream, from: impl AsyncRead + Unpin, to: mpsc::UnboundedSender<(Stream, String)>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while let Ok(1..) = from.read_until(b'\n', &mut line).await {
        let text = String::from_utf8_lossy(&line).into_owned();
        if to.send((stream, text)).is_err() {
            return;
        }
        line.clear();
    }
}

/// A program that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit code. `None` if a signal ended it.
    pub code: Option<i32>,
    /// All that it printed on standard output.
    pub stdout: String,
    /// All that it printed on standard error.
    pub stderr: String,
}

/// A program that has been started. It is killed when this value is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command_line: String,
    deadline: Duration,
    lines: mpsc::UnboundedReceiver<(Stream, String)>,
    /// Lines that came while we waited for a line of the other stream, without their line ends.
    unread: VecDeque<(Stream, String)>,
    stdout: String,
    stderr: String,
    // The last field: dropped after the child has been killed.
    _watched: Option<Watched>,
}

impl Running {
    /// The next line on standard output, without its line end.
    pub async fn line(&mut self) -> Result<String> {
        let any = |_: &str| true;
        self.find(Stream::Stdout, any, "a line on standard output").await
    }

    /// The next line on standard output must be this one.
    pub async fn expect(&mut self, expected: &str) -> Result<()> {
        let line = self.line().await?;
        if line != expected {
            bail!("expected the line {expected:?}, got {line:?}{}", self.transcript());
        }
        Ok(())
    }

    /// The next line on standard error that contains `text`. Lines before it are skipped.
    pub async fn stderr_line_containing(&mut self, text: &str) -> Result<String> {
        let what = format!("a line with {text:?} on standard error");
        self.find(Stream::Stderr, |line| line.contains(text), &what).await
    }

    /// The next line of either stream, without a deadline. `None` once both streams have ended.
    pub async fn next_output(&mut self) -> Option<(Stream, String)> {
        match self.unread.pop_front() {
            Some(next) => Some(next),
            None => self.receive().await,
        }
    }

    /// Its process id. `None` once it has been waited for.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills it, as `kill -9` does.
    pub fn kill(&mut self) -> Result<()> {
        self.child.start_kill().with_context(|| format!("cannot kill {}", self.command_line))
    }

    /// Does what Ctrl-C does: sends SIGINT. On Windows, where that is impossible for a single process, it kills the program.
    pub fn interrupt(&mut self) -> Result<()> {
        #[cfg(unix)]
        {
            use nix::{
                sys::signal::{Signal, kill},
                unistd::Pid,
            };
            // Once the process has been waited for, another process may have its id. Then `id()` is `None`.
            let id = self.child.id().context("the program has ended")?;
            kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGINT)
                .with_context(|| format!("cannot interrupt {}", self.command_line))
        }
        #[cfg(not(unix))]
        self.kill()
    }

    /// Waits for its end.
    pub async fn wait(mut self) -> Result<Finished> {
        let deadline = self.deadline;
        let end = async {
            while self.receive().await.is_some() {}
            self.child.wait().await
        };
        let Ok(status) = timeout(deadline, end).await else {
            // Dropped with the error, and so killed.
            bail!("{} has not ended after {deadline:?}{}", self.command_line, self.transcript());
        };
        Ok(Finished { code: status?.code(), stdout: self.stdout, stderr: self.stderr })
    }

    /// Returns the first line that is wanted, from those that have come or are still to come. Earlier lines of the same stream
    /// are dropped. Lines of the other stream stay unread.
    async fn find(&mut self, stream: Stream, wanted: impl Fn(&str) -> bool, what: &str) -> Result<String> {
        let is_it = |(from, line): &(Stream, String)| *from == stream && wanted(line);
        let deadline = self.deadline;
        let search = async {
            loop {
                if let Some(at) = self.unread.iter().position(is_it) {
                    let found = self.unread.remove(at);
                    let mut before = 0..at;
                    self.unread.retain(|(from, _)| before.next().is_none() || *from != stream);
                    return found.map(|(_, line)| line);
                }
                let next = self.receive().await?;
                self.unread.push_back(next);
            }
        };
        match timeout(deadline, search).await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => {
                let status = timeout(deadline, self.child.wait()).await;
                let end = match status {
                    Ok(Ok(status)) => status.to_string(),
                    _ => "it closed its output".to_owned(),
                };
                Err(anyhow!("waited for {what} of {}, which ended: {end}{}", self.command_line, self.transcript()))
            }
            Err(_) => Err(anyhow!("waited {deadline:?} for {what} of {}{}", self.command_line, self.transcript())),
        }
    }

    /// The next line of the program, kept for the transcript.
    async fn receive(&mut self) -> Option<(Stream, String)> {
        let (stream, text) = self.lines.recv().await?;
        match stream {
            Stream::Stdout => self.stdout.push_str(&text),
            Stream::Stderr => self.stderr.push_str(&text),
        }
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        Some((stream, line.to_owned()))
    }

    /// Everything that it has printed, for the end of an error message.
    fn transcript(&self) -> String {
        format!("\n--- its standard output ---\n{}--- its standard error ---\n{}", self.stdout, self.stderr)
    }
}
