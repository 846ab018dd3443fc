//! What the programs of chapter 1 do when something is wrong.

use anyhow::Result;
use serde_json::json;
use testbed::{
    Broker, Program, Running, lesson,
    stranger::{Letter, MOST_ARRAYS, arrays, short},
};

use crate::{RECEIVE, SEND, WAITING, publish, receive, send, waiting};

const SENT: &str = " [x] Sent 'Hello World!'";

#[tokio::test]
async fn a_bad_address_is_one_clear_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let (send, receive) = (send(&host), receive(&host));
    tokio::try_join!(lesson::refuses_bad_addresses(&host, &send), lesson::refuses_bad_addresses(&host, &receive))?;
    Ok(())
}

#[tokio::test]
async fn a_queue_that_was_declared_differently_is_one_clear_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let classic = json!({"durable": true, "arguments": {"x-queue-type": "classic"}});
    host.put("/api/queues/{vhost}/hello", classic).await?;
    for program in [send(&host), receive(&host)] {
        let end = program.run().await?;
        let line = lesson::one_clear_line(&end)?;
        for part in ["cannot declare queue `hello`", "406", "x-queue-type", "use another name, or delete the old one"] {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(end.stdout, "");
    }
    Ok(())
}

#[tokio::test]
async fn a_body_that_is_not_text_is_printed_all_the_same() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = waiting(receive(&host)).await?;
    // `H`, a byte that cannot be in UTF-8 text, `i`.
    lesson::publish_base64(&host, "", "hello", "SP9p").await?;
    lesson::publish_base64(&host, "", "hello", "").await?;
    publish(&host, "and on").await?;
    receiver.expect(" [x] Received H\u{fffd}i").await?;
    receiver.expect(" [x] Received ").await?;
    receiver.expect(" [x] Received and on").await
}

/// A terminal would execute control characters, and a line break would look like a line of the program.
#[tokio::test]
async fn control_characters_of_a_stranger_are_escaped() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = waiting(receive(&host)).await?;
    publish(&host, "red \u{1b}[31m\r\n [x] Received forged \u{202e}").await?;
    publish(&host, "हिन्दी Grüße 👩‍🚀").await?;
    receiver.expect(r" [x] Received red \u{1b}[31m\r\n [x] Received forged \u{202e}").await?;
    receiver.expect(" [x] Received हिन्दी Grüße 👩‍🚀").await
}

/// Such headers would overflow the stack and end the program, again after each start.
#[tokio::test]
async fn a_header_nested_as_deep_as_a_frame_allows_is_removed() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = waiting(receive(&host).arg("--properties")).await?;
    Letter::new(arrays(MOST_ARRAYS), "deep").post(&host, "hello").await?;
    // Celery sends such a header: an empty array.
    Letter::new([short("a"), b"A\0\0\0\0".to_vec()].concat(), "an empty array").post(&host, "hello").await?;
    receiver.expect(" [x] Received deep").await?;
    lines_until(&mut receiver, "headers: { }").await?;
    lines_until(&mut receiver, " [x] Received an empty array").await?;
    lines_until(&mut receiver, "headers: { a: [ ] }").await?;
    receiver.kill()?;
    let end = receiver.wait().await?;
    assert!(end.stderr.contains("header \"a\" of the message") && end.stderr.lines().count() == 1, "{end:?}");
    Ok(())
}

async fn lines_until(receiver: &mut Running, line: &str) -> Result<()> {
    while receiver.line().await? != line {}
    Ok(())
}

#[tokio::test]
async fn the_help_has_an_example_and_no_password() -> Result<()> {
    lesson::shows_help(&Program::new(SEND), "send").await?;
    lesson::shows_help(&Program::new(RECEIVE), "receive").await
}

#[tokio::test]
async fn an_argument_too_many_is_refused_with_the_usage() -> Result<()> {
    lesson::shows_usage(&Program::new(SEND).arg("something")).await?;
    lesson::shows_usage(&Program::new(SEND).arg("--something")).await?;
    lesson::shows_usage(&Program::new(RECEIVE).arg("something")).await
}

#[tokio::test]
async fn logs_go_to_standard_error_only() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    lesson::logs_to_stderr(&host, &send(&host), SENT).await?;
    lesson::logs_to_stderr(&host, &receive(&host), WAITING).await
}

#[tokio::test]
async fn the_option_for_the_address_is_stronger_than_the_environment() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let sent = send(&host).url("amqp://127.0.0.1:1").args(["--url", &host.url()]).run().await?;
    assert_eq!(sent.stdout, format!("{SENT}\n"));
    Ok(())
}

/// Tokio itself panics at the lowest limits, before our code runs.
#[cfg(unix)]
#[tokio::test]
async fn too_few_open_files_are_one_clear_line() -> Result<()> {
    let mut named = 0;
    for limit in 6..=9 {
        let limited = format!("ulimit -n {limit}; exec \"$0\"");
        let end = Program::new("/bin/sh").args(["-c", &limited, SEND]).url("amqp://localhost:1").run().await?;
        assert!(!end.stderr.contains("address space"), "{}", end.stderr);
        if end.stderr.contains("cannot start what the connection runs on") {
            let line = lesson::one_clear_line(&end)?;
            assert!(line.contains("Too many open files") && line.contains("ulimit -n 1024"), "{line}");
            named += 1;
        }
    }
    assert!(named > 0, "no limit was met there");
    Ok(())
}
