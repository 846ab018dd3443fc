//! Cleaning up whatever happens to this process.
//!
//! Rust runs no destructors for statics, for a killed process or for one that ends with
//! `process::exit`, and a test binary has no `main` of ours that could help. So whatever would
//! outlive us is watched by a shell: it reads from a pipe that only this process holds open, and
//! when this process ends, for whatever reason, the pipe ends, and the shell cleans up.

#[cfg(unix)]
pub(crate) use unix::{Guard, Watched, watch};

#[cfg(not(unix))]
pub(crate) use elsewhere::{Watched, watch};

/// Without a shell nobody is there to clean up after us: destructors do what they can.
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

    /// No signal that ends us, from a terminal or from a person, may end the guard before it has done its work.
    const PROLOGUE: &str = "trap '' INT TERM HUP PIPE\n";

    /// How long a guard may take to clean up before we go on without waiting for it.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// A shell that cleans up once this process has ended, or at the latest when the guard is dropped.
    #[derive(Debug)]
    pub(crate) struct Guard {
        shell: Child,
        pipe: Option<ChildStdin>,
    }

    impl Guard {
        /// Starts a guard. Its script reads what [`Guard::tell`] writes, line by line; when that
        /// ends, it cleans up. Arm it before there is anything to clean up: there must be no
        /// moment at which only this process knows of it.
        pub(crate) fn arm(script: &str, arguments: &[OsString], environment: &[(&str, String)]) -> Result<Guard> {
            let mut shell = Command::new("sh")
                .arg("-c")
                .arg(format!("{PROLOGUE}{script}"))
                .arg("testbed-guard")
                .args(arguments)
                .envs(environment.iter().map(|(name, value)| (name, value)))
                .current_dir("/")
                .stdin(Stdio::piped())
                // Whoever reads our output would otherwise wait for the guard to end, too.
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                // Ctrl-C in a terminal goes to a whole process group: not to this one.
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
            // There is no waiting for a child with a deadline in the standard library.
            while let Ok(None) = self.shell.try_wait() {
                if Instant::now() > deadline {
                    return;
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Keeps a list of process ids while this process lives, then kills what is still on it.
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

    /// One for all the programs that this process runs; never dropped, see the module's text.
    static KILLER_GUARD: OnceLock<Option<Mutex<Guard>>> = OnceLock::new();

    /// The process `pid` is killed when this process ends, unless the returned value is dropped before.
    pub(crate) fn watch(pid: u32) -> Watched {
        tell_killer(&format!("watch {pid}"));
        Watched(pid)
    }

    /// A process on the list; drop it once the process has been waited for, as its id may then be given to another.
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
            // Without a guard the programs still end with their owner; only `kill -9` would leave them.
            let _ = guard.lock().unwrap_or_else(PoisonError::into_inner).tell(line);
        }
    }
}
