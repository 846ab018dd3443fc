//! What chapter 4 promises, shown by its programs on a real RabbitMQ.

mod bad_input;

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::json;
use testbed::{Broker, Program, Running, VirtualHost, lesson};

const WAITING: &str = " [*] Waiting for logs. To exit press CTRL+C";

const EMIT_LOG_DIRECT: &str = env!("CARGO_BIN_EXE_emit_log_direct");
const RECEIVE_LOGS_DIRECT: &str = env!("CARGO_BIN_EXE_receive_logs_direct");

fn emit_log_direct(host: &VirtualHost<'_>) -> Program {
    Program::new(EMIT_LOG_DIRECT).url(host.url())
}

fn receive_logs_direct(host: &VirtualHost<'_>, severities: &[&str]) -> Program {
    Program::new(RECEIVE_LOGS_DIRECT).url(host.url()).args(severities)
}

/// Publishes a log message. When this returns, every queue with a matching binding has it.
async fn emit(host: &VirtualHost<'_>, severity: &str, message: &str) -> Result<()> {
    let sent = emit_log_direct(host).args([severity, message]).run().await?;
    assert_eq!(sent.stdout, format!(" [x] Sent {severity}:{message}\n"));
    assert_eq!(sent.stderr, "");
    assert_eq!(sent.code, Some(0));
    Ok(())
}

/// Starts a receiver. When this returns, it is subscribed.
async fn receiver(host: &VirtualHost<'_>, severities: &[&str]) -> Result<Running> {
    let mut receiver = receive_logs_direct(host, severities).spawn()?;
    receiver.expect(WAITING).await?;
    Ok(receiver)
}

/// The bindings of the chapter's exchange: the queue and the binding key of each.
async fn bindings(host: &VirtualHost<'_>) -> Result<BTreeSet<(String, String)>> {
    let bindings = host.get("/api/exchanges/{vhost}/direct_logs/bindings/source").await?;
    let bindings = bindings.as_array().context("no list of bindings")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(bindings.iter().map(|binding| (text(&binding["destination"]), text(&binding["routing_key"]))).collect())
}

#[tokio::test]
async fn the_receiver_prints_severity_and_message() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["error"]).await?;
    emit(&host, "error", "the disk is full").await?;
    receiver.expect(" [x] error:the disk is full").await?;

    receiver.interrupt()?;
    let end = receiver.wait().await?;
    assert_eq!(end.stdout, format!("{WAITING}\n [x] error:the disk is full\n"));
    assert_eq!(end.stderr, "");
    Ok(())
}

#[tokio::test]
async fn without_arguments_it_is_info_and_hello_world() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["info"]).await?;
    let sent = emit_log_direct(&host).run().await?;
    assert_eq!(sent.stdout, " [x] Sent info:Hello World!\n");
    receiver.expect(" [x] info:Hello World!").await
}

#[tokio::test]
async fn one_argument_is_the_severity() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["error"]).await?;
    let sent = emit_log_direct(&host).arg("error").run().await?;
    assert_eq!(sent.stdout, " [x] Sent error:Hello World!\n");
    receiver.expect(" [x] error:Hello World!").await
}

#[tokio::test]
async fn the_words_after_the_severity_are_joined() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["error"]).await?;
    let sent = emit_log_direct(&host).args(["error", "Run.", "Run.", "Or it will explode."]).run().await?;
    assert_eq!(sent.stdout, " [x] Sent error:Run. Run. Or it will explode.\n");
    receiver.expect(" [x] error:Run. Run. Or it will explode.").await
}

#[tokio::test]
async fn a_receiver_gets_its_severities_and_no_others() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["warning", "error"]).await?;
    for (severity, message) in [("info", "1"), ("warning", "2"), ("debug", "3"), ("error", "4"), ("info", "5")] {
        emit(&host, severity, message).await?;
    }
    emit(&host, "error", "the end").await?;
    receiver.expect(" [x] warning:2").await?;
    receiver.expect(" [x] error:4").await?;
    receiver.expect(" [x] error:the end").await
}

