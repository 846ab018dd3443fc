//! What the programs of chapter 5 do when something is wrong.

use anyhow::Result;
use serde_json::json;
use testbed::{Broker, Program, lesson};

use crate::{EMIT_LOG_TOPIC, RECEIVE_LOGS_TOPIC, WAITING, emit, emit_log_topic, receive_logs_topic, receiver};

#[tokio::test]
async fn a_bad_address_is_one_clear_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let (emit, receive) = (Program::new(EMIT_LOG_TOPIC), Program::new(RECEIVE_LOGS_TOPIC).arg("info"));
    tokio::try_join!(lesson::refuses_bad_addresses(&host, &emit), lesson::refuses_bad_addresses(&host, &receive))?;
    Ok(())
}

#[tokio::test]
async fn without_a_binding_key_the_receiver_shows_its_usage_and_does_not_connect() -> Result<()> {
    lesson::shows_usage(&Program::new(RECEIVE_LOGS_TOPIC)).await
}

#[tokio::test]
async fn an_argument_it_does_not_know_is_refused_with_the_usage() -> Result<()> {
    lesson::shows_usage(&Program::new(RECEIVE_LOGS_TOPIC).args(["info", "--something"])).await?;
    lesson::shows_usage(&Program::new(EMIT_LOG_TOPIC).arg("--something")).await
}

#[tokio::test]
async fn an_exchange_that_was_declared_differently_is_one_clear_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    host.put("/api/exchanges/{vhost}/topic_logs", json!({"type": "fanout", "durable": false})).await?;
    for program in [emit_log_topic(&host), receive_logs_topic(&host, &["info"])] {
        let end = program.run().await?;
        let line = lesson::one_clear_line(&end)?;
        for part in ["cannot declare exchange `topic_logs`", "406", "'type'", "use another name, or delete the old one"]
        {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(end.stdout, "");
    }
    Ok(())
}

#[tokio::test]
async fn a_key_may_have_255_bytes_and_no_more() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    // Bytes count, not characters: `ü` has two bytes.
    let longest = format!("{}.{}ü", "k".repeat(126), "w".repeat(126));
    let too_long = format!("{longest}s");
    let mut all = receiver(&host, &["*.*"]).await?;
    let mut exactly = receiver(&host, &[&longest]).await?;
    emit(&host, &longest, "it fits").await?;
    all.expect(&format!(" [x] {longest}:it fits")).await?;
    exactly.expect(&format!(" [x] {longest}:it fits")).await?;

    for program in [emit_log_topic(&host).arg(&too_long), receive_logs_topic(&host, &[&too_long])] {
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
    lesson::publish_base64(&host, "topic_logs", "info", "SP9p").await?;
    receiver.expect(" [x] info:H\u{fffd}i").await?;
    emit(&host, "info", "and on").await?;
    receiver.expect(" [x] info:and on").await
}

#[tokio::test]
async fn the_help_has_an_example_and_no_password() -> Result<()> {
    lesson::shows_help(&Program::new(EMIT_LOG_TOPIC), "emit_log_topic -- ").await?;
    lesson::shows_help(&Program::new(RECEIVE_LOGS_TOPIC), "receive_logs_topic -- ").await
}

#[tokio::test]
async fn logs_go_to_standard_error_only() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    lesson::logs_to_stderr(&host, &emit_log_topic(&host), " [x] Sent anonymous.info:Hello World!").await?;
    lesson::logs_to_stderr(&host, &receive_logs_topic(&host, &["info"]), WAITING).await
}
