//! A RabbitMQ in a container that we start.

#[cfg(unix)]
use std::process::{Command, Stdio};
use std::{env, time::Duration};

use anyhow::{Result, anyhow, bail};
use async_trait::async_trait;
use futures_util::StreamExt;
use testcontainers::bollard::{
    Docker,
    container::LogOutput,
    exec::StartExecResults,
    models::{EndpointSettings, ExecConfig},
    query_parameters as query,
};
use tokio::time::sleep;

use super::{
    Machinery, Ports,
    container::{AMQP, AMQPS, Container, NOT_FETCHED},
    daemon::Daemon,
    last_words, one_line,
    ports::random,
    probe,
    start::Settings,
};
#[cfg(unix)]
use crate::guard::Guard;

const DEFAULT_IMAGE: &str = "rabbitmq:4-management";

/// Removes the container `$1`. If this process ends before it says `settled`, the daemon may still be creating the
/// container. Then the script waits up to five seconds for the container to appear.
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

/// A container. It is removed when this value is dropped. When this process ends, the guard removes it. Without the `docker`
/// command, or on Windows, there is no guard: then the container remains after `kill -9`.
pub(super) struct DockerBroker {
    docker: Docker,
    name: String,
    host: String,
    _remover: Remover,
}

/// Removes the container when dropped.
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
        let daemon = Daemon::find().await?;
        let docker = daemon.docker.clone();
        let image = image();
        let name = format!("testbed-{}-{:08x}", std::process::id(), random() as u32);
        report(&match docker.inspect_image(&image).await {
            Ok(_) => format!("starting {image} in Docker"),
            Err(_) => format!("starting {image} in Docker: fetching the image first, which takes a while"),
        });
        let mut remover = Remover::arm(&daemon, &name);
        let started = Container { image: &image, name: &name, ports, settings }.start(&daemon).await;
        remover.settled();
        started.map_err(|error| explain(&image, &error))?;
        let host = host(&daemon, &name, ports).await;
        Ok(DockerBroker { docker, name, host, _remover: remover })
    }

    /// Where the published ports are: `localhost`, unless the daemon is on another machine.
    pub(super) fn host(&self) -> &str {
        &self.host
    }
}

#[async_trait]
impl Machinery for DockerBroker {
    async fn stop(&self) -> Result<()> {
        let options = query::StopContainerOptionsBuilder::new().t(30).build();
        Ok(self.docker.stop_container(&self.name, Some(options)).await?)
    }

    async fn kill(&self) -> Result<()> {
        let signal = query::KillContainerOptionsBuilder::new().signal("KILL").build();
        self.docker.kill_container(&self.name, Some(signal)).await?;
        // The daemon answers when it has sent the signal, but the ports are free only when the process has ended. The client
        // reports the exit code as an error. For us it is not one.
        drop(self.docker.wait_container(&self.name, None).next().await);
        Ok(())
    }

    async fn start_again(&self) -> Result<()> {
        Ok(self.docker.start_container(&self.name, None).await?)
    }

    async fn pause(&self) -> Result<()> {
        // On a busy machine the kernel may fail to freeze all processes ("unable to freeze").
        let mut attempts = 0..5;
        loop {
            match self.docker.pause_container(&self.name).await {
                Err(_) if attempts.next().is_some() => sleep(Duration::from_millis(200)).await,
                outcome => return Ok(outcome?),
            }
        }
    }

    async fn resume(&self) -> Result<()> {
        Ok(self.docker.unpause_container(&self.name).await?)
    }

    async fn is_running(&self) -> Result<bool> {
        let state = self.docker.inspect_container(&self.name, None).await?.state;
        Ok(state.and_then(|state| state.running).unwrap_or(false))
    }

