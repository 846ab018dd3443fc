//! `cargo tour` as a process, on a real RabbitMQ.
#![allow(clippy::unwrap_used)] // Clippy knows tests by `#[test]`, not their helpers.

use std::time::Duration;
#[cfg(unix)]
use std::{fs::File, io::Read, process::Stdio};

use serde_json::json;
use testbed::{Broker, Finished, Program, VirtualHost, lesson};
use tokio::{net::TcpStream, time::sleep};
#[cfg(unix)]
use tokio::{task::spawn_blocking, time::timeout};

const TITLES: [&str; 6] = ["Hello World!", "Work Queues", "Publish/Subscribe", "Routing", "Topics", "RPC"];

/// The tour, with time to build the lesson programs first.
fn tour(arguments: &[&str]) -> Program {
    Program::new(env!("CARGO_BIN_EXE_tour")).args(arguments).deadline(Duration::from_secs(600))
}

/// The line about the chapter with this number in the summary. It begins with the mark.
fn verdict(finished: &Finished, number: usize) -> &str {
    let (_, summary) = finished.stdout.rsplit_once("\n━━━━").unwrap_or_else(|| panic!("no summary: {finished:?}"));
    let of = |line: &&str| line.trim_start_matches([' ', '✓', '✗']).starts_with(&number.to_string());
    summary.lines().find(of).unwrap_or_default().trim()
}

/// The output in one line. The tour breaks it into lines of 80 characters.
fn unbroken(finished: &Finished) -> String {
    finished.stdout.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn virtual_host() -> VirtualHost<'static> {
    Broker::shared().await.unwrap().virtual_host().await.unwrap()
}

#[tokio::test]
async fn it_plays_all_chapters_on_a_broker_of_its_own_and_leaves_nothing() {
    let finished = tour(&[]).run().await.unwrap();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    for (number, title) in (1..).zip(TITLES) {
        assert!(verdict(&finished, number).starts_with(&format!("✓ {number}  {title}")), "{}", finished.stdout);
    }
    for step in ["Building the lesson programs", "Looking for a RabbitMQ"] {
        assert!(finished.stderr.contains(step), "{}", finished.stderr);
    }
    let port = finished.stdout.split_once("at localhost:").unwrap().1.split_once(',').unwrap().0;
    let connected = TcpStream::connect(("localhost", port.parse().unwrap())).await;
    assert!(connected.is_err(), "RabbitMQ is still there on port {port}");
}

#[tokio::test]
async fn without_a_terminal_it_has_80_columns_and_no_colours() {
    let host = virtual_host().await;
    let finished = tour(&["--lesson", "routing", "--lesson", "topics,rpc"]).url(host.url()).run().await.unwrap();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(!finished.stdout.contains('\x1b') && !finished.stderr.contains('\x1b'), "{finished:?}");
    for line in finished.stdout.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert!(!format!("{finished:?}").contains(host.password()), "{finished:?}");
}

/// On a real terminal of 60 columns, as with large letters on a projector.
#[cfg(unix)]
#[tokio::test]
async fn it_fits_into_a_narrow_terminal() {
    let host = virtual_host().await;
    let shown = shown_on_a_terminal(60, &["--lesson", "pub_sub,routing,topics,rpc"], &host.url()).await;
    assert!(shown.contains("cargo run --bin receive_logs_direct -- info warning \\"), "{shown}");
    assert!(shown.contains("✓ 6  RPC"), "{shown}");
    for line in shown.lines() {
        assert!(line.chars().count() <= 60, "{line}");
    }
}

/// What the tour prints on a terminal of this width, without colours.
#[cfg(unix)]
async fn shown_on_a_terminal(columns: u16, arguments: &[&str], url: &str) -> String {
    let size = nix::pty::Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = nix::pty::openpty(&size, None).unwrap();
    let mut tour = tokio::process::Command::new(env!("CARGO_BIN_EXE_tour"))
        .args(arguments)
        .env("AMQP_URL", url)
        .stdin(Stdio::null())
        .stdout(terminal.slave)
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let reading = spawn_blocking(move || {
        let mut shown = Vec::new();
        // When the other side of a terminal is closed, Linux reports an error.
        drop(File::from(terminal.master).read_to_end(&mut shown));
        anstream::adapter::strip_str(&String::from_utf8_lossy(&shown)).to_string()
    });
    assert!(timeout(Duration::from_secs(600), tour.wait()).await.unwrap().unwrap().success());
    reading.await.unwrap()
}

#[tokio::test]
async fn it_plays_one_lesson_and_no_other() {
    let host = virtual_host().await;
    let finished = tour(&["--lesson", "topics"]).url(host.url()).run().await.unwrap();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(verdict(&finished, 5).starts_with("✓ 5  Topics"), "{}", finished.stdout);
    assert!(!finished.stdout.contains("Routing"), "{}", finished.stdout);
    let rows = finished.stdout.lines().filter(|line| line.contains("lazy.pink.rabbit") && line.contains('●'));
    assert_eq!(
        rows.map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>(),
        ["lazy.pink.rabbit · ● one copy"]
    );
}

