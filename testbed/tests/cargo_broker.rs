//! What `cargo broker` promises. Its kind of broker is the one that `TESTBED_BROKER` names, or the first
//! that can be had.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // Clippy knows tests by `#[test]`, not their helpers.

mod left;

use std::{net::TcpListener, time::Duration};

use testbed::{Finished, Program, Running};

fn broker(arguments: &[&str]) -> Running {
    Program::new(env!("CARGO_BIN_EXE_broker"))
        .args(arguments)
        // A broker takes its time, more so when others start, too.
        .deadline(Duration::from_secs(60))
        .spawn()
        .unwrap()
}

/// Waits until it is ready and gives back the URL it names.
async fn url(broker: &mut Running) -> String {
    loop {
        let line = broker.line().await.unwrap();
        if let Some(url) = line.trim().strip_prefix("export AMQP_URL=") {
            return url.to_owned();
        }
    }
}

#[tokio::test]
async fn it_names_the_next_free_port_and_ctrl_c_leaves_nothing() {
    // A port that is taken.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut broker = broker(&["--port", &port.to_string()]);
    let id = broker.id().unwrap();
    let url = url(&mut broker).await;
    let found: u16 = url.strip_prefix("amqp://guest:guest@localhost:").unwrap().parse().unwrap();
    assert!(found > port, "{found} is not after {port}");
    assert!(!left::of(id).is_empty());
    broker.interrupt().unwrap();
    let Finished { code, stdout, .. } = broker.wait().await.unwrap();
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains(&format!("--url {url}")), "{stdout}");
    assert!(stdout.contains("Management page: http://localhost:"), "{stdout}");
    assert_eq!(left::of(id), "");
}

#[tokio::test]
async fn nothing_is_left_when_it_is_killed() {
    let mut broker = broker(&["--port", "21000"]);
    let id = broker.id().unwrap();
    url(&mut broker).await;
    broker.kill().unwrap();
    broker.wait().await.unwrap();
    left::until_nothing(id).await;
}

#[tokio::test]
async fn nothing_is_left_when_it_is_killed_while_it_starts() {
    let mut broker = broker(&["--port", "22000"]);
    let id = broker.id().unwrap();
    broker.stderr_line_containing("starting").await.unwrap();
    broker.kill().unwrap();
    broker.wait().await.unwrap();
    left::until_nothing(id).await;
}

#[tokio::test]
async fn it_says_when_rabbitmq_has_ended_by_itself() {
    let mut broker = broker(&["--port", "23000"]);
    let id = broker.id().unwrap();
    url(&mut broker).await;
    left::kill_broker_of(id);
    let finished = broker.wait().await.unwrap();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("RabbitMQ has ended by itself"), "{}", finished.stderr);
    assert_eq!(left::of(id), "");
}

#[tokio::test]
async fn an_unknown_kind_of_broker_is_an_error() {
    let finished = Program::new(env!("CARGO_BIN_EXE_broker")).env("TESTBED_BROKER", "podman").run().await.unwrap();
    assert_eq!(finished.code, Some(1));
    assert_eq!(finished.stderr, "error: TESTBED_BROKER is `podman`; it can be `docker` or `node`, or be left out\n");
}
