//! What is restored after the broker itself has ended and started again. Each test has its own broker.

use std::time::{Duration, Instant};

use amqprs::{BasicProperties, channel::BasicConsumeArguments};
use anyhow::{Result, ensure};
use common::{ConnectOptions, ConnectionManager, Event, SetupChannel};
use testbed::Broker;
use tokio::time::{sleep, timeout};

use crate::{consume, next, plain, to};

#[tokio::test]
async fn everything_survives_a_stop_of_the_broker_twice() -> Result<()> {
    let broker = Broker::start().await?;
    everything_survives(&broker, async || broker.stop().await).await?;
    broker.shutdown().await
}

#[tokio::test]
async fn everything_survives_a_kill_of_the_broker_twice() -> Result<()> {
    let broker = Broker::start().await?;
    everything_survives(&broker, async || broker.kill().await).await?;
    broker.shutdown().await
}

async fn everything_survives(broker: &Broker, end: impl AsyncFn() -> Result<()>) -> Result<()> {
    let options = broker.url().parse::<ConnectOptions>()?.reconnect_interval(Duration::from_millis(500));
    let connections = ConnectionManager::new(options);
    let channel = connections.channel("test").await?;
    let mut consumer = channel
        .consume(|channel: SetupChannel| async move {
            channel.queue_declare(common::quorum_queue("q")).await?;
            Ok(BasicConsumeArguments::new("q", ""))
        })
        .await?;
    let persistent = BasicProperties::default().with_delivery_mode(2).finish();
    // RabbitMQ saves the name of a new quorum queue's member half a second later. If it is killed before, the queue is
    // empty afterwards ("name_not_registered" in its log), even if messages were confirmed. No event tells when it is
    // saved.
    sleep(Duration::from_secs(2)).await;
    for round in 0..2 {
        channel.publish(to("q"), persistent.clone(), format!("before {round}")).await?;
        let before = next(&mut consumer).await?;
        end().await?;
        // This call waits until the broker runs again.
        let publishing = {
            let (channel, properties) = (channel.clone(), persistent.clone());
            tokio::spawn(
                async move { channel.publish_at_least_once(to("q"), properties, format!("during {round}")).await },
            )
        };
        broker.start_again().await?;
        let since = Instant::now();
        let mut back = next(&mut consumer).await?;
        let took = since.elapsed();
        ensure!(took < Duration::from_secs(10), "back after {took:?}");
        // After a kill, a quorum queue may accept the next message before it notices the loss of its consumer.
        let mut during = next(&mut consumer).await?;
        if during.redelivered {
            std::mem::swap(&mut back, &mut during);
        }
        ensure!(back.text() == before.text() && back.redelivered, "{back:?}");
        ensure!(during.text() == format!("during {round}") && !during.redelivered, "{during:?}");
        ensure!(before.ack().await? == common::Settlement::TooLate);
        back.ack().await?;
        during.ack().await?;
        timeout(Duration::from_secs(20), publishing).await???;
    }
    Ok(connections.close_all().await?)
}

#[tokio::test]
async fn close_all_stops_a_recovery_at_once_and_for_good() -> Result<()> {
    let broker = Broker::start().await?;
    let connections = ConnectionManager::new(broker.url().parse()?);
    let channel = connections.channel("test").await?;
    let mut consumer = consume(&channel, "q", false).await?;
    let mut events = connections.events();
    ensure!(matches!(events.next().await, Some(Event::Connected)));
    broker.kill().await?;
    ensure!(matches!(events.next().await, Some(Event::Lost(_))));
    let waiting = tokio::spawn(async move { channel.publish(to("q"), plain(), "x").await });
    let since = Instant::now();
    connections.close_all().await?;
    ensure!(since.elapsed() < Duration::from_secs(2), "after {:?}", since.elapsed());
    ensure!(consumer.try_next().await?.is_none(), "the stream has not ended");
    ensure!(waiting.await?.is_err(), "it was published, although the broker is dead");
    broker.start_again().await?;
    let mut seen = broker.rabbitmqctl(&["-q", "list_connections", "name"]).await?;
    seen.retain(|character| !character.is_whitespace());
    ensure!(seen.is_empty() || seen == "name", "there is a connection again: {seen}");
    broker.shutdown().await
}
