//! Faults of the network between a program and its broker: cut, reset, cut in the middle of a frame, silent.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use amqprs::channel::{BasicConsumeArguments, QueueDeclareArguments};
use anyhow::{Context, Result, ensure};
use common::{Channel, ConnectOptions, ConnectionManager, Consumer, Error, Event, Events, SetupChannel};
use testbed::{Broker, Proxy, VirtualHost};
use tokio::time::timeout;

use crate::{consume, next, plain, queue, to};

/// Longer than recovery takes after any of these faults.
const PATIENCE: Duration = Duration::from_secs(20);

/// A virtual host, and a proxy in front of it.
struct Line {
    host: VirtualHost<'static>,
    proxy: Proxy,
    connections: ConnectionManager,
}

impl Line {
    async fn new() -> Result<Self> {
        let broker = Broker::shared().await?;
        let (host, proxy) = (broker.virtual_host().await?, Proxy::start(broker.port()).await?);
        let (name, password, port) = (host.name(), host.password(), proxy.port());
        let url = format!("amqp://{name}:{password}@127.0.0.1:{port}/{name}?heartbeat=2");
        let connections = ConnectionManager::new(url.parse()?);
        Ok(Self { host, proxy, connections })
    }
}

async fn until_recovered(events: &mut Events) -> Result<()> {
    let recovered = async {
        while let Some(event) = events.next().await {
            if matches!(event, Event::Recovered) {
                return Ok(());
            }
        }
        anyhow::bail!("the connection was closed")
    };
    timeout(PATIENCE, recovered).await.context("the client has not reconnected")?
}

/// Publishes numbered messages until `over` is true. Returns those that were confirmed.
async fn publish_until(channel: Channel, first: u32, over: impl Fn() -> bool) -> Result<(u32, Vec<u32>)> {
    let (mut number, mut confirmed) = (first, Vec::new());
    while !over() {
        match channel.publish(to("q"), plain(), number.to_string()).await {
            Ok(()) => confirmed.push(number),
            Err(Error::Unconfirmed { .. } | Error::Lost { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        number += 1;
    }
    Ok((number, confirmed))
}

async fn expect_all(consumer: &mut Consumer, mut missing: HashSet<u32>) -> Result<()> {
    while !missing.is_empty() {
        let delivery = next(consumer).await.context(format!("confirmed and missing: {missing:?}"))?;
        missing.remove(&delivery.text().parse()?);
        delivery.ack().await?;
    }
    Ok(())
}

/// Causes the fault three times. Meanwhile messages are published one by one, and consumed on the same connection.
async fn survives(fault: impl Fn(&Proxy, u32)) -> Result<()> {
    let line = Line::new().await?;
    let channel = line.connections.channel("test").await?;
    let mut consumer = consume(&channel, "q", false).await?;
    let mut events = line.connections.events();
    ensure!(matches!(events.next().await, Some(Event::Connected)), "not connected");
    let mut first = 0;
    for round in 0..3 {
        let publishing = Arc::new(());
        let publisher = {
            let working = Arc::downgrade(&publishing);
            tokio::spawn(publish_until(channel.clone(), first, move || working.upgrade().is_none()))
        };
        fault(&line.proxy, round);
        until_recovered(&mut events).await?;
        line.proxy.resume();
        drop(publishing);
        let (next_number, confirmed) = timeout(PATIENCE, publisher).await???;
        expect_all(&mut consumer, confirmed.into_iter().collect()).await?;
        first = next_number;
        channel.publish(to("q"), plain(), first.to_string()).await?;
        expect_all(&mut consumer, HashSet::from([first])).await?;
        first += 1;
    }
    line.connections.close_all().await?;
    Ok(())
}

#[tokio::test]
async fn the_end_of_the_stream_loses_nothing_that_was_confirmed() -> Result<()> {
    survives(|proxy, _| proxy.cut()).await
}

#[tokio::test]
async fn a_reset_loses_nothing_that_was_confirmed() -> Result<()> {
    survives(|proxy, _| proxy.reset()).await
}

#[tokio::test]
async fn a_cut_in_mid_frame_loses_nothing_that_was_confirmed() -> Result<()> {
    survives(|proxy, round| proxy.cut_after(1_001 + 137 * round)).await
}

#[tokio::test]
async fn a_peer_gone_silent_is_noticed_by_its_missing_heartbeats() -> Result<()> {
    let line = Line::new().await?;
    let channel = line.connections.channel("test").await?;
    let mut consumer = consume(&channel, "q", false).await?;
    let mut events = line.connections.events();
    ensure!(matches!(events.next().await, Some(Event::Connected)), "not connected");
    for body in ["1", "2"] {
        line.proxy.stall();
        let lost = timeout(PATIENCE, events.next()).await.context("the loss was not noticed")?;
        ensure!(matches!(lost, Some(Event::Lost(_))), "{lost:?}");
        line.proxy.resume();
        until_recovered(&mut events).await?;
        channel.publish(to("q"), plain(), body).await?;
        let delivery = next(&mut consumer).await?;
        ensure!(delivery.text() == body, "{delivery:?}");
        delivery.ack().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_exclusive_queue_that_another_connection_still_holds_is_waited_for() -> Result<()> {
    let line = Line::new().await?;
    // After the loss, the consumer uses the name of a queue that belongs to another connection.
    let held = "held";
    let name = Arc::new(Mutex::new("free"));
    let subscribe = {
        let name = name.clone();
        move |channel: SetupChannel| {
            let name = *name.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            async move {
                channel.queue_declare(queue(name).exclusive(true).durable(false)).await?;
                Ok(BasicConsumeArguments::new(name, "").auto_ack(true).finish())
            }
        }
    };
    let channel = line.connections.channel("test").await?;
    let mut consumer = channel.consume(subscribe).await?;
    for round in 0..2 {
        let other = ConnectionManager::new(line.host.url().parse::<ConnectOptions>()?);
        let exclusive = QueueDeclareArguments::new(held).exclusive(true).finish();
        let holder = other.channel("holder").await?;
        holder.queue_declare(exclusive.clone()).await?;
        *name.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = held;
        line.proxy.cut();
        // Other declarations on this connection are refused, too.
        let error = channel.queue_declare(exclusive).await.expect_err("held by another connection");
        ensure!(matches!(error, Error::Closed { code: 405, .. } | Error::Lost { .. }), "{error}");
        ensure!(timeout(Duration::from_millis(300), consumer.try_next()).await.is_err(), "the stream has ended");
        other.close_all().await?;
        timeout(PATIENCE, async {
            // Only the consumer declares it: when the queue accepts a message, the consumer has recovered.
            while channel.publish(to(held).mandatory(true).finish(), plain(), "back").await.is_err() {}
        })
        .await
        .context("the consumer has not recovered")?;
        ensure!(next(&mut consumer).await?.text() == "back", "round {round}");
        *name.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = "free";
        line.proxy.cut();
        timeout(PATIENCE, async {
            while channel.publish(to("free").mandatory(true).finish(), plain(), "free").await.is_err() {}
        })
        .await
        .context("the consumer has not recovered")?;
        ensure!(next(&mut consumer).await?.text() == "free", "round {round}");
    }
    Ok(())
}
