//! A RabbitMQ in a container of our own.

#[cfg(unix)]
use std::process::{Command, Stdio};
use std::{
    env,
    mem::ManuallyDrop,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, anyhow, bail};
use async_trait::async_trait;
use futures_util::StreamExt;
use testcontainers::{
    ContainerAsync, GenericImage, ImageExt, TestcontainersError,
    bollard::{
        Docker,
        container::LogOutput,
        exec::StartExecResults,
        models::{ExecConfig, PortBinding},
        query_parameters as query,
    },
    core::{IntoContainerPort, WaitFor, client::docker_client_instance},
    runners::AsyncRunner,
};
use tokio::time::{sleep, timeout};

use super::{Machinery, Ports, ServerTls, last_words, one_line, ports::random, probe, start::Settings};
#[cfg(unix)]
use crate::guard::Guard;

const DEFAULT_IMAGE: &str = "rabbitmq:4-management";
const AMQP: u16 = 5672;
const AMQPS: u16 = 5671;
const MANAGEMENT: u16 = 15672;

/// How long the broker may take from the start of its container until it is ready.
const STARTUP: Duration = Duration::from_secs(60);

/// A daemon on this machine answers within milliseconds, or not at all.
const DAEMON: Duration = Duration::from_secs(5);

/// Removes the container `$1`. Until it has been told `settled`, a request to create it may be
/// under way in the daemon although its sender is gone: then it waits for it for five seconds.
#[cfg(unix)]
const REMOVER: &str = r#"
settled=
while read -r line; do settled=$line; done
try=0
until [ "$settled" ] || [ $try -eq 10 ] || docker container inspect "$1"; do
  try=$((try + 1))
  sleep 0.5
done
try=0
while docker rm -fv "$1"; docker container inspect "$1" && [ $try -lt 30 ]; do
  try=$((try + 1))
  sleep 0.5
done
"#;

/// A container, removed when this is dropped, or when this process ends: by the guard. Without
/// the `docker` command, or on Windows, there is no guard; then `kill -9` leaves the container.
pub(super) struct DockerBroker {
    docker: Docker,
    /// Never dropped: its own destructor needs a runtime, and the container is removed anyway.
    container: ManuallyDrop<ContainerAsync<GenericImage>>,
    name: String,
    host: String,
    _remover: Remover,
}

/// Whoever removes the container when dropped.
enum Remover {
    #[cfg(unix)]
    Guard(Guard),
    Directly {
        docker: Docker,
        name: String,
    },
}

impl DockerBroker {
    /// Starts a container that offers the broker on `ports` of this machine.
    pub(super) async fn start(ports: Ports, settings: &Settings, report: &dyn Fn(&str)) -> Result<DockerBroker> {
        let docker = daemon().await?;
        let image = image();
        let name = format!("testbed-{}-{:08x}", std::process::id(), random() as u32);
        report(&match docker.inspect_image(&image).await {
            Ok(_) => format!("starting {image} in Docker"),
            Err(_) => format!("starting {image} in Docker: fetching the image first, which takes a while"),
        });
        let mut remover = Remover::arm(&docker, &name);
        let started = container(&image, &name, ports, settings).start().await;
        remover.settled();
        let container = ManuallyDrop::new(started.map_err(|error| explain(&image, &error))?);
        let host = host(&container, ports).await?;
        Ok(DockerBroker { docker, container, name, host, _remover: remover })
    }

    /// Where the published ports are: `localhost`, unless the daemon is on another machine.
    pub(super) fn host(&self) -> &str {
        &self.host
    }
}

#[async_trait]
impl Machinery for DockerBroker {
    async fn stop(&self) -> Result<()> {
        Ok(self.container.stop_with_timeout(Some(30)).await?)
    }

    async fn kill(&self) -> Result<()> {
        let signal = query::KillContainerOptionsBuilder::new().signal("KILL").build();
        self.docker.kill_container(&self.name, Some(signal)).await?;
        // That was answered when the signal had been sent. The ports are free when the process has
        // ended; the exit code that is told then is an error to the client, and none to us.
        drop(self.docker.wait_container(&self.name, None).next().await);
        Ok(())
    }

    async fn start_again(&self) -> Result<()> {
        Ok(self.container.start().await?)
    }

    async fn pause(&self) -> Result<()> {
        // On a busy machine the kernel may give up halfway ("unable to freeze").
        let mut attempts = 0..5;
        loop {
            match self.container.pause().await {
                Err(_) if attempts.next().is_some() => sleep(Duration::from_millis(200)).await,
                outcome => return Ok(outcome?),
            }
        }
    }

