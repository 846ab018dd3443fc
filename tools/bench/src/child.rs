//! Each variant works in a process of its own, so that its processor time and memory can be measured alone. For each
//! round the parent writes one line that says how much to do, and reads one line of JSON with the result.

use std::{env, ffi::OsString, process::Stdio, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    usage,
    variants::{Variant, aio_pika::Python},
    work::Work,
};

/// No answer of a child may take longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a child answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Answer {
    Ready { ready: bool },
    Round(Round),
    End { peak_kib: Option<u64> },
}

/// One round: how long it took, and the seconds of processor time.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Round {
    pub seconds: f64,
    pub cpu: Option<f64>,
}

/// The child's side.
pub async fn run(work: Work, variant: Variant, name: String) -> Result<()> {
    let url = env::var("AMQP_URL").context("AMQP_URL is not set")?;
    // In a task, as the code of a server would run: the thread of `main` is not one of the runtime's own.
    tokio::spawn(async move {
        let mut ready = variant.prepare(&work, &url, &name).await?;
        say(&Answer::Ready { ready: true })?;
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            let count = line.parse().with_context(|| format!("`{line}` is not a number of units"))?;
            let before = usage::cpu_seconds();
            let seconds = ready.run(count).await?.as_secs_f64();
            let cpu = usage::cpu_seconds().zip(before).map(|(after, before)| after - before);
            say(&Answer::Round(Round { seconds, cpu }))?;
        }
        say(&Answer::End { peak_kib: usage::peak_kib() })
    })
    .await?
}

fn say(answer: &Answer) -> Result<()> {
    println!("{}", serde_json::to_string(answer)?);
    Ok(())
}

/// A child process, as the parent sees it. It ends when this value is dropped.
pub struct ChildProcess {
    pub variant: Variant,
    what: String,
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl ChildProcess {
    /// Starts a child and waits until it is ready. `tool` is a command to run it under, with its arguments.
    pub async fn start(
        work: &Work,
        variant: Variant,
        url: &str,
        name: &str,
        python: Option<&Python>,
        tool: &[OsString],
    ) -> Result<ChildProcess> {
        let mut words = tool.to_vec();
        match (variant, python) {
            (Variant::AioPika, Some(python)) => words.extend(python.command(work, name)?),
            (Variant::AioPika, None) => bail!("there is no Python to run aio-pika"),
            _ => {
                words.push(env::current_exe()?.into());
                words.extend(["child".into(), work.to_string().into(), variant.to_string().into(), name.into()]);
            }
        }
        let what = format!("{variant} doing {work}");
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            // The URL contains a password, so it is not an argument.
            .env("AMQP_URL", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", words[0].display()))?;
        let stdin = child.stdin.take().context("no stdin")?;
        let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let mut process = ChildProcess { variant, what, child, stdin, lines };
        match process.answer().await? {
            Answer::Ready { .. } => Ok(process),
            other => Err(process.foreign(&other)),
        }
    }

    /// Makes the child do `count` units.
    pub async fn round(&mut self, count: u64) -> Result<Round> {
        self.stdin.write_all(format!("{count}\n").as_bytes()).await.with_context(|| self.what.clone())?;
        match self.answer().await? {
            Answer::Round(round) => Ok(round),
            other => Err(self.foreign(&other)),
        }
    }

    /// Ends the child. Returns the most memory that it had, in KiB.
    pub async fn finish(mut self) -> Result<Option<u64>> {
        self.stdin.shutdown().await?;
        drop(self.stdin);
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.ok().and_then(Result::ok).flatten().with_context(|| format!("{} ended early", self.what))?;
        let Answer::End { peak_kib } = serde_json::from_str(&line)? else { bail!("{} said {line}", self.what) };
        timeout(PATIENCE, self.child.wait()).await.with_context(|| format!("{} does not end", self.what))??;
        Ok(peak_kib)
    }

    async fn answer(&mut self) -> Result<Answer> {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.with_context(|| format!("{} took more than {} s", self.what, PATIENCE.as_secs()))??;
        // The child prints its error on stderr.
        let line = line.with_context(|| format!("{} failed", self.what))?;
        serde_json::from_str(&line).with_context(|| format!("{} said {line}", self.what))
    }

    fn foreign(&self, answer: &Answer) -> anyhow::Error {
        anyhow!("{} unexpectedly said {answer:?}", self.what)
    }
}
