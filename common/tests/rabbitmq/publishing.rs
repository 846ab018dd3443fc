//! Confirms: every publish ends with its own outcome.

use std::time::Duration;

use amqprs::{BasicProperties, channel::BasicPublishArguments};
use anyhow::{Context, Result, ensure};
use common::{ConnectionManager, Error, quorum_queue, table};
use tokio::{task::JoinSet, time::timeout};

use crate::{Fixture, expect_empty, expect_in, filled, plain, queue, to};

#[tokio::test]
async fn a_published_message_is_in_the_queue_when_publish_returns() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    for arguments in [queue("classic"), quorum_queue("quorum")] {
        let name = channel.queue_declare(arguments).await?.name;
        for body in ["one", "", "three"] {
            channel.publish(to(&name), plain(), body).await?;
        }
        for body in ["one", "", "three"] {
            expect_in(&channel, &name, body).await?;
        }
        expect_empty(&channel, &name).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_fourteen_properties_arrive_as_they_were_sent() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    let user = fixture.host.name();
    let properties = BasicProperties::default()
        .with_content_type("text/plain")
        .with_content_encoding("identity")
        .with_headers(table([("answer", 42)])?)
        .with_delivery_mode(2)
        .with_priority(3)
        .with_correlation_id("correlation")
        .with_reply_to("reply")
        .with_expiration("60000")
        .with_message_id("message")
        .with_timestamp(1_700_000_000)
        .with_message_type("type")
        .with_user_id(user)
        .with_app_id("app")
        .with_cluster_id("cluster")
        .finish();
    channel.publish(to("q"), properties, "x").await?;
    let message = channel.get(amqprs::channel::BasicGetArguments::new("q")).await?.context("the queue is empty")?;
    let info = message.info().to_string();
    for line in [
        "content_type: \"text/plain\"",
        "content_encoding: \"identity\"",
        "headers: { answer: 42 }",
        "delivery_mode: 2 (persistent)",
        "priority: 3",
        "correlation_id: \"correlation\"",
        "reply_to: \"reply\"",
        "expiration: \"60000\"",
        "message_id: \"message\"",
        "timestamp: 1700000000",
        "type: \"type\"",
        &format!("user_id: \"{user}\""),
        "app_id: \"app\"",
        "cluster_id: \"cluster\"",
        "redelivered: false",
        "routing_key: \"q\"",
        "body_size: 1",
    ] {
        ensure!(info.lines().any(|found| found == line), "{line} is not in\n{info}");
    }
    message.ack().await?;
    Ok(())
}

