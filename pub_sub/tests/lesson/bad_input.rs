//! What the programs of chapter 3 do when something is wrong.

use anyhow::Result;
use serde_json::json;
use testbed::{Broker, Program, lesson};

use crate::{EMIT_LOG, RECEIVE_LOGS, WAITING, emit, emit_log, receiver};

#[tokio::test]
async fn a_bad_address_is_one_clear_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let (emit_log, receive_logs) = (Program::new(EMIT_LOG), Program::new(RECEIVE_LOGS));
    tokio::try_join!(
        lesson::refuses_bad_addresses(&host, &emit_log),
        lesson::refuses_bad_addresses(&host, &receive_logs)
    )?;
    Ok(())
}

#[tokio::test]
async fn an_exchange_that_was_declared_differently_is_one_clear_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    host.put("/api/exchanges/{vhost}/logs", json!({"type": "topic", "durable": false})).await?;
    for program in [emit_log(&host), Program::new(RECEIVE_LOGS).url(host.url())] {
        let end = program.run().await?;
        let line = lesson::one_clear_line(&end)?;
        for part in ["cannot declare exchange `logs`", "406", "'type'", "use another name, or delete the old one"] {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(end.stdout, "");
    }
    Ok(())
}

#[tokio::test]
async fn a_message_that_is_not_text_does_not_stop_the_receiver() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host).await?;
    // `H`, a byte that cannot be in UTF-8 text, `i`.
    lesson::publish_base64(&host, "logs", "", "SP9p").await?;
    receiver.expect(" [x] H\u{fffd}i").await?;
    emit(&host, "and on").await?;
    receiver.expect(" [x] and on").await
}

#[tokio::test]
async fn the_help_has_an_example_and_no_password() -> Result<()> {
    lesson::shows_help(&Program::new(EMIT_LOG), "emit_log -- ").await?;
    lesson::shows_help(&Program::new(RECEIVE_LOGS), "receive_logs").await
}

#[tokio::test]
async fn an_argument_it_does_not_know_is_refused_with_the_usage() -> Result<()> {
    lesson::shows_usage(&Program::new(EMIT_LOG).arg("--something")).await?;
    lesson::shows_usage(&Program::new(RECEIVE_LOGS).arg("something")).await
}

#[tokio::test]
async fn logs_go_to_standard_error_only() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    lesson::logs_to_stderr(&host, &emit_log(&host), " [x] Sent info: Hello World!").await?;
    lesson::logs_to_stderr(&host, &Program::new(RECEIVE_LOGS), WAITING).await
}