#[tokio::test]
async fn a_severity_matches_only_exactly() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["warning", "a.*", "#"]).await?;
    for severity in ["Warning", "WARNING", "warn", "warnings", "warning.disk", " warning", "a.b", ""] {
        emit(&host, severity, "not for you").await?;
    }
    // In a direct exchange `*` and `#` are ordinary characters.
    for severity in ["a.*", "#", "warning"] {
        emit(&host, severity, "for you").await?;
        receiver.expect(&format!(" [x] {severity}:for you")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn several_severities_are_several_bindings_of_one_queue() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["info", "warning", "error"]).await?;
    let bindings = bindings(&host).await?;
    let queues: BTreeSet<_> = bindings.iter().map(|(queue, _)| queue).collect();
    let severities: Vec<_> = bindings.iter().map(|(_, key)| key).collect();
    assert_eq!(queues.len(), 1, "{bindings:?}");
    assert_eq!(severities, ["error", "info", "warning"]);
    for severity in ["error", "info", "warning"] {
        emit(&host, severity, "a message").await?;
        receiver.expect(&format!(" [x] {severity}:a message")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_same_severity_goes_to_several_receivers() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut to_screen = receiver(&host, &["info", "warning", "error"]).await?;
    let mut to_disk = receiver(&host, &["error"]).await?;
    emit(&host, "info", "a step").await?;
    emit(&host, "error", "a fall").await?;
    to_screen.expect(" [x] info:a step").await?;
    to_screen.expect(" [x] error:a fall").await?;
    to_disk.expect(" [x] error:a fall").await
}

#[tokio::test]
async fn a_severity_given_twice_is_received_once() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["error", "error"]).await?;
    emit(&host, "error", "once").await?;
    emit(&host, "error", "the end").await?;
    receiver.expect(" [x] error:once").await?;
    receiver.expect(" [x] error:the end").await
}

#[tokio::test]
async fn a_message_whose_severity_no_queue_is_bound_for_is_lost_without_an_error() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    emit(&host, "error", "to nobody").await?;
    let mut receiver = receiver(&host, &["error"]).await?;
    emit(&host, "error", "to somebody").await?;
    receiver.expect(" [x] error:to somebody").await
}

#[tokio::test]
async fn both_programs_declare_the_same_direct_exchange() -> Result<()> {
    let broker = Broker::shared().await?;
    let (by_sender, by_receiver) = (broker.virtual_host().await?, broker.virtual_host().await?);
    emit(&by_sender, "info", "a message").await?;
    let _receiver = receiver(&by_receiver, &["info"]).await?;
    for host in [by_sender, by_receiver] {
        let exchange = host.get("/api/exchanges/{vhost}/direct_logs").await?;
        assert_eq!(exchange["type"], "direct");
        assert_eq!(exchange["durable"], false);
        assert_eq!(exchange["auto_delete"], false);
        assert_eq!(exchange["arguments"], json!({}));
    }
    Ok(())
}

#[tokio::test]
async fn a_receiver_has_an_exclusive_queue_named_by_the_broker() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let _receiver = receiver(&host, &["info"]).await?;
    let (name, _) = bindings(&host).await?.pop_first().context("nothing is bound to the exchange")?;
    assert!(name.starts_with("amq.gen-"), "{name}");
    let queue = host.queue(&name).await?;
    assert_eq!(queue["exclusive"], true);
    assert_eq!(queue["durable"], false);
    Ok(())
}

#[tokio::test]
async fn a_receiver_that_loses_its_connection_binds_all_its_severities_again() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host, &["warning", "error"]).await?;
    let before = bindings(&host).await?;
    host.close_all_connections().await?;
    receiver.stderr_line_containing("the connection to RabbitMQ was lost").await?;
    // The program binds its new queue some time after it has reconnected, and prints nothing then.
    let renewed = async || bindings(&host).await.ok().filter(|now| now.len() == 2 && now.is_disjoint(&before));
    lesson::until("a new queue with two bindings", renewed).await?;
    emit(&host, "warning", "after the loss").await?;
    receiver.expect(" [x] warning:after the loss").await
}
