//! What `cargo broker` promises. It starts the kind of broker that `TESTBED_BROKER` names, or the first kind that
//! works.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // Clippy knows tests by `#[test]`, not their helpers.

mod left;

use std::{net::TcpListener, time::Duration};

use testbed::{DEFAULT_PORT, Finished, Program, Running};

/// Each test has its own range of ports, because brokers that start at the same time find the same ports free.
fn broker(port: u16) -> Running {
    Program::new(env!("CARGO_BIN_EXE_broker"))
        .args(["--port", &port.to_string(), "--management-port", &port.wrapping_add(10_000).to_string()])
        // Starting takes longer when other brokers start, too.
        .deadline(Duration::from_secs(90))
        .spawn()
        .unwrap()
}

/// Waits for the line with this beginning and returns the rest of it.
async fn rest_of(broker: &mut Running, beginning: &str) -> String {
    loop {
        let line = broker.line().await.unwrap();
        if let Some(rest) = line.trim().strip_prefix(beginning) {
            return rest.to_owned();
        }
    }
}

/// Waits until the broker is ready and returns the URL that it prints.
async fn url(broker: &mut Running) -> String {
    rest_of(broker, "export AMQP_URL=").await
}

#[tokio::test]
async fn it_names_the_next_free_port_and_ctrl_c_leaves_nothing() {
    // A port that is in use.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut broker = broker(port);
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

fn ctl(arguments: &[&str]) -> Program {
    Program::new(env!("CARGO_BIN_EXE_ctl")).args(arguments).deadline(Duration::from_secs(60))
}

#[tokio::test]
async fn of_two_brokers_each_terminal_gets_its_own() {
    let mut first = broker(24000);
    let first_url = url(&mut first).await;
    let mut second = broker(24000);
    let second_url = url(&mut second).await;
    assert_ne!(first_url, second_url);
    let added = ctl(&["--quiet", "add_vhost", "mine"]).url(&first_url).run().await.unwrap();
    assert_eq!(added.code, Some(0), "{added:?}");
    for (url, vhosts) in [(&first_url, vec!["/", "mine"]), (&second_url, vec!["/"])] {
        let listed = ctl(&["list_vhosts", "--silent", "--no-table-headers"]).url(url).run().await.unwrap();
        let mut found: Vec<&str> = listed.stdout.lines().collect();
        found.sort_unstable();
        assert_eq!(found, vhosts, "{listed:?}");
    }
    // The output and the exit code are rabbitmqctl's.
    let unknown = ctl(&["list_queue"]).url(&second_url).run().await.unwrap();
    assert_eq!(unknown.code, Some(64), "{unknown:?}");
    assert!(unknown.stderr.contains("list_queues"), "{unknown:?}");
    for mut broker in [first, second] {
        broker.interrupt().unwrap();
        assert_eq!(broker.wait().await.unwrap().code, Some(0));
    }
}

#[tokio::test]
async fn it_warns_when_programs_without_amqp_url_go_elsewhere() {
    // If another program already uses the port, the test works with that one.
    let _other = TcpListener::bind("127.0.0.1:5672");
    let mut broker = broker(DEFAULT_PORT);
    let warning = broker.stderr_line_containing("warning:").await.unwrap();
    assert!(warning.contains("is at port 5672. In a terminal without AMQP_URL"), "{warning}");
    assert_ne!(url(&mut broker).await, "amqp://guest:guest@localhost:5672");
    broker.interrupt().unwrap();
    broker.wait().await.unwrap();
}

#[tokio::test]
async fn without_a_broker_within_reach_ctl_says_why() {
    // Nothing listens at port 1.
    let no_broker = ctl(&["status"]).url("amqp://ana:secret@localhost:1").run().await.unwrap();
    assert_eq!(no_broker.code, Some(1), "{no_broker:?}");
    assert!(no_broker.stderr.contains("no broker answers at localhost:1"), "{no_broker:?}");
    assert!(!no_broker.stderr.contains("secret"), "{no_broker:?}");
    // A RabbitMQ that is not in a container, not started by `cargo broker`, and not installed here.
    let broker = testbed::Broker::start().await.unwrap();
    let proxy = testbed::Proxy::start(broker.port()).await.unwrap();
    let far = format!("amqp://ana:secret@localhost:{}", proxy.port());
    let far = ctl(&["status"]).url(&far).run().await.unwrap();
    assert_eq!(far.code, Some(1), "{far:?}");
    assert!(
        far.stderr.contains("only on the machine that runs RabbitMQ") && far.stderr.contains("management page"),
        "{far:?}"
    );
    assert!(!far.stderr.contains("secret"), "{far:?}");
}

#[tokio::test]
async fn nothing_is_left_when_it_is_killed() {
    let mut broker = broker(21000);
    let id = broker.id().unwrap();
    url(&mut broker).await;
    broker.kill().unwrap();
    broker.wait().await.unwrap();
    left::until_nothing(id).await;
}

#[tokio::test]
async fn nothing_is_left_when_it_is_killed_while_it_starts() {
    let mut broker = broker(22000);
    let id = broker.id().unwrap();
    broker.stderr_line_containing("starting").await.unwrap();
    broker.kill().unwrap();
    broker.wait().await.unwrap();
    left::until_nothing(id).await;
}

#[tokio::test]
async fn it_says_when_rabbitmq_has_ended_by_itself() {
    let mut broker = broker(23000);
    let id = broker.id().unwrap();
    url(&mut broker).await;
    left::kill_broker_of(id);
    let finished = broker.wait().await.unwrap();
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("RabbitMQ has stopped by itself"), "{}", finished.stderr);
    assert_eq!(left::of(id), "");
}

#[tokio::test]
async fn an_unknown_kind_of_broker_is_an_error() {
    let finished = Program::new(env!("CARGO_BIN_EXE_broker")).env("TESTBED_BROKER", "podman").run().await.unwrap();
    assert_eq!(finished.code, Some(1));
    assert_eq!(finished.stderr, "error: TESTBED_BROKER is `podman`; it can be `docker` or `node`, or be left out\n");
}
