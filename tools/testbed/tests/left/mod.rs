//! Finds what is left of the brokers that a process has started.

use std::{process::Command, time::Duration};

use tokio::time::{Instant, sleep};

/// The containers, processes and directories of the process with this id, one in each line.
pub fn of(owner: u32) -> String {
    shell(&format!(
        "command -v ps >/dev/null || {{ echo 'ps is not installed: processes cannot be looked for'; exit; }}; \
         docker ps -a --format '{{{{.Names}}}}' 2>/dev/null | grep '^[t]estbed-{owner}-'; \
         ps -eo pid,args | grep '[t]estbed-{owner}-'; \
         ls -d \"${{TMPDIR:-/tmp}}\"/[t]estbed-{owner}-* 2>/dev/null"
    ))
}

/// Kills the container or the node of the process with this id.
#[allow(dead_code)] // not by every test that includes this
pub fn kill_broker_of(owner: u32) {
    shell(&format!(
        "docker kill $(docker ps -q --filter name=testbed-{owner}-); \
         kill -KILL $(ps -eo pid,args | grep '[b]eam.*testbed-{owner}-' | cut -c1-8)"
    ));
}

/// Removes the container of the process with this id, if it exists.
#[allow(dead_code)] // not by every test that includes this
pub fn remove_container_of(owner: u32) {
    shell(&format!("docker rm -fv $(docker ps -aq --filter name=testbed-{owner}-)"));
}

/// Waits until nothing is left. No event reports this to another process, so it looks again and again.
#[allow(dead_code)] // not by every test that includes this
pub async fn until_nothing(owner: u32) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !of(owner).is_empty() {
        assert!(Instant::now() < deadline, "left behind:\n{}", of(owner));
        sleep(Duration::from_millis(50)).await;
    }
}

fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}