#[tokio::test]
async fn an_unroutable_message_is_an_error_if_it_is_mandatory_and_dropped_if_not() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.publish(to("nowhere"), plain(), "lost").await?;

    let mandatory = to("nowhere").mandatory(true).finish();
    let properties = BasicProperties::default().with_headers(table([("mine", true)])?).finish();
    let error = channel.publish(mandatory, properties, "kept").await.expect_err("unroutable");
    let Error::Unroutable(returned) = &error else { anyhow::bail!("{error}") };
    ensure!(returned.code == 312 && returned.body == b"kept" && returned.routing_key == "nowhere", "{returned:?}");
    let headers = returned.properties.headers().context("the headers are missing")?.as_ref();
    ensure!(headers.len() == 1 && headers.contains_key(&"mine".try_into()?), "our own header is left in {headers:?}");
    ensure!(error.to_string().contains("no queue `nowhere`"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_mixed_publishes_each_get_their_own_outcome() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(quorum_queue("quorum")).await?;
    channel.queue_declare(queue("classic")).await?;
    channel.queue_declare(queue("full").with("x-max-length", 1).with("x-overflow", "reject-publish")).await?;
    channel.publish(to("full"), plain(), "the one that fits").await?;

    let mut tasks = JoinSet::new();
    for number in 0..4_000 {
        let channel = channel.clone();
        tasks.spawn(async move {
            let name = ["quorum", "classic", "full", "nowhere", "dropped"][number % 5];
            let arguments = to(name).mandatory(name != "dropped").finish();
            let outcome = channel.publish(arguments, plain(), number.to_string()).await;
            let as_expected = match (name, &outcome) {
                ("quorum" | "classic" | "dropped", Ok(())) | ("full", Err(Error::Nacked)) => true,
                ("nowhere", Err(Error::Unroutable(message))) => message.body == number.to_string().as_bytes(),
                _ => false,
            };
            (number, name, outcome, as_expected)
        });
    }
    for (number, name, outcome, as_expected) in tasks.join_all().await {
        ensure!(as_expected, "message {number} to {name}: {outcome:?}");
    }
    Ok(())
}

#[tokio::test]
async fn publishing_to_a_missing_exchange_is_an_error_and_the_channel_still_works() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    for _ in 0..3 {
        let missing = BasicPublishArguments::new("missing", "key");
        let error = channel.publish(missing, plain(), "x").await.expect_err("the exchange should be missing");
        ensure!(matches!(error, Error::Closed { code: 404, .. }), "{error}");
        ensure!(error.to_string().contains("NOT_FOUND - no exchange 'missing' in vhost"), "{error}");
        channel.publish(to("q"), plain(), "y").await?;
        expect_in(&channel, "q", "y").await?;
    }
    ensure!(fixture.connection_names().await?.len() == 1, "the connection changed");
    Ok(())
}

#[tokio::test]
async fn closing_loses_nothing_that_was_published() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    for number in 0..20_000 {
        // The test does not wait for the confirms.
        drop(channel.publish_with_deferred_confirm(to("q"), plain(), number.to_string()).await?);
    }
    fixture.connections.close_all().await?;

    let again = ConnectionManager::new(fixture.host.url().parse()?);
    let declared = again.channel("count").await?.queue_declare(queue("q")).await?;
    ensure!(declared.messages == 20_000, "{} of 20,000 arrived", declared.messages);
    again.close_all().await?;
    Ok(())
}

#[tokio::test]
async fn a_publish_can_be_dropped_at_any_point() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    let body = vec![b'x'; 100_000];
    for round in 0..2_000_u64 {
        let publish = channel.publish(to("q"), plain(), body.clone());
        let _ = timeout(Duration::from_micros(round % 97), publish).await;
    }
    // If a number had been lost, this message would wait for ever or get the outcome of another one.
    let error = channel.publish(to("nowhere").mandatory(true).finish(), plain(), "last").await.expect_err("unroutable");
    ensure!(matches!(&error, Error::Unroutable(message) if message.body == b"last"), "{error}");
    channel.publish(to("q"), plain(), "end").await?;
    Ok(())
}

#[tokio::test]
async fn a_silent_broker_makes_a_publish_unconfirmed_and_not_a_success() -> Result<()> {
    let broker = testbed::Broker::start().await?;
    let options = broker.url().parse::<common::ConnectOptions>()?.operation_timeout(Duration::from_secs(1));
    let connections = ConnectionManager::new(options);
    let channel = connections.channel("test").await?;
    filled(&channel, "q", ["before".to_owned()]).await?;
    broker.pause().await?;
    let error = channel.publish(to("q"), plain(), "x").await.expect_err("the broker is silent");
    ensure!(matches!(error, Error::Unconfirmed { .. }), "{error}");
    let error = channel.queue_declare(queue("q")).await.expect_err("the broker is silent");
    ensure!(matches!(error, Error::Timeout { .. }), "{error}");
    broker.resume().await?;
    // The client has given up the channel that did not answer, and opens another one.
    timeout(Duration::from_secs(20), async { while channel.publish(to("q"), plain(), "after").await.is_err() {} })
        .await?;
    connections.close_all().await?;
    broker.shutdown().await
}
