//! Runs `rabbitmqctl` on the RabbitMQ that the lesson programs of this terminal use.

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

/// Runs `rabbitmqctl` with these arguments on the RabbitMQ that `AMQP_URL` names, or on the one at `localhost:5672`. It runs
/// in that RabbitMQ's container, in the private node of a `cargo broker`, or in the RabbitMQ that is installed here. Its
/// output is shown as it comes. Returns its exit code.
///
/// # Errors
/// `AMQP_URL` cannot be read, nothing answers there, or the RabbitMQ there cannot be controlled from here: it runs on another
/// machine, or in a container that does not publish its port.
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
        "cannot run rabbitmqctl on the RabbitMQ at {at}. It works only on the machine that runs RabbitMQ, and this RabbitMQ \
         is not in a container that publishes this port, was not started by `cargo broker`, and is not installed here{}. \
         Run rabbitmqctl on that machine, or use its management page, usually at port 15672",
        daemon.err().map(|error| format!(" (Docker: {error:#})")).unwrap_or_default()
    )
}

impl Address {
    /// Whether it is this machine, by one of its local names.
    fn is_here(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address.is_unspecified())
    }
}

/// Advice for a terminal in which `AMQP_URL` is not set although `cargo broker` has printed it.
fn elsewhere() -> String {
    #[cfg(unix)]
    if let Some(node) = node_directory::directories().into_iter().next() {
        let line = set_variable(&format!("amqp://guest:guest@localhost:{}", node.port));
        return format!(
            "AMQP_URL is not set in this terminal. A private node runs at port {}; to use it, run `{line}`",
            node.port
        );
    }
    "AMQP_URL is not set in this terminal; if `cargo broker` has printed it, set it here, too".to_owned()
}

/// The command that sets `AMQP_URL` in the usual shell of this system.
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
    // If our output has been closed, there is nothing to do about it.
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

/// Asks the RabbitMQ that is installed on this machine whether it listens at this port.
async fn installed_one_listens_at(port: u16) -> bool {
    let mut command = Command::new("rabbitmq-diagnostics");
    command.args(["--quiet", "--formatter", "json", "listeners"]).kill_on_drop(true);
    let Ok(output) = command.output().await else { return false };
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else { return false };
    answer["listeners"].as_array().is_some_and(|listeners| listeners.iter().any(|one| one["port"] == port))
}
