//! What chapter 3 promises, shown by its programs on a real RabbitMQ.

mod bad_input;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testbed::{Broker, Program, Running, VirtualHost, lesson};

const WAITING: &str = " [*] Waiting for logs. To exit press CTRL+C";

const EMIT_LOG: &str = env!("CARGO_BIN_EXE_emit_log");
const RECEIVE_LOGS: &str = env!("CARGO_BIN_EXE_receive_logs");

fn emit_log(host: &VirtualHost<'_>) -> Program {
    Program::new(EMIT_LOG).url(host.url())
}

/// Publishes a log message. When this returns, it is in the queue of every receiver.
async fn emit(host: &VirtualHost<'_>, message: &str) -> Result<()> {
    let sent = emit_log(host).arg(message).run().await?;
    assert_eq!(sent.stdout, format!(" [x] Sent {message}\n"));
    assert_eq!(sent.stderr, "");
    assert_eq!(sent.code, Some(0));
    Ok(())
}

/// Starts a receiver. When this returns, it has subscribed.
async fn receiver(host: &VirtualHost<'_>) -> Result<Running> {
    let mut receiver = Program::new(RECEIVE_LOGS).url(host.url()).spawn()?;
    receiver.expect(WAITING).await?;
    Ok(receiver)
}

/// The queue of the only receiver. The broker lists it by its binding.
async fn its_queue(host: &VirtualHost<'_>) -> Result<Option<String>> {
    let bindings = host.get("/api/exchanges/{vhost}/logs/bindings/source").await?;
    Ok(bindings[0]["destination"].as_str().map(str::to_owned))
}

#[tokio::test]
async fn the_receiver_prints_what_was_sent() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host).await?;
    emit(&host, "the disk is full").await?;
    receiver.expect(" [x] the disk is full").await?;

    receiver.interrupt()?;
    let end = receiver.wait().await?;
    assert_eq!(end.stdout, format!("{WAITING}\n [x] the disk is full\n"));
    assert_eq!(end.stderr, "");
    Ok(())
}

#[tokio::test]
async fn without_words_the_message_is_info_hello_world() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host).await?;
    let sent = emit_log(&host).run().await?;
    assert_eq!(sent.stdout, " [x] Sent info: Hello World!\n");
    receiver.expect(" [x] info: Hello World!").await
}

#[tokio::test]
async fn words_are_joined() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host).await?;
    let sent = emit_log(&host).args(["warning:", "the disk", "is full"]).run().await?;
    assert_eq!(sent.stdout, " [x] Sent warning: the disk is full\n");
    receiver.expect(" [x] warning: the disk is full").await
}

#[tokio::test]
async fn one_receiver_gets_every_message() -> Result<()> {
    each_of(1).await
}

#[tokio::test]
async fn both_of_two_receivers_get_every_message() -> Result<()> {
    each_of(2).await
}

#[tokio::test]
async fn each_of_five_receivers_gets_every_message() -> Result<()> {
    each_of(5).await
}

/// Each of this number of receivers gets every message once, in order.
async fn each_of(count: usize) -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receivers = Vec::new();
    for _ in 0..count {
        receivers.push(receiver(&host).await?);
    }
    for message in ["first", "second", "third"] {
        emit(&host, message).await?;
    }
    for receiver in &mut receivers {
        for message in ["first", "second", "third"] {
            receiver.expect(&format!(" [x] {message}")).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_late_receiver_gets_nothing_of_what_was_before() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut early = receiver(&host).await?;
    emit(&host, "before").await?;
    early.expect(" [x] before").await?;
    let mut late = receiver(&host).await?;
    emit(&host, "after").await?;
    late.expect(" [x] after").await?;
    early.expect(" [x] after").await
}

#[tokio::test]
async fn a_message_without_a_receiver_is_lost_and_is_not_an_error() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    emit(&host, "without a receiver").await?;
    let mut receiver = receiver(&host).await?;
    emit(&host, "with a receiver").await?;
    receiver.expect(" [x] with a receiver").await
}

#[tokio::test]
async fn both_programs_declare_the_same_fanout_exchange() -> Result<()> {
    let broker = Broker::shared().await?;
    let (by_sender, by_receiver) = (broker.virtual_host().await?, broker.virtual_host().await?);
    emit(&by_sender, "a message").await?;
    let _receiver = receiver(&by_receiver).await?;
    for host in [by_sender, by_receiver] {
        let exchange = host.get("/api/exchanges/{vhost}/logs").await?;
        assert_eq!(exchange["type"], "fanout");
        assert_eq!(exchange["durable"], false);
        assert_eq!(exchange["auto_delete"], false);
        assert_eq!(exchange["internal"], false);
        assert_eq!(exchange["arguments"], json!({}));
    }
    Ok(())
}

#[tokio::test]
async fn a_receiver_has_an_exclusive_queue_named_by_the_broker_that_goes_with_it() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host).await?;
    let name = its_queue(&host).await?.context("nothing is bound to the exchange")?;
    assert!(name.starts_with("amq.gen-"), "{name}");
    let queue = host.queue(&name).await?;
    assert_eq!(queue["exclusive"], true);
    assert_eq!(queue["durable"], false);

    receiver.interrupt()?;
    receiver.wait().await?;
    // The broker notices the end of the connection a moment later, and no event reports it.
    lesson::until("the queue to go", async || its_queue(&host).await.is_ok_and(|queue| queue.is_none()).then_some(()))
        .await?;
    assert!(host.queue(&name).await.is_err(), "the queue {name} is still there");
    Ok(())
}

#[tokio::test]
async fn the_routing_key_is_empty_and_ignored() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host).await?;
    host.put("/api/queues/{vhost}/beside", json!({"durable": true})).await?;
    host.post("/api/bindings/{vhost}/e/logs/q/beside", json!({"routing_key": "another"})).await?;
    emit(&host, "a message").await?;
    let message = lesson::take(&host, "beside").await?;
    assert_eq!(message["routing_key"], "");
    assert_eq!(message["payload"], "a message");
    receiver.expect(" [x] a message").await?;

    lesson::publish(&host, "logs", "any.key", json!({}), "with a key").await?;
    receiver.expect(" [x] with a key").await
}

#[tokio::test]
async fn a_receiver_that_loses_its_connection_listens_again_on_a_new_queue() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = receiver(&host).await?;
    let before = its_queue(&host).await?;
    host.close_all_connections().await?;
    receiver.stderr_line_containing("the connection to RabbitMQ was lost").await?;
    // The queue is bound some time after the reconnect, and the program does not report it.
    let renewed = async || its_queue(&host).await.ok().flatten().filter(|queue| Some(queue) != before.as_ref());
    lesson::until("a new queue", renewed).await?;
    emit(&host, "after the loss").await?;
    receiver.expect(" [x] after the loss").await
}

/// Producers do not use queues: the sender uses only the exchange.
#[tokio::test]
async fn a_sender_declares_no_queue() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    emit(&host, "a message").await?;
    assert_eq!(host.get("/api/queues/{vhost}").await?, Value::Array(Vec::new()));
    Ok(())
}