    async fn own_address(&self) -> Option<(String, u16)> {
        Some((network(&self.docker, &self.name).await?.ip_address?, AMQP))
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

    async fn rabbitmqctl(&self, arguments: &[&str]) -> Result<String> {
        let command: Vec<&str> = ["rabbitmqctl"].iter().chain(arguments).copied().collect();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let code = exec(&self.docker, &self.name, &command, |part| match part {
            LogOutput::StdErr { message } => stderr.extend_from_slice(&message),
            other => stdout.extend_from_slice(&other.into_bytes()),
        })
        .await?;
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        if code == Some(0) {
            return Ok(stdout);
        }
        bail!(
            "rabbitmqctl {} in the container: exit code {code:?}: {stdout}{}",
            arguments.join(" "),
            String::from_utf8_lossy(&stderr)
        )
    }
}

/// The host at which programs find the published ports: this machine, or the daemon's. If this program runs in a container
/// that has the daemon's socket, it reaches the machine through the gateway of the new container's network.
async fn host(daemon: &Daemon, name: &str, ports: Ports) -> String {
    let here = "localhost".to_owned();
    if probe::version(&here, ports.amqp).await.is_ok() {
        return here;
    }
    match daemon.remote_host() {
        Some(host) => host,
        None => network(&daemon.docker, name).await.and_then(|network| network.gateway).unwrap_or(here),
    }
}

/// The container's settings in its network, if it has an address there.
async fn network(docker: &Docker, name: &str) -> Option<EndpointSettings> {
    let networks = docker.inspect_container(name, None).await.ok()?.network_settings?.networks?;
    networks.into_values().find(|network| network.ip_address.as_deref().is_some_and(|address| !address.is_empty()))
}

/// The name of the running container that publishes its AMQP port, with or without TLS, at this port.
pub(super) async fn container_at(docker: &Docker, port: u16) -> Result<Option<String>> {
    let containers = docker.list_containers(None::<query::ListContainersOptions>).await?;
    let container = containers.into_iter().find(|container| {
        container
            .ports
            .iter()
            .flatten()
            .any(|one| one.public_port == Some(port) && [AMQP, AMQPS].contains(&one.private_port))
    });
    let name = container.and_then(|container| container.names?.into_iter().next());
    Ok(name.map(|name| name.trim_start_matches('/').to_owned()))
}

/// Runs a command in a container. Calls `output` with what it prints, and returns its exit code.
pub(super) async fn exec(
    docker: &Docker,
    container: &str,
    command: &[&str],
    mut output: impl FnMut(LogOutput),
) -> Result<Option<i64>> {
    let run = ExecConfig {
        cmd: Some(command.iter().map(ToString::to_string).collect()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..ExecConfig::default()
    };
    let run = docker.create_exec(container, run).await?.id;
    if let StartExecResults::Attached { output: mut parts, .. } = docker.start_exec(&run, None).await? {
        while let Some(part) = parts.next().await {
            output(part?);
        }
    }
    Ok(docker.inspect_exec(&run).await?.exit_code)
}

fn image() -> String {
    env::var("RABBITMQ_IMAGE").ok().filter(|image| !image.is_empty()).unwrap_or_else(|| DEFAULT_IMAGE.to_owned())
}

/// What went wrong, in words for learners where we have them.
fn explain(image: &str, error: &anyhow::Error) -> anyhow::Error {
    let text = one_line(&format!("{error:#}"));
    let Some((_, reason)) = text.split_once(NOT_FETCHED) else {
        return anyhow!("{image} does not start: {text}");
    };
    let reason = reason.split_once("error: ").map_or(reason, |(_, reason)| reason);
    let advice = if reason.contains("toomanyrequests") || reason.contains("429") {
        "; Docker Hub limits how much one address may fetch: run `docker login`, or name a mirror in RABBITMQ_IMAGE, \
         as in `mirror.example/rabbitmq:4-management`"
    } else {
        ""
    };
    anyhow!("the image {image} is not here and cannot be fetched: {reason}{advice}")
}

/// Whether starting a container failed because another program uses the port.
pub(super) fn is_port_taken(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    text.contains("already allocated") || text.contains("already in use")
}

impl Remover {
    #[cfg(unix)]
    fn arm(daemon: &Daemon, name: &str) -> Remover {
        // The command must use the same daemon as we do, whichever context is active.
        let environment = [("DOCKER_HOST", daemon.address.clone())];
        let command_works = Command::new("docker")
            .args(["version", "--format", "{{.Server.Version}}"])
            .envs(environment.clone())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if command_works && let Ok(guard) = Guard::arm(REMOVER, &[name.into()], &environment) {
            return Remover::Guard(guard);
        }
        Remover::Directly { docker: daemon.docker.clone(), name: name.to_owned() }
    }

    #[cfg(not(unix))]
    fn arm(daemon: &Daemon, name: &str) -> Remover {
        Remover::Directly { docker: daemon.docker.clone(), name: name.to_owned() }
    }

    /// Tells the guard that the container now exists, or never will.
    fn settled(&mut self) {
        match self {
            #[cfg(unix)]
            // If the guard has ended, nothing can be done: then nothing removes the container.
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

/// Removes a container from a destructor. It needs a thread of its own, because this thread may run a runtime, or have none.
fn remove(docker: Docker, name: String) {
    let removal = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = runtime {
            let options = query::RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            // In a destructor a failure cannot be reported.
            drop(runtime.block_on(docker.remove_container(&name, Some(options))));
        }
    });
    drop(removal.join());
}
