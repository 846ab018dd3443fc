//! A Python with the packages that the scripts in `tools/interop/` need.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::{process::Command, time::timeout};

use crate::scripts;

/// A Python that can import what the scripts need, and the directory of the packages.
pub async fn find() -> Result<(PathBuf, Option<PathBuf>)> {
    let (python, packages) = match env::var_os("INTEROP_PYTHON") {
        Some(python) => (PathBuf::from(python), None),
        None => {
            let python = PathBuf::from(if cfg!(windows) { "python" } else { "python3" });
            let packages = install(&python).await?;
            (python, Some(packages))
        }
    };
    let mut check = Command::new(&python);
    check.args(["-c", "import aio_pika, pika"]).envs(packages.iter().map(|path| ("PYTHONPATH", path)));
    succeeds(check, Duration::from_secs(30)).await?;
    Ok((python, packages))
}

/// Installs the packages of `requirements.txt` into a directory of cargo's, once.
async fn install(python: &Path) -> Result<PathBuf> {
    let requirements = scripts().join("requirements.txt");
    let mut wanted = DefaultHasher::new();
    fs::read(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?.hash(&mut wanted);
    // Some packages work only with one version of Python.
    let mut version = Command::new(python);
    version.args(["-c", "import sys; print(sys.version)"]);
    succeeds(version, Duration::from_secs(30)).await?.hash(&mut wanted);
    let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("interop-{:016x}", wanted.finish()));
    if packages.exists() {
        return Ok(packages);
    }
    // The directory gets its name when it is complete.
    let incomplete = packages.with_extension(std::process::id().to_string());
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--target"]);
    pip.arg(&incomplete).arg("--requirement").arg(&requirements);
    if let Err(error) = succeeds(pip, Duration::from_secs(120)).await {
        drop(fs::remove_dir_all(&incomplete));
        return Err(error.context("`pip install` of tools/interop/requirements.txt failed"));
    }
    match fs::rename(&incomplete, &packages) {
        // Another process was faster.
        Err(_) if packages.exists() => fs::remove_dir_all(&incomplete)?,
        renamed => renamed?,
    }
    Ok(packages)
}

/// Runs a command, and returns what it printed. If it fails, the error is the last line on its standard error.
async fn succeeds(mut command: Command, patience: Duration) -> Result<Vec<u8>> {
    let name = command.as_std().get_program().display().to_string();
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(patience, run).await.map_err(|_| anyhow!("{name} takes more than {patience:?}"))?;
    let output = output.with_context(|| format!("cannot run {name}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", words.trim().lines().last().unwrap_or_default());
    Ok(output.stdout)
}
