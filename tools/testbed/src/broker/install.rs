//! Installs the distribution's own `rabbitmq-server` with its package manager, if nothing else works.

use std::{env, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;
use tokio::{process::Command, time::timeout};

use super::one_line;

/// Long enough for a slow mirror. Without a limit, a package manager that waits for something would wait forever.
const PATIENCE: Duration = Duration::from_secs(600);

/// A package manager, the command that we advise people to type, and the script that we run.
struct Manager {
    command: &'static str,
    advice: &'static str,
    script: Option<&'static str>,
}

const MANAGERS: [Manager; 4] = [
    Manager { command: "apt-get", advice: "sudo apt-get install rabbitmq-server", script: Some(APT) },
    Manager {
        command: "dnf",
        advice: "sudo dnf install rabbitmq-server",
        script: Some("dnf install --assumeyes rabbitmq-server"),
    },
    Manager { command: "apk", advice: "doas apk add rabbitmq-server", script: Some("apk add rabbitmq-server") },
    Manager { command: "brew", advice: "brew install rabbitmq", script: None },
];

/// Debian starts a service as soon as it is installed, and at every later boot. A learner has asked for neither. A script
/// named `policy-rc.d` decides which services may start. If the machine already has such a script and it allows the start,
/// we stop the service afterwards.
const APT: &str = r#"
policy=/usr/sbin/policy-rc.d
started=
if [ -e $policy ]; then
  $policy rabbitmq-server start
  [ $? -eq 101 ] || started=maybe
else
  trap 'rm -f $policy' EXIT
  trap 'exit 1' INT TERM HUP
  printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy || exit
fi
export DEBIAN_FRONTEND=noninteractive
apt() { apt-get -o DPkg::Lock::Timeout=120 -o Acquire::Retries=1 --yes "$@"; }
apt install --no-install-recommends rabbitmq-server || {
  apt update && apt install --no-install-recommends rabbitmq-server
} || exit
[ -z "$started" ] || service rabbitmq-server stop
update-rc.d rabbitmq-server disable
exit 0
"#;

/// Installs the package, if this user may. Otherwise the error says with which command to install it. The package manager
/// always runs to its end, even if this process ends first, because killing it can leave a broken system.
pub(super) async fn rabbitmq_server(report: &dyn Fn(&str)) -> Result<()> {
    let manager = MANAGERS
        .iter()
        .find(|manager| is_on_path(manager.command))
        .context("this system has none of the package managers apt-get, dnf, apk and brew")?;
    let Some(script) = manager.script.filter(|_| geteuid().is_root()) else {
        bail!("install it with `{}`", manager.advice);
    };
    report(&format!("installing rabbitmq-server with {}, without starting its service", manager.command));
    let install = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).output();
    let Ok(output) = timeout(PATIENCE, install).await else {
        let seconds = PATIENCE.as_secs();
        bail!("{} has not finished after {seconds} s", manager.command);
    };
    let output = output.context("cannot start `sh`")?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("{} cannot install it: {}", manager.command, one_line(&reason));
    }
    Ok(())
}

fn is_on_path(command: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|below| below.join(command).is_file()))
}
