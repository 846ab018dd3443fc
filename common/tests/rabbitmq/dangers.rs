//! A program that calls amqprs directly may panic, hang, or lose the connection. `AMQPRS.md` describes each danger.
//! These tests show that they do not reach the user of `common`.

use std::time::Duration;

use amqprs::channel::{
    BasicConsumeArguments, BasicGetArguments, BasicPublishArguments, ExchangeBindArguments, ExchangeDeclareArguments,
    ExchangeDeleteArguments, QueueBindArguments, QueueDeclareArguments, QueueDeleteArguments, QueuePurgeArguments,
    QueueUnbindArguments,
};
use anyhow::{Result, ensure};
use common::{Channel, Error, SetupChannel};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{Fixture, consume, expect_in, filled, next, plain, queue, to};

/// In amqprs, dropping any of these calls half-way would kill the channel's dispatcher or the connection's reader.
#[tokio::test(flavor = "multi_thread")]
async fn calls_dropped_at_random_points_leave_the_connection_healthy() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", ["kept".to_owned()]).await?;
    let before = fixture.connection_names().await?;
    let mut storm = JoinSet::new();
    for task in 0..8_u64 {
        let (channel, connections) = (channel.clone(), fixture.connections.clone());
        storm.spawn(async move {
            for round in 0..250_u64 {
                let point = Duration::from_micros((task * 131 + round * 37) % 1_500);
                let _ = match round % 5 {
                    0 => timeout(point, channel.queue_declare(queue("q"))).await.map(drop),
                    1 => timeout(point, channel.get(BasicGetArguments::new("empty"))).await.map(drop),
                    2 => timeout(point, connections.channel(&format!("{task}-{}", round % 50))).await.map(drop),
                    3 => timeout(point, channel.publish(to("q2"), plain(), "x")).await.map(drop),
                    _ => timeout(point, channel.queue_purge(QueuePurgeArguments::new("q2"))).await.map(drop),
                };
            }
        });
    }
    storm.join_all().await;
    expect_in(&channel, "q", "kept").await?;
    ensure!(fixture.connection_names().await? == before, "the connection was lost");
    Ok(())
}

/// In amqprs, two synchronous calls at once on one channel would get each other's answers.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_on_one_channel_wait_for_each_other() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let mut calls = JoinSet::new();
    for number in 0..200 {
        let channel = channel.clone();
        calls.spawn(async move {
            let name = format!("q{number}");
            Ok::<_, Error>((name.clone(), channel.queue_declare(queue(&name)).await?.name))
        });
    }
    for outcome in calls.join_all().await {
        let (asked, declared) = outcome?;
        ensure!(asked == declared, "{declared} instead of {asked}");
    }
    let both = |channel: SetupChannel| async move {
        let (one, other) = tokio::join!(channel.queue_declare(queue("one")), channel.queue_declare(queue("other")));
        one.and(other).map(drop)
    };
    channel.setup(both).await?;
    Ok(())
}

/// In amqprs, a delivery or confirm for a channel that the broker has closed would end the whole connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_the_broker_closes_does_not_take_the_connection_with_it() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let before = fixture.connection_names().await?;
    let mut consumer = consume(&channel, "busy", true).await?;
    let mut storm = JoinSet::new();
    for task in 0..4 {
        let busy = fixture.connections.channel(&format!("busy-{task}")).await?;
        storm.spawn(async move {
            let mut confirmed = 0;
            for round in 0..300 {
                let exchange = if round % 10 == 9 { "missing" } else { "" };
                if let Ok(confirm) =
                    busy.publish_with_deferred_confirm(BasicPublishArguments::new(exchange, "busy"), plain(), "x").await
                {
                    // The test waits for some confirms. The other messages are on their way when the channel is closed.
                    confirmed += u32::from(round % 3 == 0 && confirm.await.is_ok());
                }
            }
            confirmed
        });
    }
    let mut received = 0;
    let confirmed: u32 = {
        let all = storm.join_all();
        tokio::pin!(all);
        loop {
            tokio::select! {
                confirmed = &mut all => break confirmed.into_iter().sum(),
                message = consumer.try_next() => received += u32::from(message?.is_some()),
            }
        }
    };
    while received < confirmed {
        next(&mut consumer).await?;
        received += 1;
    }
    ensure!(confirmed > 100, "only {confirmed} were confirmed");
    ensure!(fixture.connection_names().await? == before, "the connection was lost");
    Ok(())
}

/// In amqprs, each closed channel keeps its number, and amqprs panics when all 2,047 are used up.
#[tokio::test(flavor = "multi_thread")]
async fn the_connection_is_replaced_before_channel_numbers_run_out() -> Result<()> {
    let fixture = Fixture::new().await?;
    let before = fixture.connection_names().await?;
    let mut storm = JoinSet::new();
    for task in 0..64 {
        let channel = fixture.connections.channel(&format!("{task}")).await?;
        storm.spawn(async move {
            for _ in 0..40 {
                let passive = QueueDeclareArguments::new("missing").passive(true).finish();
                match channel.queue_declare(passive).await {
                    Err(Error::Closed { code: 404, .. } | Error::Lost { .. } | Error::Stale) => {}
                    other => return Err(anyhow::anyhow!("{other:?}")),
                }
            }
            Ok(())
        });
    }
    for outcome in storm.join_all().await {
        outcome?;
    }
    ensure!(fixture.connection_names().await? != before, "2,560 channels were closed on one connection");
    fixture.channel().await?.queue_declare(queue("q")).await?;
    Ok(())
}

