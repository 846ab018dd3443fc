//! What chapter 1 promises, shown by its programs on a real RabbitMQ.

mod bad_input;

use std::{fs::File, process::Stdio, time::Duration};

use amqprs::{BasicProperties, channel::BasicPublishArguments};
use anyhow::{Context, Result};
use common::ConnectionManager;
use serde_json::json;
use testbed::{Broker, Program, Running, VirtualHost, lesson};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

const WAITING: &str = " [*] Waiting for messages. To exit press CTRL+C";
const RECEIVED: &str = " [x] Received Hello World!";

const SEND: &str = env!("CARGO_BIN_EXE_send");
const RECEIVE: &str = env!("CARGO_BIN_EXE_receive");

fn send(host: &VirtualHost<'_>) -> Program {
    Program::new(SEND).url(host.url())
}

fn receive(host: &VirtualHost<'_>) -> Program {
    Program::new(RECEIVE).url(host.url())
}

/// Starts a receiver. When this returns, it has subscribed.
async fn waiting(receiver: Program) -> Result<Running> {
    let mut receiver = receiver.spawn()?;
    receiver.expect(WAITING).await?;
    Ok(receiver)
}

/// Puts a message into the queue without our programs.
async fn publish(host: &VirtualHost<'_>, body: &str) -> Result<()> {
    lesson::publish(host, "", "hello", json!({}), body).await
}

#[tokio::test]
async fn the_sender_says_what_it_sent_and_ends() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let sent = send(&host).run().await?;
    assert_eq!(sent.stdout, " [x] Sent 'Hello World!'\n");
    assert_eq!(sent.stderr, "");
    assert_eq!(sent.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn the_receiver_prints_what_was_sent() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = waiting(receive(&host)).await?;
    send(&host).run().await?;
    receiver.expect(RECEIVED).await?;

    receiver.interrupt()?;
    let received = receiver.wait().await?;
    assert_eq!(received.stdout, format!("{WAITING}\n{RECEIVED}\n"));
    assert_eq!(received.stderr, "");
    Ok(())
}

#[tokio::test]
async fn the_sender_may_start_first_and_its_message_waits() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    assert_eq!(send(&host).run().await?.code, Some(0));
    let mut receiver = waiting(receive(&host)).await?;
    receiver.expect(RECEIVED).await
}

#[tokio::test]
async fn both_programs_declare_the_same_durable_quorum_queue() -> Result<()> {
    let broker = Broker::shared().await?;
    let (by_sender, by_receiver) = (broker.virtual_host().await?, broker.virtual_host().await?);
    send(&by_sender).run().await?;
    let _receiver = waiting(receive(&by_receiver)).await?;
    for host in [by_sender, by_receiver] {
        let queue = host.queue("hello").await?;
        assert_eq!(queue["durable"], true);
        assert_eq!(queue["auto_delete"], false);
        assert_eq!(queue["exclusive"], false);
        assert_eq!(queue["arguments"], json!({"x-queue-type": "quorum"}));
    }
    Ok(())
}

#[tokio::test]
async fn the_message_on_the_wire_is_the_one_of_the_other_languages() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    send(&host).run().await?;
    let message = lesson::take(&host, "hello").await?;
    assert_eq!(message["payload"], "Hello World!");
    assert_eq!(message["exchange"], "");
    assert_eq!(message["routing_key"], "hello");
    Ok(())
}

#[tokio::test]
async fn messages_come_in_the_order_in_which_they_were_sent() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = waiting(receive(&host)).await?;
    let connections = ConnectionManager::new(host.url().parse()?);
    let channel = connections.channel("test").await?;
    let mut confirms = Vec::new();
    for number in 0..1_000 {
        let to = BasicPublishArguments::new("", "hello");
        confirms.push(
            channel.publish_with_deferred_confirm(to, BasicProperties::default(), format!("message {number}")).await?,
        );
    }
    for number in 0..1_000 {
        receiver.expect(&format!(" [x] Received message {number}")).await?;
    }
    for confirm in confirms {
        confirm.await?;
    }
    connections.close_all().await?;
    Ok(())
}

#[tokio::test]
async fn every_send_is_received() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = waiting(receive(&host)).await?;
    for _ in 0..5 {
        send(&host).run().await?;
    }
    publish(&host, "the end").await?;
    for _ in 0..5 {
        receiver.expect(RECEIVED).await?;
    }
    receiver.expect(" [x] Received the end").await
}

#[tokio::test]
async fn two_receivers_share_the_messages() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut one = waiting(receive(&host)).await?;
    let mut other = waiting(receive(&host)).await?;
    let bodies: Vec<String> = (0..10).map(|number| format!("message {number}")).collect();
    for body in &bodies {
        publish(&host, body).await?;
    }
    let mut received = Vec::new();
    for _ in 0..5 {
        received.extend([one.line().await?, other.line().await?]);
    }
    received.sort();
    assert_eq!(received, bodies.iter().map(|body| format!(" [x] Received {body}")).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn a_received_message_does_not_come_again() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = waiting(receive(&host)).await?;
    send(&host).run().await?;
    receiver.expect(RECEIVED).await?;
    receiver.kill()?;
    receiver.wait().await?;

    let mut next = waiting(receive(&host)).await?;
    publish(&host, "the next one").await?;
    next.expect(" [x] Received the next one").await
}

