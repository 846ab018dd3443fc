//! Cleans up, however this process ends.
//!
//! Rust runs no destructors for statics, after `process::exit`, or when a process is killed. A test binary has no `main` of
//! ours that could help. So a **guard**, a shell process, watches everything that would remain after this process. The guard
//! reads from a pipe that only this process holds open. When this process ends, for any reason, the pipe ends, and the
//! guard cleans up.

#[cfg(unix)]
pub(crate) use unix::{Guard, Watched, watch};

#[cfg(not(unix))]
pub(crate) use elsewhere::{Watched, watch};

/// Without a shell there is no guard. Only destructors clean up.
#[cfg(not(unix))]
mod elsewhere {
    #[derive(Debug)]
    pub(crate) struct Watched;

    pub(crate) fn watch(_pid: u32) -> Watched {
        Watched
    }
}

#[cfg(unix)]
mod unix {
    use std::{
        ffi::OsString,
        io::Write,
        os::unix::process::CommandExt,
        process::{Child, ChildStdin, Command, Stdio},
        sync::{Mutex, OnceLock, PoisonError},
        thread,
        time::{Duration, Instant},
    };

    use anyhow::{Context, Result};

    /// The guard ignores the signals that end this process, so that they cannot end the guard before it has cleaned up.
    const PROLOGUE: &str = "trap '' INT TERM HUP PIPE\n";

    /// How long we wait for a guard that cleans up.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// A shell that cleans up when this value is dropped or this process ends.
    #[derive(Debug)]
    pub(crate) struct Guard {
        shell: Child,
        pipe: Option<ChildStdin>,
    }

    impl Guard {
        /// Starts a guard. Its script reads what [`Guard::tell`] writes, line by line. When the input ends, the script cleans
        /// up. Start the guard before there is anything to clean up, so that it always knows what this process has started.
        pub(crate) fn arm(script: &str, arguments: &[OsString], environment: &[(&str, String)]) -> Result<Guard> {
            let mut shell = Command::new("sh")
                .arg("-c")
                .arg(format!("{PROLOGUE}{script}"))
                .arg("testbed-guard")
                .args(arguments)
                .envs(environment.iter().map(|(name, value)| (name, value)))
                .current_dir("/")
                .stdin(Stdio::piped())
                // Otherwise a program that reads our output would also wait for the guard's end.
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                // Ctrl-C in a terminal ends a whole process group. The guard must not be in ours.
                .process_group(0)
                .spawn()
                .context("cannot start `sh`, which would clean up after us")?;
            let pipe = shell.stdin.take();
            Ok(Guard { shell, pipe })
        }

        /// Writes one line for the script to read.
        pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
            let pipe = self.pipe.as_mut().context("the guard has been released")?;
            pipe.write_all(format!("{line}\n").as_bytes()).context("the process that cleans up after us is gone")
        }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            drop(self.pipe.take());
            let deadline = Instant::now() + PATIENCE;
            // The standard library cannot wait for a child with a deadline.
            while let Ok(None) = self.shell.try_wait() {
                if Instant::now() > deadline {
                    return;
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Keeps a list of process ids while this process lives. Then it kills the processes that are still on the list.
    const KILLER: &str = r#"
pids=' '
while read -r what pid; do
  case $what in
    watch) pids="$pids$pid " ;;
    forget) case $pids in *" $pid "*) pids="${pids%% "$pid" *} ${pids#* "$pid" }" ;; esac ;;
  esac
done
[ "$pids" = ' ' ] || kill -KILL $pids
"#;

    /// One guard for all programs that this process runs. It is never dropped, because it is a static.
    static KILLER_GUARD: OnceLock<Option<Mutex<Guard>>> = OnceLock::new();

    /// Makes the guard kill the process `pid` when this process ends, unless the returned value is dropped before.
    pub(crate) fn watch(pid: u32) -> Watched {
        tell_killer(&format!("watch {pid}"));
        Watched(pid)
    }

    /// A process on the list. Drop it once the process has been waited for, because another process may then get its id.
    #[derive(Debug)]
    pub(crate) struct Watched(u32);

    impl Drop for Watched {
        fn drop(&mut self) {
            tell_killer(&format!("forget {}", self.0));
        }
    }

    fn tell_killer(line: &str) {
        let guard = KILLER_GUARD.get_or_init(|| Guard::arm(KILLER, &[], &[]).ok().map(Mutex::new));
        if let Some(guard) = guard {
            // Without a guard, destructors still end the programs. Only `kill -9` would leave them running.
            let _ = guard.lock().unwrap_or_else(PoisonError::into_inner).tell(line);
        }
    }
}
