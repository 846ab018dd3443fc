//! What the programs of chapter 4 do when something is wrong.

use anyhow::Result;
use serde_json::json;
use testbed::{Broker, Program, lesson};

use crate::{EMIT_LOG_DIRECT, RECEIVE_LOGS_DIRECT, WAITING, emit, emit_log_direct, receive_logs_direct, receiver};

#[tokio::test]
async fn a_bad_address_is_one_clear_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let (emit, receive) = (Program::new(EMIT_LOG_DIRECT), Program::new(RECEIVE_LOGS_DIRECT).arg("info"));
    tokio::try_join!(lesson::refuses_bad_addresses(&host, &emit), lesson::refuses_bad_addresses(&host, &receive))?;
    Ok(())
}

#[tokio::test]
async fn without_a_severity_the_receiver_shows_its_usage_and_does_not_connect() -> Result<()> {
    lesson::shows_usage(&Program::new(RECEIVE_LOGS_DIRECT)).await
}

#[tokio::test]
async fn an_argument_it_does_not_know_is_refused_with_the_usage() -> Result<()> {
    lesson::shows_usage(&Program::new(RECEIVE_LOGS_DIRECT).args(["info", "--something"])).await?;
    lesson::shows_usage(&Program::new(EMIT_LOG_DIRECT).arg("--something")).await
}

#[tokio::test]
async fn an_exchange_that_was_declared_differently_is_one_clear_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    host.put("/api/exchanges/{vhost}/direct_logs", json!({"type": "fanout", "durable": false})).await?;
    for program in [emit_log_direct(&host), receive_logs_direct(&host, &["info"])] {
        let end = program.run().await?;
        let line = lesson::one_clear_line(&end)?;
        for part in
            ["cannot declare exchange `direct_logs`", "406", "'type'", "use another name, or delete the old one"]
        {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(end.stdout, "");
    }
    Ok(())
}

#[tokio::test]
async fn a_severity_may_have_255_bytes_and_no_more() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let (longest, too_long) = ("s".repeat(255), "s".repeat(256));
    let mut receiver = receiver(&host, &[&longest]).await?;
    emit(&host, &longest, "it fits").await?;
    receiver.expect(&format!(" [x] {longest}:it fits")).await?;
    for program in [emit_log_direct(&host).arg(&too_long), receive_logs_direct(&host, &[&too_long])] {
        let end = program.run().await?;
        let line = lesson::one_clear_line(&end)?;
        assert!(line.contains("256") && line.contains("255"), "{line}");
        assert_eq!(end.stdout, "");
    }
    Ok(())
}

#[tokio::test]
async fn a_message_that_is_not_text_does_not_stop_the_receiver() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["info"]).await?;
    // `H`, a byte that is not valid in UTF-8, and `i`.
    lesson::publish_base64(&host, "direct_logs", "info", "SP9p").await?;
    receiver.expect(" [x] info:H\u{fffd}i").await?;
    emit(&host, "info", "and on").await?;
    receiver.expect(" [x] info:and on").await
}

#[tokio::test]
async fn the_help_has_an_example_and_no_password() -> Result<()> {
    lesson::shows_help(&Program::new(EMIT_LOG_DIRECT), "emit_log_direct -- ").await?;
    lesson::shows_help(&Program::new(RECEIVE_LOGS_DIRECT), "receive_logs_direct -- ").await
}

#[tokio::test]
async fn logs_go_to_standard_error_only() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    lesson::logs_to_stderr(&host, &emit_log_direct(&host), " [x] Sent info:Hello World!").await?;
    lesson::logs_to_stderr(&host, &receive_logs_direct(&host, &["info"]), WAITING).await
}

/// A terminal would obey them.
#[tokio::test]
async fn control_characters_in_a_routing_key_are_escaped() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let key = "red\u{1b}[31m\nforged";
    let mut receiver = receiver(&host, &[key]).await?;
    lesson::publish(&host, "direct_logs", key, json!({}), "a log").await?;
    receiver.expect(r" [x] red\u{1b}[31m\nforged:a log").await
}