#[tokio::test]
async fn the_fourteen_properties_are_printed_on_request() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = waiting(receive(&host).arg("--properties")).await?;
    let connections = ConnectionManager::new(host.url().parse()?);
    let channel = connections.channel("test").await?;
    let properties = BasicProperties::default()
        .with_content_type("text/plain")
        .with_content_encoding("identity")
        .with_headers(common::table([("colour", "red")])?)
        .with_delivery_mode(amqprs::DELIVERY_MODE_PERSISTENT)
        .with_priority(4)
        .with_correlation_id("number 7")
        .with_reply_to("the sender")
        .with_expiration("60000")
        .with_message_id("number 8")
        .with_timestamp(1_700_000_000)
        .with_message_type("greeting")
        // RabbitMQ refuses a message whose property `user_id` is not the connection's user.
        .with_user_id(host.name())
        .with_app_id("test")
        .with_cluster_id("cluster")
        .finish();
    channel.publish(BasicPublishArguments::new("", "hello"), properties, "all of them").await?;

    receiver.expect(" [x] Received all of them").await?;
    for line in ["exchange: \"\"", "routing_key: \"hello\""] {
        receiver.expect(line).await?;
    }
    let tag = receiver.line().await?;
    assert!(tag.starts_with("consumer_tag: \""), "{tag}");
    for line in ["delivery_tag: 1", "redelivered: false", "body_size: 11"] {
        receiver.expect(line).await?;
    }
    let user = format!("user_id: {:?}", host.name());
    for line in [
        "content_type: \"text/plain\"",
        "content_encoding: \"identity\"",
        "headers: { colour: \"red\" }",
        "delivery_mode: 2 (persistent)",
        "priority: 4",
        "correlation_id: \"number 7\"",
        "reply_to: \"the sender\"",
        "expiration: \"60000\"",
        "message_id: \"number 8\"",
        "timestamp: 1700000000",
        "type: \"greeting\"",
        &user,
        "app_id: \"test\"",
        "cluster_id: \"cluster\"",
    ] {
        receiver.expect(line).await?;
    }
    connections.close_all().await?;
    Ok(())
}

#[tokio::test]
async fn properties_that_are_not_set_are_shown_as_such() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = waiting(receive(&host).arg("--properties")).await?;
    send(&host).run().await?;
    receiver.expect(RECEIVED).await?;
    for name in ["content_type", "content_encoding", "priority", "correlation_id", "reply_to", "cluster_id"] {
        while receiver.line().await? != format!("{name}: -") {}
    }
    Ok(())
}

#[tokio::test]
async fn ctrl_c_ends_the_receiver_at_once() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = waiting(receive(&host).deadline(Duration::from_secs(5))).await?;
    receiver.interrupt()?;
    let end = receiver.wait().await?;
    assert_eq!(end.stdout, format!("{WAITING}\n"));
    assert_eq!(end.stderr, "");
    Ok(())
}

/// What is printed must not wait in a buffer until the program ends.
#[tokio::test]
async fn output_into_a_file_comes_line_by_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let path = std::env::temp_dir().join(format!("receive-{}.log", std::process::id()));
    let mut receiver =
        Command::new(RECEIVE).env("AMQP_URL", host.url()).stdout(File::create(&path)?).kill_on_drop(true).spawn()?;
    let has = async |expected: String| {
        // No event reports that another program has written to a file.
        let read = async || std::fs::read_to_string(&path).ok().filter(|text| *text == expected);
        lesson::until(&format!("{expected:?} in {}", path.display()), read).await
    };
    has(format!("{WAITING}\n")).await?;
    for count in 1..=3 {
        send(&host).run().await?;
        has(format!("{WAITING}\n{}", format!("{RECEIVED}\n").repeat(count))).await?;
    }
    assert!(receiver.try_wait()?.is_none(), "the receiver has ended");
    std::fs::remove_file(&path)?;
    Ok(())
}

/// As in `receive | head -1`: the reader ends first.
#[tokio::test]
async fn a_reader_that_goes_away_ends_the_receiver_quietly() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = Command::new(RECEIVE)
        .env("AMQP_URL", host.url())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(receiver.stdout.take().context("no pipe")?).lines();
    assert_eq!(lines.next_line().await?.as_deref(), Some(WAITING));
    drop(lines);
    send(&host).run().await?;
    let end = timeout(Duration::from_secs(10), receiver.wait_with_output()).await??;
    assert_eq!(String::from_utf8_lossy(&end.stderr), "");
    assert_eq!(end.status.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_receiver_outlives_its_connection() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut receiver = waiting(receive(&host)).await?;
    host.close_all_connections().await?;
    receiver.stderr_line_containing("the connection to RabbitMQ was lost").await?;
    receiver.stderr_line_containing("connected again").await?;
    send(&host).run().await?;
    receiver.expect(RECEIVED).await
}
