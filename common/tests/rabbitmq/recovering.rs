//! What is restored after a lost connection, and what a caller sees meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use amqprs::channel::{
    BasicConsumeArguments, BasicPublishArguments, ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments,
};
use anyhow::{Context, Result, ensure};
use common::{ConnectOptions, ConnectionManager, Error, Event, SetupChannel};
use testbed::Broker;
use tokio::{sync::mpsc, time::timeout};

use crate::{Fixture, consume, expect_empty, expect_in, filled, next, plain, queue, to};

#[tokio::test]
async fn each_change_of_the_connection_is_an_event() -> Result<()> {
    let fixture = Fixture::new().await?;
    // A late reader misses old events, so this task does nothing but read them.
    let mut heard = fixture.connections.events();
    let (sender, mut events) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(event) = heard.next().await {
            let _ = sender.send(event);
        }
    });
    fixture.channel().await?;
    ensure!(matches!(events.recv().await, Some(Event::Connected)), "not connected");
    for _ in 0..3 {
        fixture.host.close_all_connections().await?;
        match events.recv().await {
            Some(Event::Lost(Error::Lost { code: Some(320), reason })) => {
                ensure!(reason.contains("CONNECTION_FORCED"), "{reason}");
            }
            other => anyhow::bail!("unexpected: {other:?}"),
        }
        ensure!(matches!(events.recv().await, Some(Event::Recovered)), "not recovered");
    }
    fixture.connections.close_all().await?;
    ensure!(matches!(events.recv().await, Some(Event::Closed)), "not closed");
    ensure!(events.recv().await.is_none() && fixture.connections.is_closed(), "events after the end");
    Ok(())
}

