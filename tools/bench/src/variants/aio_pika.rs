//! Runs aio-pika: a Python script, in a virtual environment made for it.

use std::{
    env,
    ffi::OsString,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::{process::Command, time::timeout};

use crate::work::{Reply, Work};

const SCRIPT: &str = include_str!("../../python/client.py");
const REQUIREMENTS: &str = include_str!("../../python/requirements.txt");

/// A Python that has aio-pika, and the script that it runs.
pub struct Python {
    python: PathBuf,
    script: PathBuf,
    pub version: String,
}

impl Python {
    /// Makes the virtual environment in the first run, beside this program. `cargo clean` removes it.
    ///
    /// # Errors
    /// Why it cannot be made: for instance, Python or the packages are missing.
    pub async fn prepare() -> Result<Python> {
        let mut wanted = DefaultHasher::new();
        REQUIREMENTS.hash(&mut wanted);
        let own = env::current_exe()?;
        let home = own.parent().context("the path of this program has no directory")?;
        let home = home.join(format!("bench-python-{:016x}", wanted.finish()));
        let python = home.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
        let complete = home.join("complete");
        if !complete.exists() {
            let requirements = home.join("requirements.txt");
            let system = Path::new(if cfg!(windows) { "python" } else { "python3" });
            run(Command::new(system).args(["-m", "venv", "--clear"]).arg(&home)).await?;
            fs::write(&requirements, REQUIREMENTS)?;
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
            run(Command::new(&python).args(pip).arg(&requirements)).await?;
            fs::write(&complete, "")?;
        }
        let script = home.join("client.py");
        fs::write(&script, SCRIPT)?;
        let about = "import platform, importlib.metadata as m; \
                     print('aio-pika', m.version('aio-pika'), 'on Python', platform.python_version())";
        let version = run(Command::new(&python).args(["-c", about])).await?;
        Ok(Python { python, script, version })
    }

    /// The command that does a kind of work.
    pub fn command(&self, work: &Work, name: &str) -> Result<Vec<OsString>> {
        let (kind, arguments) = match *work {
            Work::Publish { .. } | Work::Fanout { .. } => {
                let publishing = work.publishing(name).context("nothing to publish")?;
                let size = publishing.body.len();
                let (exchange, routing_key, window) = (publishing.exchange, publishing.routing_key, publishing.window);
                let arguments =
                    json!({"exchange": exchange, "routing_key": routing_key, "size": size, "window": window});
                ("publish", arguments)
            }
            Work::Consume { prefetch } => ("consume", json!({"prefetch": prefetch})),
            Work::Rpc { window, reply } => ("rpc", json!({"window": window, "direct": reply == Reply::Direct})),
            Work::Connect => ("connect", json!({})),
            Work::Recover => ("recover", json!({})),
        };
        let words = [self.python.clone().into(), self.script.clone().into(), kind.into(), name.into()];
        Ok(words.into_iter().chain([arguments.to_string().into()]).collect())
    }
}

/// Returns what a command prints. If the command fails, the error is the last line on its stderr.
async fn run(command: &mut Command) -> Result<String> {
    let name = command.as_std().get_program().display().to_string();
    command.stdin(Stdio::null()).kill_on_drop(true);
    let Ok(output) = timeout(Duration::from_secs(180), command.output()).await else { bail!("{name} takes too long") };
    let output = output.with_context(|| format!("cannot run {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", said.trim().lines().last().unwrap_or("it failed and says nothing"));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