/// The tour ends the last worker before it can acknowledge. The task must not disturb the next tour.
#[tokio::test]
async fn it_can_be_played_again_on_the_same_broker() {
    let host = virtual_host().await;
    for _ in 0..2 {
        let finished = tour(&["--lesson", "work_queues"]).url(host.url()).run().await.unwrap();
        assert_eq!(finished.code, Some(0), "{finished:?}");
    }
}

#[tokio::test]
async fn an_unknown_lesson_is_refused_with_those_there_are() {
    let finished = tour(&["--lesson", "topic"]).run().await.unwrap();
    assert_eq!(finished.code, Some(2), "{finished:?}");
    for name in ["hello_world", "work_queues", "pub_sub", "routing", "topics", "rpc"] {
        assert!(finished.stderr.contains(name), "{}", finished.stderr);
    }
}

#[tokio::test]
async fn pausing_needs_a_terminal() {
    let finished = tour(&["--pause"]).run().await.unwrap();
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains("--pause waits for Enter, but standard input is not a terminal"), "{finished:?}");
}

/// The exchange of chapter 5 exists already, with another type. So the broker refuses the programs' declaration.
#[tokio::test]
async fn a_program_that_ends_too_early_is_named_with_its_reason_and_the_next_chapter_is_played() {
    let host = virtual_host().await;
    host.put("/api/exchanges/{vhost}/topic_logs", json!({"type": "fanout", "durable": false})).await.unwrap();
    let finished = tour(&["--lesson", "topics,rpc"]).url(host.url()).run().await.unwrap();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(verdict(&finished, 5).starts_with("✗ 5  Topics"), "{}", finished.stdout);
    assert!(verdict(&finished, 6).starts_with("✓ 6  RPC"), "{}", finished.stdout);
    let text = unbroken(&finished);
    for part in
        ["expected C1 │ [*] Waiting for logs.", "seen C1 has ended with exit code 1: Error: ", "PRECONDITION_FAILED"]
    {
        assert!(text.contains(part), "{part} is not in {}", finished.stdout);
    }
}

/// Another program sends logs all the time.
#[tokio::test]
async fn an_unexpected_line_is_named() {
    let host = virtual_host().await;
    let stray = async {
        loop {
            // This fails as long as the exchange does not exist.
            drop(lesson::publish(&host, "direct_logs", "error", json!({}), "stray").await);
            sleep(Duration::from_millis(5)).await;
        }
    };
    let finished = tokio::select! {
        finished = tour(&["--lesson", "routing"]).url(host.url()).run() => finished.unwrap(),
        () = stray => unreachable!(),
    };
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(verdict(&finished, 4).starts_with("✗ 4  Routing"), "{}", finished.stdout);
    let seen = finished.stdout.lines().filter(|line| line.contains("  seen  "));
    assert!(seen.clone().count() == 2 && seen.clone().all(|line| line.ends_with("[x] error:stray")), "{finished:?}");
}

#[tokio::test]
async fn messages_from_before_are_named_with_what_to_do() {
    let host = virtual_host().await;
    let queue = json!({"durable": true, "arguments": {"x-queue-type": "quorum"}});
    host.put("/api/queues/{vhost}/hello", queue).await.unwrap();
    lesson::publish(&host, "", "hello", json!({}), "from before").await.unwrap();
    let finished = tour(&["--lesson", "hello_world"]).url(host.url()).run().await.unwrap();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let text = unbroken(&finished);
    for part in [
        "expected the queue `hello` is empty and has no consumers",
        "seen it has 1 message and 0 consumers",
        "`cargo ctl purge_queue hello`",
        "unset AMQP_URL",
    ] {
        assert!(text.contains(part), "{part} is not in {}", finished.stdout);
    }
}

#[tokio::test]
async fn a_refused_login_is_reported_once_and_without_the_password() {
    let host = virtual_host().await;
    let url = host.url().replace(host.password(), "marked-passw0rd");
    let finished = tour(&[]).url(url).run().await.unwrap();
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""), "{finished:?}");
    assert!(finished.stderr.contains("check user, password and virtual host in AMQP_URL"), "{}", finished.stderr);
    assert!(!finished.stderr.contains("marked-passw0rd"), "{}", finished.stderr);
}

#[tokio::test]
async fn without_a_broker_it_says_so() {
    let finished = tour(&[]).url("amqp://guest:marked-passw0rd@127.0.0.1:1").run().await.unwrap();
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""), "{finished:?}");
    assert!(finished.stderr.contains("no broker answers at 127.0.0.1:1"), "{}", finished.stderr);
    assert!(!finished.stderr.contains("marked-passw0rd"), "{}", finished.stderr);
}

#[cfg(unix)]
#[tokio::test]
async fn ctrl_c_ends_it_at_once_with_its_programs() {
    let host = virtual_host().await;
    let mut running = tour(&["--lesson", "work_queues"]).url(host.url()).spawn().unwrap();
    while !running.line().await.unwrap().contains("worker 2 │  [x] Received Second...") {}
    assert!(!host.connections().await.unwrap().is_empty());
    running.interrupt().unwrap();
    let finished = running.wait().await.unwrap();
    assert_eq!(finished.code, Some(130), "{finished:?}");
    assert!(finished.stderr.ends_with("Stopped.\n"), "{}", finished.stderr);
    lesson::until("the programs to be gone", || async { host.connections().await.ok()?.is_empty().then_some(()) })
        .await
        .unwrap();
}
