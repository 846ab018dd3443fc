//! A process together with all processes that it starts.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// The process and its group. It is killed when this value is dropped. A file contains its number, for the guard.
pub(super) struct ProcessGroup {
    child: Child,
    run_file: PathBuf,
}

impl ProcessGroup {
    pub(super) fn start(mut command: Command, run_file: PathBuf) -> Result<ProcessGroup> {
        let child = command.process_group(0).spawn().context("cannot start `sh`")?;
        Ok(ProcessGroup { child, run_file })
    }

    pub(super) fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Whether a SIGSTOP has reached all threads. Until then some of them still work.
    pub(super) fn has_stopped(&self) -> Result<bool> {
        let id = Pid::from_raw(i32::try_from(self.child.id())?);
        match waitpid(id, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED))? {
            WaitStatus::Stopped(..) => Ok(true),
            WaitStatus::StillAlive => Ok(false),
            other => bail!("the process has ended: {other:?}"),
        }
    }

    pub(super) fn signal(&mut self, signal: Signal) -> Result<()> {
        // Once the process has been waited for, another process may get its number.
        if !self.runs()? {
            bail!("the process has ended");
        }
        let id = Pid::from_raw(i32::try_from(self.child.id())?);
        killpg(id, signal).with_context(|| format!("cannot send {signal} to the process"))
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // Failures can be ignored, because the guard cleans up afterwards.
        let _ = self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.run_file);
    }
}
