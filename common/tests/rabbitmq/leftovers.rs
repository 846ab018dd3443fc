//! Streams and clients that end leave no queues at the broker, and no message stays unsettled for long.

use std::time::Duration;

use amqprs::channel::{
    BasicConsumeArguments, BasicQosArguments, ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments,
};
use anyhow::{Context, Result, ensure};
use common::{
    Error, Settlement, SetupChannel, classic_queue,
    rpc::{RpcClient, RpcServer},
    tasks::Worker,
};
use tokio::time::{sleep, timeout};

use crate::{Fixture, consume, filled, next, plain, queue, to};

const ROOM: Duration = Duration::from_secs(60);

async fn queues(fixture: &Fixture) -> Result<usize> {
    let listed = fixture.host.broker().rabbitmqctl(&["-q", "list_queues", "-p", fixture.host.name(), "name"]).await?;
    Ok(listed.lines().filter(|line| line.trim().starts_with("amq.gen")).count())
}

/// Waits until the broker has no server-named queue any more.
async fn no_queue_is_left(fixture: &Fixture) -> Result<()> {
    timeout(ROOM, async {
        while queues(fixture).await? > 0 {
            sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, anyhow::Error>(())
    })
    .await
    .context("some queues are still there")?
}

async fn logs(channel: SetupChannel) -> common::Result<BasicConsumeArguments> {
    channel.exchange_declare(ExchangeDeclareArguments::new("logs", "fanout")).await?;
    let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;
    channel.queue_bind(QueueBindArguments::new(&queue.name, "logs", "")).await?;
    Ok(BasicConsumeArguments::new("", ""))
}

#[tokio::test]
async fn queues_of_rpc_clients_and_streams_that_are_gone_are_deleted() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    for _ in 0..100 {
        RpcClient::new(&channel).await?;
    }
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(channel.consume(logs).await?);
    }
    channel.publish(amqprs::channel::BasicPublishArguments::new("logs", ""), plain(), "x").await?;
    let in_hand = next(&mut streams[0]).await?;
    ensure!(queues(&fixture).await? >= 10, "the queues were deleted before their streams ended");
    drop(streams);
    no_queue_is_left(&fixture).await?;
    ensure!(in_hand.ack().await? == Settlement::Sent, "the delivery that the program holds cannot be settled");
    Ok(())
}

#[tokio::test]
async fn a_subscription_that_fails_leaves_no_queue() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    for _ in 0..3 {
        let subscribe = |channel: SetupChannel| async move {
            let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;
            channel.queue_bind(QueueBindArguments::new(&queue.name, "missing", "")).await?;
            Ok(BasicConsumeArguments::new(&queue.name, ""))
        };
        let error = channel.consume(subscribe).await.err().context("it should fail")?;
        ensure!(matches!(error, Error::Closed { code: 404, .. }), "{error}");
    }
    no_queue_is_left(&fixture).await
}

#[tokio::test]
async fn every_oversized_message_is_dead_lettered_although_small_ones_between_them_are_acknowledged_together()
-> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("dead")).await?;
    let declare = classic_queue("q").with("x-dead-letter-exchange", "").with("x-dead-letter-routing-key", "dead");
    channel.queue_declare(declare).await?;
    for number in 0..50 {
        channel.publish(to("q"), plain(), format!("big {number:0>1000}")).await?;
        channel.publish(to("q"), plain(), format!("small {number}")).await?;
    }
    let subscribe = |_| async { Ok(BasicConsumeArguments::new("q", "")) };
    let mut consumer = channel.consume(subscribe).await?.max_body_size(100);
    for number in 0..50 {
        let delivery = next(&mut consumer).await?;
        ensure!(delivery.text() == format!("small {number}"), "{}", delivery.text());
        delivery.ack_multiple().await?;
    }
    let mut dead = consume(&channel, "dead", false).await?;
    for number in 0..50 {
        let delivery = next(&mut dead).await.with_context(|| format!("only {number} are dead-lettered"))?;
        ensure!(delivery.text().starts_with("big"));
        delivery.ack().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_or_rpc_server_without_acknowledgement_is_refused_before_it_gets_anything() -> Result<()> {
    async fn subscribe(_: SetupChannel) -> common::Result<BasicConsumeArguments> {
        Ok(BasicConsumeArguments::new("q", "").auto_ack(true).finish())
    }
    fn refused<T>(outcome: common::Result<T>) -> Result<()> {
        match outcome {
            Err(Error::Invalid(reason)) if reason.contains("auto_ack") => Ok(()),
            Err(other) => anyhow::bail!("{other}"),
            Ok(_) => anyhow::bail!("it works without acknowledgement"),
        }
    }
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", ["x".to_owned()]).await?;
    refused(Worker::new(&channel, subscribe).await)?;
    refused(RpcServer::new(&channel, subscribe).await)?;
    crate::expect_in(&channel, "q", "x").await
}

/// After the recovery the 1 s task starts again within seconds, although the 30 s task from before still runs.
#[tokio::test]
async fn a_short_task_is_done_again_soon_after_a_cut_although_a_long_one_still_runs() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "tasks", ["1".to_owned(), "30".to_owned()]).await?;
    let subscribe = |channel: SetupChannel| async move {
        channel.basic_qos(BasicQosArguments::new(0, 2, false)).await?;
        Ok(BasicConsumeArguments::new("tasks", ""))
    };
    let worker = Worker::new(&channel, subscribe).await?;
    let (begun, mut beginnings) = tokio::sync::mpsc::unbounded_channel();
    let working = tokio::spawn(worker.run(move |seconds: u64| {
        let _ = begun.send(seconds);
        async move {
            sleep(Duration::from_secs(seconds)).await;
            Ok::<_, Error>(())
        }
    }));
    let mut first = [beginnings.recv().await, beginnings.recv().await];
    first.sort_unstable();
    ensure!(first == [Some(1), Some(30)], "{first:?}");
    fixture.host.close_all_connections().await?;
    let again =
        timeout(Duration::from_secs(20), beginnings.recv()).await.context("no new task while the long one runs")?;
    ensure!(again.is_some());
    ensure!(!working.is_finished());
    Ok(())
}