/// amqprs panics on them and prints a trace.
#[tokio::test]
async fn names_over_255_bytes_are_refused_before_they_are_sent() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let longest = "n".repeat(255);
    let long = "n".repeat(256);
    channel.queue_declare(queue(&longest)).await?;
    channel.publish(to(&longest).mandatory(true).finish(), plain(), "x").await?;

    fn refused<T>(outcome: common::Result<T>) -> Result<()> {
        match outcome {
            Err(Error::Invalid(text)) if text.contains("256 bytes long; AMQP allows 255") => Ok(()),
            Err(other) => anyhow::bail!("{other}"),
            Ok(_) => anyhow::bail!("it was sent"),
        }
    }
    refused(channel.queue_declare(queue(&long)).await)?;
    refused(channel.queue_bind(QueueBindArguments::new(&long, "e", "k")).await)?;
    refused(channel.queue_bind(QueueBindArguments::new("q", &long, "k")).await)?;
    refused(channel.queue_bind(QueueBindArguments::new("q", "e", &long)).await)?;
    refused(channel.queue_unbind(QueueUnbindArguments::new("q", "e", &long)).await)?;
    refused(channel.queue_purge(QueuePurgeArguments::new(&long)).await)?;
    refused(channel.queue_delete(QueueDeleteArguments::new(&long)).await)?;
    refused(channel.exchange_declare(ExchangeDeclareArguments::new(&long, "direct")).await)?;
    refused(channel.exchange_declare(ExchangeDeclareArguments::new("e", &long)).await)?;
    refused(channel.exchange_delete(ExchangeDeleteArguments::new(&long)).await)?;
    refused(channel.exchange_bind(ExchangeBindArguments::new(&long, "e", "k")).await)?;
    refused(channel.publish(BasicPublishArguments::new(&long, ""), plain(), "x").await)?;
    refused(channel.publish(to(&long), plain(), "x").await)?;
    refused(channel.get(BasicGetArguments::new(&long)).await)?;
    let (queue_name, tag) = (long.clone(), long.clone());
    let consumed = channel.consume_with(queue_name, |_, name| async move { Ok(BasicConsumeArguments::new(&name, "")) });
    refused(consumed.await)?;
    let consumed = channel.consume_with(tag, |_, tag| async move { Ok(BasicConsumeArguments::new("q", &tag)) });
    refused(consumed.await)
}

#[tokio::test]
async fn calls_that_would_close_the_connection_or_hide_an_answer_are_refused() -> Result<()> {
    fn refused<T>(outcome: common::Result<T>) -> Result<()> {
        ensure!(matches!(outcome, Err(Error::Invalid(_))), "it was sent");
        Ok(())
    }
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    refused(channel.publish(to("q").immediate(true).finish(), plain(), "x").await)?;
    refused(channel.queue_declare(QueueDeclareArguments::new("q").no_wait(true).finish()).await)?;
    refused(channel.queue_bind(QueueBindArguments::new("q", "e", "k").no_wait(true).finish()).await)?;
    refused(channel.exchange_declare(ExchangeDeclareArguments::new("e", "fanout").no_wait(true).finish()).await)
}

/// In amqprs, dropping an open connection or channel outside a runtime panics.
#[test]
fn everything_can_be_dropped_outside_a_runtime() -> Result<()> {
    async fn all() -> Result<(Fixture, Channel, common::Consumer, common::Delivery, common::Confirm)> {
        let fixture = Fixture::new().await?;
        let channel = fixture.channel().await?;
        filled(&channel, "q", ["x".to_owned()]).await?;
        let mut consumer = consume(&channel, "q", false).await?;
        let delivery = next(&mut consumer).await?;
        let confirm = channel.publish_with_deferred_confirm(to("q"), plain(), "y").await?;
        Ok((fixture, channel, consumer, delivery, confirm))
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let held = runtime.block_on(all())?;
    let dropped = std::thread::spawn(move || drop(held)).join();
    ensure!(dropped.is_ok(), "a panic while the runtime exists");

    let held = runtime.block_on(all())?;
    drop(runtime);
    let dropped = std::thread::spawn(move || drop(held)).join();
    ensure!(dropped.is_ok(), "a panic after the runtime has ended");
    Ok(())
}

/// A confirm that never comes, as from a broker without memory, must not keep `close_all` waiting for ever.
#[tokio::test]
async fn close_all_is_bounded_when_the_broker_is_silent() -> Result<()> {
    let broker = testbed::Broker::start().await?;
    let options = broker.url().parse::<common::ConnectOptions>()?.operation_timeout(Duration::from_secs(1));
    let connections = common::ConnectionManager::new(options);
    let channel = connections.channel("test").await?;
    let _consumer = consume(&channel, "q", false).await?;
    broker.pause().await?;
    let confirm = channel.publish_with_deferred_confirm(to("q"), plain(), "x").await?;
    let closed = timeout(Duration::from_secs(10), connections.close_all()).await?;
    ensure!(matches!(closed, Err(Error::Unconfirmed { .. })), "{closed:?}");
    ensure!(confirm.await.is_err(), "it was confirmed, although the broker is paused");
    sleep(Duration::ZERO).await;
    broker.resume().await?;
    broker.shutdown().await
}
