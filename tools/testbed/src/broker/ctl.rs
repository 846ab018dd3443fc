//! The `rabbitmqctl` of the RabbitMQ that the lesson programs of this terminal use.

use std::{
    env,
    io::{Write, stderr, stdout},
    net::IpAddr,
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use testcontainers::bollard::container::LogOutput;
use tokio::process::Command;

#[cfg(unix)]
use super::node_directory;
use super::{
    DEFAULT_PORT,
    daemon::Daemon,
    docker::{container_at, exec},
    found::{self, Address},
};

/// Runs `rabbitmqctl` with these arguments where the RabbitMQ is that `AMQP_URL` names, or else the one at
/// `localhost:5672`: in its container, with the private node of a `cargo broker`, or with the one installed here. What it
/// prints appears as it comes; its exit code is given back.
///
/// # Errors
/// `AMQP_URL` cannot be read, nothing answers there, or the RabbitMQ there is out of reach: on another machine, or in a
/// container that does not publish its port.
pub async fn rabbitmqctl(arguments: &[String]) -> Result<ExitCode> {
    let url = env::var("AMQP_URL").ok().filter(|url| !url.is_empty());
    let named = url.is_some();
    let at = match found::answering(&url.unwrap_or_else(|| format!("amqp://localhost:{DEFAULT_PORT}"))).await {
        Ok((_, at)) => at,
        Err(error) if named => return Err(error),
        Err(error) => return Err(error.context(elsewhere())),
    };
    #[cfg(unix)]
    if at.is_here()
        && let Some(node) = node_directory::directories().into_iter().find(|node| node.port == at.port)
    {
        return spawn(Command::new(node.rabbitmqctl()).args(arguments)).await;
    }
    let daemon = Daemon::find().await;
    if let Ok(daemon) = &daemon
        && (at.is_here() || daemon.remote_host().is_some_and(|host| host == at.host))
        && let Some(container) = container_at(&daemon.docker, at.port).await?
    {
        return in_container(daemon, &container, arguments).await;
    }
    if at.is_here() && installed_one_listens_at(at.port).await {
        return spawn(Command::new("rabbitmqctl").args(arguments)).await;
    }
    bail!(
        "there is no way from here to the rabbitmqctl of the RabbitMQ at {at}: it works only where that runs, and is neither \
         in a container that publishes this port, nor of a `cargo broker`, nor installed here{}. Run it on that machine, or \
         use the management page, which does the same: usually port 15672 there",
        daemon.err().map(|error| format!(" (Docker: {error:#})")).unwrap_or_default()
    )
}

impl Address {
    /// Whether it is this machine, by one of the names that mean it.
    fn is_here(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address.is_unspecified())
    }
}

/// What may help a terminal in which `AMQP_URL` is not set, though a `cargo broker` has printed it.
fn elsewhere() -> String {
    #[cfg(unix)]
    if let Some(node) = node_directory::directories().into_iter().next() {
        let line = set_variable(&format!("amqp://guest:guest@localhost:{}", node.port));
        return format!("AMQP_URL is not set here, and a private node runs at port {}: `{line}`", node.port);
    }
    "AMQP_URL is not set here; if `cargo broker` has printed it, set it in this terminal, too".to_owned()
}

/// The command that sets `AMQP_URL` in the shell that this system's users have.
pub fn set_variable(url: &str) -> String {
    if cfg!(windows) { format!("$env:AMQP_URL = \"{url}\"") } else { format!("export AMQP_URL={url}") }
}

async fn spawn(command: &mut Command) -> Result<ExitCode> {
    let program = command.as_std().get_program().to_owned();
    let status = command.status().await.with_context(|| format!("cannot start {}", program.display()))?;
    Ok(exit_code(status.code().map(i64::from)))
}

async fn in_container(daemon: &Daemon, container: &str, arguments: &[String]) -> Result<ExitCode> {
    let command: Vec<&str> = ["rabbitmqctl"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    // When nobody reads any more there is nothing left to do about it.
    let code = exec(&daemon.docker, container, &command, |part| match part {
        LogOutput::StdErr { message } => drop(stderr().write_all(&message)),
        other => drop(stdout().write_all(&other.into_bytes())),
    });
    let code = code.await.with_context(|| format!("cannot run rabbitmqctl in the container {container}"))?;
    stdout().flush()?;
    Ok(exit_code(code))
}

fn exit_code(code: Option<i64>) -> ExitCode {
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Whether the RabbitMQ that is installed on this machine is the one at this port, as it says itself.
async fn installed_one_listens_at(port: u16) -> bool {
    let mut command = Command::new("rabbitmq-diagnostics");
    command.args(["--quiet", "--formatter", "json", "listeners"]).kill_on_drop(true);
    let Ok(output) = command.output().await else { return false };
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else { return false };
    answer["listeners"].as_array().is_some_and(|listeners| listeners.iter().any(|one| one["port"] == port))
}
