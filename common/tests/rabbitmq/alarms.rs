//! A broker that accepts no messages, because it is short of memory or disk, or because its process is paused.

use std::time::{Duration, Instant};

use amqprs::channel::{BasicConsumeArguments, BasicQosArguments};
use anyhow::{Result, ensure};
use common::{ConnectOptions, ConnectionManager, Error, Settlement, rpc::RpcClient};
use testbed::Broker;
use tokio::{sync::oneshot, task::JoinSet, time::timeout};

use crate::{consume, expect_in, filled, logs, next, plain, queue, to};

#[tokio::test(flavor = "multi_thread")]
async fn while_the_broker_is_short_of_resources_publishers_say_so_and_consumers_on_another_connection_still_work()
-> Result<()> {
    logs::keep();
    let broker = Broker::start().await?;
    let options = broker.url().parse::<ConnectOptions>()?.operation_timeout(Duration::from_secs(8));
    let (publishing, consuming) = (ConnectionManager::new(options.clone()), ConnectionManager::new(options));
    let publisher = publishing.channel("blocked-publisher").await?;
    filled(&publisher, "q", (0..500).map(|number| number.to_string())).await?;
    let client = RpcClient::new(&publishing.channel("blocked-client").await?).await?;
    publisher.queue_declare(queue("requests")).await?;
    let mut consumer = consume(&consuming.channel("consumer").await?, "q", false).await?;

    for (alarm, all_clear) in [
        (["set_vm_memory_high_watermark", "0.0000001"], ["set_vm_memory_high_watermark", "0.4"]),
        (["set_disk_free_limit", "100000GB"], ["set_disk_free_limit", "1MB"]),
    ] {
        broker.rabbitmqctl(&alarm).await?;
        // The alarm is raised a moment later. After that RabbitMQ confirms no more messages.
        let since = Instant::now();
        let (error, sent) = loop {
            ensure!(since.elapsed() < Duration::from_secs(60), "no alarm after {alarm:?}");
            let sent = Instant::now();
            if let Err(error) = publisher.publish(to("q"), plain(), "x").await {
                break (error, sent);
            }
        };
        println!("{error}, after {:?}", sent.elapsed());
        ensure!(matches!(error, Error::Unconfirmed { .. }) && error.to_string().contains("memory or disk"), "{error}");
        ensure!(sent.elapsed() < Duration::from_secs(25), "it took {:?}", sent.elapsed());
        let asked = client.call("requests", "x", Duration::from_secs(3)).await;
        let error = asked.expect_err("no server answers").to_string();
        ensure!(error.contains("memory or disk"), "{error}");

        for _ in 0..200 {
            ensure!(next(&mut consumer).await?.ack().await? == Settlement::Sent);
        }
        let since = Instant::now();
        broker.rabbitmqctl(&all_clear).await?;
        timeout(Duration::from_secs(60), async { while publisher.publish(to("q"), plain(), "x").await.is_err() {} })
            .await?;
        println!("published again after {:?}", since.elapsed());
    }
    let lines = logs::with(&["`blocked-publisher`", "no confirm for 4 s", "memory or disk"]);
    ensure!(lines.len() == 2, "expected one warning for each alarm: {lines:?}");
    publishing.close_all().await?;
    drop(consumer);
    consuming.close_all().await?;
    broker.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_within_five_seconds_what_a_publisher_waits_for() -> Result<()> {
    logs::keep();
    let broker = Broker::start().await?;
    let connections = ConnectionManager::new(broker.url().parse()?);
    let channel = connections.channel("waits-for-confirms").await?;
    channel.queue_declare(queue("q")).await?;
    broker.pause().await?;
    let since = Instant::now();
    let confirm = channel.publish_with_deferred_confirm(to("q"), plain(), "x").await?;
    let line = logs::wait_for(&["`waits-for-confirms`"], Duration::from_secs(30)).await?;
    println!("{line} after {:?}", since.elapsed());
    ensure!(line.contains("no confirm for 4 s") && line.contains("rabbitmqctl status"), "{line}");
    broker.resume().await?;
    confirm.await?;
    channel.publish(to("q"), plain(), "y").await?;
    expect_in(&channel, "q", "x").await?;
    ensure!(logs::with(&["`waits-for-confirms`"]).len() == 1);
    connections.close_all().await?;
    broker.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn settling_and_publishing_end_in_time_when_the_broker_reads_nothing() -> Result<()> {
    const DELIVERIES: usize = 12_000;
    let broker = Broker::start().await?;
    let options = broker.url().parse::<ConnectOptions>()?.operation_timeout(Duration::from_secs(60));
    let filling = ConnectionManager::new(options.clone());
    filled(&filling.channel("fill").await?, "q", (0..DELIVERIES).map(|number| number.to_string())).await?;
    filling.close_all().await?;

    let connections = ConnectionManager::new(options.operation_timeout(Duration::from_secs(5)));
    let channel = connections.channel("test").await?;
    let subscribe = |channel: common::SetupChannel| async move {
        channel.basic_qos(BasicQosArguments::new(0, 0, false)).await?;
        Ok(BasicConsumeArguments::new("q", ""))
    };
    let mut consumer = channel.consume(subscribe).await?;
    let mut deliveries = Vec::new();
    while deliveries.len() < DELIVERIES {
        deliveries.push(next(&mut consumer).await?);
    }
    let (sender, stage) = oneshot::channel();
    let (end, ended) = oneshot::channel::<()>();
    let transaction = tokio::spawn({
        let channel = channel.clone();
        async move {
            let work = |transaction| async move {
                let _ = sender.send(transaction);
                let _ = ended.await;
                Ok(())
            };
            channel.transaction(work).await
        }
    });
    let transaction_of_now = stage.await?;
    broker.pause().await?;
    // Messages are sent until the buffers on the way are full.
    let since = Instant::now();
    let mut sent = 0;
    let stuck = loop {
        match transaction_of_now.publish(to("q"), plain(), vec![0; 4_096]).await {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        ensure!(sent < 100_000, "the broker still accepts everything");
    };
    println!("{sent} messages, then after {:?}: {stuck}", since.elapsed());
    ensure!(matches!(stuck, Error::Timeout { .. }) && stuck.to_string().contains("memory or disk"), "{stuck}");

    let since = Instant::now();
    let mut settling = JoinSet::new();
    for (number, delivery) in deliveries.into_iter().enumerate() {
        settling.spawn(async move {
            match number % 3 {
                0 => delivery.ack().await,
                1 => delivery.nack(true).await,
                _ => delivery.reject(true).await,
            }
        });
    }
    for outcome in timeout(Duration::from_secs(60), settling.join_all()).await? {
        let Err(error) = outcome else { anyhow::bail!("the buffers are full, but it was sent") };
        ensure!(matches!(error, Error::Timeout { .. }) && error.to_string().contains("memory or disk"), "{error}");
    }
    println!("settling ended after {:?}", since.elapsed());
    broker.resume().await?;
    let _ = end.send(());
    // The commit may come too late or not: both are fine.
    drop(transaction.await?);
    drop(consumer);
    connections.close_all().await?;
    broker.shutdown().await
}