    async fn resume(&self) -> Result<()> {
        Ok(self.container.unpause().await?)
    }

    async fn is_running(&self) -> Result<bool> {
        Ok(self.container.is_running().await?)
    }

    async fn own_address(&self) -> Option<(String, u16)> {
        let address = self.container.get_bridge_ip_address().await.ok()?;
        Some((address.to_string(), AMQP))
    }

    async fn last_words(&self) -> String {
        let options = query::LogsOptionsBuilder::new().stdout(true).stderr(true).tail("100").build();
        let mut log = self.docker.logs(&self.name, Some(options));
        let mut text = String::new();
        while let Some(Ok(part)) = log.next().await {
            text.push_str(&part.to_string());
        }
        last_words(&text)
    }

    fn rabbitmqctl_command(&self) -> Option<String> {
        Some(format!("docker exec {} rabbitmqctl", self.name))
    }

    async fn rabbitmqctl(&self, arguments: &[&str]) -> Result<String> {
        let command = ["rabbitmqctl"].iter().chain(arguments);
        let run = ExecConfig {
            cmd: Some(command.map(ToString::to_string).collect()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..ExecConfig::default()
        };
        let run = self.docker.create_exec(&self.name, run).await?.id;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        if let StartExecResults::Attached { mut output, .. } = self.docker.start_exec(&run, None).await? {
            while let Some(part) = output.next().await {
                match part? {
                    LogOutput::StdErr { message } => stderr.extend_from_slice(&message),
                    other => stdout.extend_from_slice(&other.into_bytes()),
                }
            }
        }
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        match self.docker.inspect_exec(&run).await?.exit_code {
            Some(0) => Ok(stdout),
            code => bail!(
                "rabbitmqctl {} in the container: exit code {code:?}: {stdout}{}",
                arguments.join(" "),
                String::from_utf8_lossy(&stderr)
            ),
        }
    }
}

/// Where programs find the container's ports. Testcontainers knows; but out of a container it names
/// the address of the daemon's network, which is needless when the daemon is in there with us.
async fn host(container: &ContainerAsync<GenericImage>, ports: Ports) -> Result<String> {
    let here = "localhost";
    match probe::version(here, ports.amqp).await {
        Ok(_) => Ok(here.to_owned()),
        Err(_) => Ok(container.get_host().await?.to_string()),
    }
}

fn image() -> String {
    env::var("RABBITMQ_IMAGE").ok().filter(|image| !image.is_empty()).unwrap_or_else(|| DEFAULT_IMAGE.to_owned())
}

/// The container as it is to be created.
fn container(
    image: &str,
    name: &str,
    ports: Ports,
    settings: &Settings,
) -> testcontainers::ContainerRequest<GenericImage> {
    // In `registry:5000/rabbitmq` the colon is no tag's.
    let (repository, tag) = match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (image, "latest"),
    };
    // Only programs of this machine may reach a broker that lets in `guest`, except where they
    // come from elsewhere: with a daemon on another machine, or out of a container.
    let only_this_machine =
        !env::var("DOCKER_HOST").is_ok_and(|host| !host.starts_with("unix:")) && !Path::new("/.dockerenv").exists();
    let host_ip = only_this_machine.then(|| "127.0.0.1".to_owned());
    let mut container = GenericImage::new(repository, tag)
        .with_wait_for(WaitFor::message_on_either_std("Server startup complete"))
        .with_container_name(name)
        .with_startup_timeout(STARTUP)
        .with_mapped_port(ports.amqp, AMQP.tcp())
        .with_mapped_port(ports.management, MANAGEMENT.tcp())
        .with_host_config_modifier(move |config| {
            let bindings = config.port_bindings.iter_mut().flat_map(|map| map.values_mut());
            for PortBinding { host_ip: address, .. } in bindings.flatten().flatten() {
                address.clone_from(&host_ip);
            }
        });
    if !settings.configuration.is_empty() {
        let lines = settings.configuration.clone().into_bytes();
        container = container.with_copy_to("/etc/rabbitmq/conf.d/95-settings.conf", lines);
    }
    if let (Some(port), Some(tls)) = (ports.tls, &settings.tls) {
        container = container
            .with_mapped_port(port, AMQPS.tcp())
            .with_copy_to("/etc/rabbitmq/enabled_plugins", ServerTls::PLUGINS.as_bytes().to_vec())
            .with_copy_to(
                "/etc/rabbitmq/conf.d/90-tls.conf",
                tls.configuration(&AMQPS.to_string(), "/etc/rabbitmq").into_bytes(),
            );
        for (file, text) in tls.files() {
            container = container.with_copy_to(format!("/etc/rabbitmq/{file}"), text.as_bytes().to_vec());
        }
    }
    container
}