#[tokio::test]
async fn a_server_named_queue_is_restored_with_its_bindings_under_another_name() -> Result<()> {
    async fn subscribe(channel: SetupChannel) -> common::Result<BasicConsumeArguments> {
        channel.exchange_declare(ExchangeDeclareArguments::new("logs", "direct")).await?;
        let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;
        for severity in ["info", "error"] {
            channel.queue_bind(QueueBindArguments::new(&queue.name, "logs", severity)).await?;
        }
        Ok(BasicConsumeArguments::new(&queue.name, "").auto_ack(true).finish())
    }
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let mut logs = channel.consume(subscribe).await?;
    for _ in 0..3 {
        let before = logs.queue();
        fixture.host.close_all_connections().await?;
        // The queue is restored when a message is routed to it again.
        timeout(Duration::from_secs(20), async {
            loop {
                let to = BasicPublishArguments::new("logs", "error").mandatory(true).finish();
                match channel.publish(to, plain(), "first").await {
                    Ok(()) => return,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        })
        .await?;
        ensure!(next(&mut logs).await?.text() == "first");
        ensure!(logs.queue() != before, "it is still the queue of the lost connection");
        channel.publish(BasicPublishArguments::new("logs", "info"), plain(), "second").await?;
        ensure!(next(&mut logs).await?.text() == "second");
    }
    Ok(())
}

#[tokio::test]
async fn publishing_waits_for_the_connection_and_nothing_confirmed_is_lost() -> Result<()> {
    let fixture = Arc::new(Fixture::new().await?);
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    let cutter = {
        let fixture = fixture.clone();
        tokio::spawn(async move {
            let mut events = fixture.connections.events();
            for _ in 0..10 {
                fixture.host.close_all_connections().await?;
                while !matches!(events.next().await, Some(Event::Recovered)) {}
            }
            Ok::<_, anyhow::Error>(())
        })
    };
    let (mut confirmed, mut other) = (Vec::new(), 0);
    let mut number = 0_u32;
    while !cutter.is_finished() {
        match channel.publish(to("q"), plain(), number.to_string()).await {
            Ok(()) => confirmed.push(number),
            Err(Error::Unconfirmed { .. } | Error::Lost { .. }) => other += 1,
            Err(error) => anyhow::bail!("unexpected: {error}"),
        }
        number += 1;
    }
    cutter.await??;
    let mut consumer = consume(&channel, "q", false).await?;
    let mut received = std::collections::HashSet::new();
    while !confirmed.iter().all(|number| received.contains(number)) {
        let delivery = next(&mut consumer).await.context(format!("{other} had no confirm"))?;
        received.insert(delivery.text().parse::<u32>()?);
        delivery.ack().await?;
    }
    Ok(())
}

#[tokio::test]
async fn publish_at_least_once_repeats_until_the_message_is_confirmed() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("full").with("x-max-length", 1).with("x-overflow", "reject-publish")).await?;
    channel.publish(to("full"), plain(), "in the way").await?;
    let publishing = {
        let channel = channel.clone();
        tokio::spawn(async move { channel.publish_at_least_once(to("full"), plain(), "at last").await })
    };
    let error = channel.publish(to("full"), plain(), "no").await.expect_err("the queue is full");
    ensure!(matches!(error, Error::Nacked), "{error}");
    fixture.host.close_all_connections().await?;
    ensure!(!publishing.is_finished(), "confirmed by a full queue");
    expect_in(&channel, "full", "in the way").await?;
    timeout(Duration::from_secs(20), publishing).await???;
    expect_in(&channel, "full", "at last").await?;

    let missing = BasicPublishArguments::new("missing", "");
    let error = channel.publish_at_least_once(missing, plain(), "x").await.expect_err("repeating does not help here");
    ensure!(matches!(error, Error::Closed { code: 404, .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    let outcome = channel
        .transaction(|transaction| async move {
            transaction.publish(to("q"), plain(), "never").await?;
            Err::<(), _>(Error::other("changed my mind"))
        })
        .await;
    ensure!(outcome.is_err_and(|error| error.to_string() == "changed my mind"));
    expect_empty(&channel, "q").await?;

    let looker = channel.clone();
    let sum = channel
        .transaction(|transaction| async move {
            transaction.publish(to("q"), plain(), "one").await?;
            transaction.publish(to("q"), plain(), "two").await?;
            // Other channels do not see the messages before the commit.
            let seen = looker.queue_declare(queue("q")).await?.messages;
            Ok(seen)
        })
        .await?;
    ensure!(sum == 0, "{sum} messages were seen before the commit");
    expect_in(&channel, "q", "one").await?;
    expect_in(&channel, "q", "two").await?;

    let missing = channel
        .transaction(|transaction| async move {
            transaction.publish(BasicPublishArguments::new("missing", ""), plain(), "x").await?;
            transaction.publish(to("q"), plain(), "y").await
        })
        .await;
    ensure!(missing.is_err_and(|error| error.to_string().contains("404")), "the failed transaction was committed");
    expect_empty(&channel, "q").await
}

#[tokio::test]
async fn a_channel_without_confirms_publishes_and_flushes_when_closed() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.connections.channel_without_confirms("fast").await?;
    channel.queue_declare(queue("q")).await?;
    for number in 0..5_000 {
        channel.publish(to("q"), plain(), number.to_string()).await?;
    }
    let refused = channel.publish(to("q").mandatory(true).finish(), plain(), "x").await;
    ensure!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    ensure!(fixture.connections.channel("fast").await.is_err(), "one name was given to channels of two kinds");
    fixture.connections.close_all().await?;
    let again = ConnectionManager::new(fixture.host.url().parse()?);
    let declared = again.channel("count").await?.queue_declare(queue("q")).await?;
    ensure!(declared.messages == 5_000, "{}", declared.messages);
    Ok(())
}

#[tokio::test]
async fn what_is_in_flight_is_bounded() -> Result<()> {
    let broker = Broker::start().await?;
    let options = broker.url().parse::<ConnectOptions>()?.operation_timeout(Duration::from_secs(2));
    let connections = ConnectionManager::new(options);
    let channel = connections.channel("test").await?;
    filled(&channel, "q", ["x".to_owned()]).await?;
    broker.pause().await?;
    // Each message has 1 MiB. No more than 16 MiB may be unconfirmed.
    let enqueued = Arc::new(AtomicUsize::new(0));
    let (counter, publisher) = (enqueued.clone(), channel.clone());
    let outcome: common::Result<()> = async move {
        loop {
            drop(publisher.publish_with_deferred_confirm(to("q"), plain(), vec![0; 1 << 20]).await?);
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
    .await;
    ensure!(matches!(outcome, Err(Error::Timeout { .. })), "{outcome:?}");
    let count = enqueued.load(Ordering::Relaxed);
    ensure!((15..=16).contains(&count), "{count} MiB in flight");
    // The test has dropped the confirms, but the messages still count as unconfirmed: there is no room for more.
    let error = channel.publish(to("q"), plain(), vec![0; 1 << 20]).await.expect_err("there is no room for more");
    ensure!(matches!(error, Error::Timeout { .. }), "{error}");
    broker.resume().await?;
    timeout(Duration::from_secs(20), channel.publish_at_least_once(to("q"), plain(), "room again")).await??;
    broker.shutdown().await
}

#[tokio::test]
async fn the_next_host_is_tried_when_one_does_not_answer() -> Result<()> {
    let fixture = Fixture::new().await?;
    let url = fixture.host.url();
    let (user, rest) = url.split_once('@').context("the URL has no user")?;
    // Nothing listens on port 1.
    let connections = ConnectionManager::new(format!("{user}@127.0.0.1:1,{rest}").parse()?);
    let channel = connections.channel("test").await?;
    channel.queue_declare(queue("q")).await?;
    for _ in 0..2 {
        fixture.host.close_all_connections().await?;
        channel.publish_at_least_once(to("q"), plain(), "x").await?;
    }
    connections.close_all().await?;
    Ok(())
}
