//! A **private node**: a RabbitMQ that we start as a process, with the `rabbitmq-server` that is installed here.
//!
//! A private node shares nothing with the system's own node: not its ports, name, data or configuration. It also has its
//! own `epmd`, the small name server that Erlang would otherwise start for all nodes and leave running. It writes only into
//! one temporary directory.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File, Permissions},
    net::TcpStream,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::{
    Machinery, PORT_TAKEN, Ports, ServerTls, last_words,
    node_directory::PORT_FILE,
    ports::{free_port, random},
    process_group::ProcessGroup,
    start::Settings,
};
use crate::guard::Guard;

/// How long a node may take to stop cleanly.
const STOP: Duration = Duration::from_secs(30);

/// How long a node may take to pause all its threads.
const PAUSE: Duration = Duration::from_secs(10);

/// How long `epmd` may take until it listens.
const EPMD: Duration = Duration::from_secs(5);

/// Runs a command as a process group of its own. Its number is in a file before it starts. The second look at the file is
/// for the guard, which moves the whole directory `run` away. Then the guard either finds the number there, or knows that the
/// command will not run.
const LAUNCH: &str = r#"echo $$ >"$1" && [ -e "$1" ] && shift && exec "$@""#;

/// Kills the process groups in `$1/run`, and removes `$1`. It tries again if a dying process still writes there.
const SWEEPER: &str = r#"
while read -r line; do :; done
mv "$1/run" "$1/ended"
for file in "$1"/ended/*; do
  [ -e "$file" ] && kill -KILL "-$(cat "$file")"
done
try=0
until rm -rf "$1" || [ $try -eq 50 ]; do
  try=$((try + 1))
  sleep 0.1
done
"#;

/// A node. It ends, and its directory is removed, when this value is dropped or this process ends.
pub(super) struct NodeBroker {
    commands: Commands,
    environment: Vec<(&'static str, OsString)>,
    node: Mutex<Option<ProcessGroup>>,
    epmd: Option<ProcessGroup>,
    // Dropped after the processes, because it removes what they leave.
    guard: Option<Guard>,
    directory: PathBuf,
}

/// The programs of an installed RabbitMQ.
#[derive(Clone, Debug)]
pub(super) struct Commands {
    directory: PathBuf,
    epmd: PathBuf,
}

impl Commands {
    /// Looks for them where the packages of Linux distributions and of Homebrew put them.
    pub(super) fn find() -> Result<Commands> {
        let search_path = env::var_os("PATH").unwrap_or_default();
        let on_path = || env::split_paths(&search_path);
        // The packages of distributions put a script on the path that only their own user may run. Any user may run the
        // real one.
        let directory = ["/usr/lib/rabbitmq/bin", "/usr/lib64/rabbitmq/bin"]
            .into_iter()
            .map(PathBuf::from)
            .chain(on_path())
            .chain(["/opt/homebrew/sbin".into(), "/usr/local/sbin".into()])
            .find(|directory| directory.join("rabbitmq-server").is_file())
            .context("it is not installed on this machine")?;
        // `erl` is often a link into the directory of all of Erlang's programs.
        let beside_erl = on_path()
            .find_map(|directory| directory.join("erl").canonicalize().ok())
            .and_then(|erl| erl.parent().map(Path::to_owned));
        let epmd = on_path()
            .chain(beside_erl)
            .map(|directory| directory.join("epmd"))
            .find(|epmd| epmd.is_file())
            .with_context(|| format!("it is in {}, but Erlang's `epmd` was not found", directory.display()))?;
        Ok(Commands { directory, epmd })
    }
}

impl NodeBroker {
    /// Starts a node that listens on `ports`. It is not yet ready when this returns.
    pub(super) async fn start(
        commands: Commands,
        ports: Ports,
        settings: &Settings,
        report: &dyn Fn(&str),
    ) -> Result<NodeBroker> {
        report(&format!("starting a private node with {}", commands.directory.join("rabbitmq-server").display()));
        let name = format!("testbed-{}-{:016x}", std::process::id(), random());
        let directory = env::temp_dir().join(&name);
        let guard = Guard::arm(SWEEPER, &[directory.clone().into()], &[])?;
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        fs::create_dir(directory.join("run"))?;
        let mut taken = ports.taken();
        let epmd_port = free_port(None, &taken)?;
        taken.push(epmd_port);
        let dist_port = free_port(None, &taken)?;
        let environment = configure(&directory, &name, (ports, settings), epmd_port, dist_port)?;
        write_rabbitmqctl(&directory, &commands, &environment)?;
        fs::write(directory.join(PORT_FILE), ports.amqp.to_string())?;
        let mut broker =
            NodeBroker { commands, environment, node: Mutex::new(None), epmd: None, guard: Some(guard), directory };
        broker.start_epmd(epmd_port).await?;
        broker.start_node()?;
        Ok(broker)
    }

    async fn start_epmd(&mut self, port: u16) -> Result<()> {
        let address = ("127.0.0.1", port);
        let mut command = self.command("epmd", self.commands.epmd.as_os_str());
        command.args(["-address", address.0, "-port", &port.to_string()]);
        let mut epmd = ProcessGroup::start(command, self.run_file("epmd"))?;
        let deadline = Instant::now() + EPMD;
        while TcpStream::connect(address).is_err() {
            if !epmd.runs()? {
                bail!("{} ended at once", self.commands.epmd.display());
            }
            if Instant::now() > deadline {
                bail!("{} does not listen", self.commands.epmd.display());
            }
            sleep(Duration::from_millis(5)).await;
        }
        self.epmd = Some(epmd);
        Ok(())
    }

    fn start_node(&self) -> Result<()> {
        let server = self.commands.directory.join("rabbitmq-server");
        let log = File::create(self.log_file())?;
        let mut command = self.command("node", server.as_os_str());
        command.stdout(log.try_clone()?).stderr(log);
        *self.node() = Some(ProcessGroup::start(command, self.run_file("node"))?);
        Ok(())
    }

    /// A program in the environment of the node.
    fn command(&self, file: &str, program: &OsStr) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", LAUNCH, "testbed-launch"]);
        command.arg(self.run_file(file)).arg(program);
        self.environment_for(&mut command);
        command
    }

    fn environment_for(&self, command: &mut Command) {
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("RABBITMQ_") || text.starts_with("ERL_") {
                command.env_remove(&name);
            }
        }
        command
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
    }

    fn run_file(&self, name: &str) -> PathBuf {
        self.directory.join("run").join(name)
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("node.log")
    }

    fn node(&self) -> MutexGuard<'_, Option<ProcessGroup>> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match &mut *self.node() {
            Some(node) => node.signal(signal),
            None => bail!("the node is not running"),
        }
    }

    async fn ended(&self) -> Result<()> {
        let deadline = Instant::now() + STOP;
        while self.runs()? {
            if Instant::now() > deadline {
                bail!("the node has not stopped after {} s", STOP.as_secs());
            }
            sleep(Duration::from_millis(20)).await;
        }
        // Another process may get its number now.
        *self.node() = None;
        Ok(())
    }

    fn runs(&self) -> Result<bool> {
        match &mut *self.node() {
            Some(node) => node.runs(),
            None => Ok(false),
        }
    }

    fn has_stopped(&self) -> Result<bool> {
        match &*self.node() {
            Some(node) => node.has_stopped(),
            None => bail!("the node is not running"),
        }
    }
}

#[async_trait]
impl Machinery for NodeBroker {
    async fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.ended().await
    }

    async fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.ended().await
    }

    async fn start_again(&self) -> Result<()> {
        if self.runs()? {
            bail!("the node is running already");
        }
        self.start_node()
    }

    async fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let deadline = Instant::now() + PAUSE;
        while !self.has_stopped()? {
            if Instant::now() > deadline {
                bail!("the node has not paused after {} s", PAUSE.as_secs());
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    async fn is_running(&self) -> Result<bool> {
        self.runs()
    }

    async fn rabbitmqctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = tokio::process::Command::new(self.directory.join("rabbitmqctl"));
        let output = command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "rabbitmqctl {}: {}: {stdout}{}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(stdout)
    }

    /// What the node printed last, in one line. If it does not start, this is the reason.
    async fn last_words(&self) -> String {
        let log = fs::read(self.log_file()).unwrap_or_default();
        last_words(&String::from_utf8_lossy(&log))
    }
}

impl Drop for NodeBroker {
    fn drop(&mut self) {
        // The node ends before `epmd`, and both before the guard cleans up.
        drop(self.node().take());
        drop(self.epmd.take());
        drop(self.guard.take());
        // In case the guard could not do it. If this fails, too, nothing more can be done.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Whether a node did not start because another program uses one of its ports.
pub(super) fn is_port_taken(error: &anyhow::Error) -> bool {
    error.to_string().contains(PORT_TAKEN)
}

/// Writes the node's configuration and returns its environment.
fn configure(
    directory: &Path,
    name: &str,
    (ports, settings): (Ports, &Settings),
    epmd_port: u16,
    dist_port: u16,
) -> Result<Vec<(&'static str, OsString)>> {
    let file = |name: &str, text: &str| -> Result<OsString> {
        let path = directory.join(name);
        fs::write(&path, text)?;
        Ok(path.into())
    };
    let mut configuration = format!(
        "listeners.tcp.1 = 127.0.0.1:{}\n\
         management.tcp.ip = 127.0.0.1\n\
         management.tcp.port = {}\n",
        ports.amqp, ports.management
    );
    let mut plugins = "[rabbitmq_management].\n";
    if let (Some(port), Some(tls)) = (ports.tls, &settings.tls) {
        for (name, text) in tls.files() {
            file(name, text)?;
        }
        configuration += &tls.configuration(&format!("127.0.0.1:{port}"), &directory.display().to_string());
        plugins = ServerTls::PLUGINS;
    }
    configuration += &settings.configuration;
    let text = |text: String| OsString::from(text);
    let below = |name: &str| OsString::from(directory.join(name));
    fs::create_dir(directory.join("conf.d"))?;
    Ok(vec![
        ("HOME", directory.into()), // for the cookie with which `rabbitmqctl` logs in
        ("RABBITMQ_NODENAME", text(format!("{name}@localhost"))),
        ("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf", &configuration)?),
        ("RABBITMQ_CONFIG_FILES", below("conf.d")),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", file("advanced.config", "[].\n")?),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", file("plugins", plugins)?),
        ("RABBITMQ_CONF_ENV_FILE", text("/dev/null".to_owned())),
        ("RABBITMQ_MNESIA_BASE", below("data")),
        ("RABBITMQ_LOG_BASE", below("log")),
        ("RABBITMQ_LOGS", text("-".to_owned())),
        ("RABBITMQ_DIST_PORT", text(dist_port.to_string())),
        ("ERL_EPMD_PORT", text(epmd_port.to_string())),
        ("ERL_EPMD_ADDRESS", text("127.0.0.1".to_owned())),
        // Otherwise a helper of the node could start another `epmd`, even after this process has ended.
        ("ERL_AFLAGS", text("-start_epmd false".to_owned())),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", text("-kernel inet_dist_use_interface {127,0,0,1}".to_owned())),
        // Otherwise a node that is killed while it starts would leave a dump in the current directory.
        ("ERL_CRASH_DUMP_SECONDS", text("0".to_owned())),
        // The script then becomes the node instead of supervising it. So our signals go to one process.
        ("RUNNING_UNDER_SYSTEMD", text("true".to_owned())),
    ])
}

/// Writes a script that runs `rabbitmqctl` on this node, for us and for people.
fn write_rabbitmqctl(directory: &Path, commands: &Commands, environment: &[(&str, OsString)]) -> Result<()> {
    let quoted = |text: &OsStr| format!("'{}'", text.to_string_lossy().replace('\'', r"'\''"));
    let variables: String = environment.iter().map(|(name, value)| format!(" {name}={}", quoted(value))).collect();
    let program = quoted(commands.directory.join("rabbitmqctl").as_os_str());
    let script = format!("#!/bin/sh\nexec env -i PATH=\"$PATH\" LANG=C.UTF-8{variables} {program} \"$@\"\n");
    let path = directory.join("rabbitmqctl");
    fs::write(&path, script)?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o700))?)
}