/// The client that testcontainers uses, once the daemon has answered.
async fn daemon() -> Result<Docker> {
    if env::var("DOCKER_TLS_VERIFY").is_ok_and(|on| on == "1") {
        bail!("DOCKER_TLS_VERIFY is set, and Docker over TLS is not supported here");
    }
    let at = address().unwrap_or_else(|| "its usual address".to_owned());
    // The last cause says it: no such file, permission denied.
    let silent = |error: anyhow::Error| anyhow!("no daemon answers at {at} ({})", error.root_cause());
    let docker = docker_client_instance().await.map_err(|error| silent(error.into()))?;
    match timeout(DAEMON, docker.ping()).await {
        Ok(Ok(_)) => Ok(docker),
        Ok(Err(error)) => Err(silent(error.into())),
        Err(_) => bail!("the daemon at {at} does not answer"),
    }
}

/// Where testcontainers looks for the daemon: `DOCKER_HOST`, else the first of these sockets that exists.
fn address() -> Option<String> {
    if let Ok(host) = env::var("DOCKER_HOST") {
        return Some(host);
    }
    let below = |variable: &str, path: &str| env::var_os(variable).map(|directory| PathBuf::from(directory).join(path));
    [
        Some(PathBuf::from("/var/run/docker.sock")),
        below("XDG_RUNTIME_DIR", ".docker/run/docker.sock"),
        below("HOME", ".docker/run/docker.sock"),
        below("HOME", ".docker/desktop/docker.sock"),
    ]
    .into_iter()
    .flatten()
    .find(|path| path.exists())
    .map(|path| format!("unix://{}", path.display()))
}

/// What went wrong, in the learner's words where we have them.
fn explain(image: &str, error: &TestcontainersError) -> anyhow::Error {
    let text = one_line(&error.to_string());
    match text.split_once("failed to pull the image") {
        Some((_, reason)) => {
            let reason = reason.split_once("error: ").map_or(reason, |(_, reason)| reason);
            anyhow!("the image {image} is not here and cannot be fetched: {reason}")
        }
        None => anyhow!("{image} does not start: {text}"),
    }
}

/// Whether starting a container failed because somebody else had taken the port.
pub(super) fn is_port_taken(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    text.contains("already allocated") || text.contains("already in use")
}

impl Remover {
    #[cfg(unix)]
    fn arm(docker: &Docker, name: &str) -> Remover {
        // The command must reach the daemon we use, whatever "context" it is set to.
        let environment = match (env::var_os("DOCKER_HOST"), address()) {
            (None, Some(address)) => vec![("DOCKER_HOST", address)],
            _ => Vec::new(),
        };
        let command_works = Command::new("docker")
            .args(["version", "--format", "{{.Server.Version}}"])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if command_works && let Ok(guard) = Guard::arm(REMOVER, &[name.into()], &environment) {
            return Remover::Guard(guard);
        }
        Remover::Directly { docker: docker.clone(), name: name.to_owned() }
    }

    #[cfg(not(unix))]
    fn arm(docker: &Docker, name: &str) -> Remover {
        Remover::Directly { docker: docker.clone(), name: name.to_owned() }
    }

    /// From now on the container exists, or it never will.
    fn settled(&mut self) {
        match self {
            #[cfg(unix)]
            // A guard that is gone cannot be told anything; the container is then removed by nobody else.
            Remover::Guard(guard) => drop(guard.tell("settled")),
            Remover::Directly { .. } => (),
        }
    }
}

impl Drop for Remover {
    fn drop(&mut self) {
        match self {
            #[cfg(unix)]
            Remover::Guard(_) => (),
            Remover::Directly { docker, name } => remove(docker.clone(), name.clone()),
        }
    }
}

/// Removes a container from a destructor: on a thread of its own, as this one may be running a
/// runtime, or have none.
fn remove(docker: Docker, name: String) {
    let removal = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = runtime {
            let options = query::RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            // Nobody is left to be told of a failure.
            drop(runtime.block_on(docker.remove_container(&name, Some(options))));
        }
    });
    drop(removal.join());
}
