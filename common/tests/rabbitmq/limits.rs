//! Limits of the broker: channels, connections, frames, heartbeats. Limits of users and virtual hosts are set on the
//! shared broker. Settings of the broker itself are changed on a private broker, and count for new connections.

use std::time::{Duration, Instant};

use amqprs::channel::{BasicConsumeArguments, QueueDeclareArguments};
use anyhow::{Context, Result, ensure};
use common::{Channel, ConnectOptions, ConnectionManager, Consumer, Error, SetupChannel, rpc::RpcServer};
use serde_json::json;
use testbed::Broker;
use tokio::time::timeout;

use crate::{Fixture, consume, expect_in, filled, next, plain, queue, to};

/// Far less than the operation timeout, but enough for a busy machine.
const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> Result<T> {
    timeout(SOON, work).await.with_context(|| format!("{what}: not within {SOON:?}"))
}

fn at_limit<T>(most: u16, outcome: common::Result<T>) -> Result<()> {
    let Err(error) = outcome else { anyhow::bail!("more than {most} channels") };
    let channels = if most == 1 { "one channel".to_owned() } else { format!("{most} channels") };
    ensure!(error.to_string().contains(&format!("no more than {channels} on one connection")), "{error}");
    ensure!(matches!(error, Error::ChannelLimit(limit) if limit == most), "{error}");
    Ok(())
}

async fn close_a_channel_by_error(channel: &Channel) -> Result<()> {
    let missing = QueueDeclareArguments::new("missing").passive(true).finish();
    match channel.queue_declare(missing).await {
        Err(Error::Closed { code: 404, .. } | Error::Lost { .. } | Error::Stale) => Ok(()),
        other => anyhow::bail!("{other:?}"),
    }
}

async fn set(broker: &Broker, name: &str, value: u32) -> Result<()> {
    broker.rabbitmqctl(&["eval", &format!("application:set_env(rabbit, {name}, {value}).")]).await?;
    Ok(())
}

async fn connect(broker: &Broker) -> Result<(ConnectionManager, common::Result<Channel>)> {
    let connections = ConnectionManager::new(broker.url().parse::<ConnectOptions>()?);
    let channel = soon("connecting", connections.channel("first")).await?;
    Ok((connections, channel))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_channel_that_the_broker_allows_can_be_used_and_one_more_fails_at_once() -> Result<()> {
    let broker = Broker::start().await?;
    for most in [1, 2, 3, 10, 33] {
        set(&broker, "channel_max", most.into()).await?;
        let (connections, first) = connect(&broker).await?;
        let first = first?;
        filled(&first, "q", ["one".to_owned()]).await?;
        expect_in(&first, "q", "one").await?;
        let mut consumer: Option<Consumer> = None;
        if most > 1 {
            consumer = Some(consume(&first, "q", false).await?);
        }
        let mut channels = Vec::new();
        for number in 2..most {
            channels.push(soon("a channel", connections.channel(&format!("{number}"))).await??);
        }
        at_limit(most, soon("one more", connections.channel("more")).await?.map(drop))?;
        at_limit(
            most,
            soon("one more consumer", first.consume(|_| async { Ok(BasicConsumeArguments::new("q", "")) })).await?,
        )?;
        at_limit(most, soon("a transaction", first.transaction(|_| async { Ok(()) })).await?)?;

        // A number is free again as soon as its channel is closed. This works any number of times.
        if let Some(last) = channels.pop() {
            last.close().await?;
            for _ in 0..20 {
                soon("in its place", connections.channel("more")).await??.close().await?;
            }
        }
        // When the broker closes channels, amqprs loses their numbers, and the connection is replaced.
        for _ in 0..3 {
            soon("a closed channel", close_a_channel_by_error(&first)).await??;
        }
        first.publish_at_least_once(to("q"), plain(), "two").await?;
        if let Some(consumer) = &mut consumer {
            ensure!(next(consumer).await?.text() == "two");
        }
        soon("closing", connections.close_all()).await??;
        let emptied = ConnectionManager::new(broker.url().parse::<ConnectOptions>()?);
        emptied.channel("x").await?.queue_delete(amqprs::channel::QueueDeleteArguments::new("q")).await?;
        emptied.close_all().await?;
    }
    broker.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_2047_channels_and_the_next_one_fails_at_once() -> Result<()> {
    let fixture = Fixture::new().await?;
    let mut channels = Vec::new();
    for number in 0..2047 {
        channels.push(fixture.connections.channel(&number.to_string()).await?);
    }
    let since = Instant::now();
    at_limit(2047, fixture.connections.channel("more").await.map(drop))?;
    ensure!(since.elapsed() < SOON, "it took {:?}", since.elapsed());
    channels[1000].close().await?;
    fixture.connections.channel("more").await?.queue_declare(queue("q")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_too_many_channels_gets_the_brokers_own_words() -> Result<()> {
    // RabbitMQ counts a channel a moment after it has opened it, so it may allow one too many.
    let mut refused = 0;
    for round in 0..10 {
        let fixture = Fixture::new().await?;
        fixture
            .host
            .put(&format!("/api/user-limits/{}/max-channels", fixture.host.name()), json!({"value": 1}))
            .await?;
        let channel = fixture.channel().await?;
        let requests = |channel: SetupChannel| async move {
            channel.queue_declare(queue("q")).await?;
            Ok(BasicConsumeArguments::new("q", ""))
        };
        let error = match round % 2 {
            0 => soon("a consumer", channel.consume(requests)).await?.err(),
            _ => soon("a server", RpcServer::new(&channel, requests)).await?.err(),
        };
        if let Some(error) = error {
            let text = error.to_string();
            ensure!(text.contains("cannot open a channel: 530 NOT_ALLOWED"), "{text}");
            ensure!(text.contains("channels") && text.contains("limit"), "{text}");
            refused += 1;
        }
        soon("closing", fixture.connections.close_all()).await??;
    }
    println!("{refused} of 10 refused");
    ensure!(refused >= 5, "only {refused} of 10 were refused");
    Ok(())
}

#[tokio::test]
async fn settings_that_amqprs_cannot_handle_are_refused_in_one_sentence() -> Result<()> {
    let broker = Broker::start().await?;
    let refused = |outcome: common::Result<Channel>, words: &str| {
        let error = outcome.err().context("it should not connect")?;
        println!("{error}");
        ensure!(matches!(error, Error::Connect { .. }) && error.to_string().contains(words), "{error}");
        Ok(())
    };
    set(&broker, "frame_max", 0).await?;
    refused(connect(&broker).await?.1, "frames of any size")?;
    set(&broker, "frame_max", 8192).await?;
    let (connections, channel) = connect(&broker).await?;
    let large = "x".repeat(100_000);
    filled(&channel?, "q", [large.clone()]).await?;
    expect_in(&connections.channel("first").await?, "q", &large).await?;
    connections.close_all().await?;

    set(&broker, "heartbeat", 1).await?;
    refused(connect(&broker).await?.1, "a heartbeat every 1 s")?;
    // With 0 the broker leaves the heartbeat to the client.
    for seconds in [0, 2] {
        set(&broker, "heartbeat", seconds).await?;
        let (connections, channel) = connect(&broker).await?;
        channel?.queue_declare(queue("q")).await?;
        let listed = broker.rabbitmqctl(&["-q", "list_connections", "timeout"]).await?;
        let expected = if seconds == 0 { "60" } else { "2" };
        ensure!(listed.lines().any(|line| line.trim() == expected), "{listed}");
        connections.close_all().await?;
    }
    broker.shutdown().await
}
