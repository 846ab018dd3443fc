//! Messages that are redelivered: which returns a quorum queue counts, and which it does not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use amqprs::channel::{BasicConsumeArguments, BasicGetArguments, BasicQosArguments};
use anyhow::{Context, Result, ensure};
use common::{Channel, Error, ProcessOptions, SetupChannel, quorum_queue, tasks::Worker};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{Fixture, consume, next, plain, queue, to};

const PATIENCE: Duration = Duration::from_secs(60);

/// A quorum queue that dead-letters a message after two counted returns, and the queue for its dead letters.
async fn jobs(channel: SetupChannel) -> common::Result<BasicConsumeArguments> {
    channel.queue_declare(queue("failed")).await?;
    let jobs = quorum_queue("jobs")
        .with("x-delivery-limit", 2)
        .with("x-dead-letter-exchange", "")
        .with("x-dead-letter-routing-key", "failed");
    channel.queue_declare(jobs).await?;
    channel.basic_qos(BasicQosArguments::new(0, 1, false)).await?;
    Ok(BasicConsumeArguments::new("jobs", ""))
}

/// Reports when each task arrives, and fails the task this many times.
async fn worker(channel: &Channel, failures: usize) -> Result<mpsc::UnboundedReceiver<(Value, Instant)>> {
    let (seen, told) = mpsc::unbounded_channel();
    let failed = Arc::new(AtomicUsize::new(0));
    let handler = move |task: Value| {
        let fails = task["fails"] == true && failed.fetch_add(1, Ordering::Relaxed) < failures;
        let _ = seen.send((task, Instant::now()));
        async move { if fails { Err(Error::other("not yet")) } else { Ok(()) } }
    };
    tokio::spawn(Worker::new(channel, jobs).await?.run(handler));
    Ok(told)
}

#[tokio::test]
async fn a_task_that_fails_goes_back_after_growing_pauses_and_does_not_count_where_rabbitmq_can_do_that() -> Result<()>
{
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let mut told = worker(&channel, 4).await?;
    let mut failed = consume(&channel, "failed", true).await?;
    channel.publish(to("jobs"), plain(), json!({"fails": true}).to_string()).await?;
    let version = fixture.host.broker().version().await?;
    let counts = ["3.", "4.0", "4.1", "4.2"].iter().any(|older| version.starts_with(older));
    let times = if counts { 3 } else { 5 };
    let mut came = Vec::new();
    for time in 0..times {
        let (_, at) = timeout(PATIENCE, told.recv())
            .await
            .with_context(|| format!("the task came only {time} times"))?
            .context("the worker has ended")?;
        came.push(at);
    }
    let pauses: Vec<_> = came.windows(2).map(|times| times[1] - times[0]).collect();
    // It comes back at once, then after 1 s, 2 s and 4 s.
    for (pause, least) in pauses.iter().zip([0, 1, 2, 4]) {
        ensure!(*pause >= Duration::from_secs(least), "{pauses:?}");
    }
    if counts {
        // An older RabbitMQ counts each return, and dead-letters the message when the limit is exceeded.
        next(&mut failed).await?;
    }
    channel.publish(to("jobs"), plain(), json!({"fails": false}).to_string()).await?;
    let (task, _) = timeout(PATIENCE, told.recv()).await?.context("the worker has ended")?;
    ensure!(task["fails"] == false, "{task}");
    Ok(())
}

#[tokio::test]
async fn a_message_may_fail_25_times_in_a_handler_where_rabbitmq_does_not_count_returns() -> Result<()> {
    let fixture = Fixture::new().await?;
    if fixture.host.broker().skip_below("4.3").await? {
        return Ok(());
    }
    let channel = fixture.channel().await?;
    channel.queue_declare(quorum_queue("q")).await?;
    channel.publish(to("q"), plain(), "x").await?;
    let again = ProcessOptions { requeue: true, reject_on_redelivered: false };
    let mut messages = channel.consume(|_| async { Ok(BasicConsumeArguments::new("q", "")) }).await?;
    for _ in 0..25 {
        next(&mut messages).await?.process(again, async |_| Err::<(), _>("not yet")).await?;
    }
    next(&mut messages).await?.process(again, async |_| Ok::<_, Error>(())).await?;
    Ok(())
}

/// Every RabbitMQ version tested so far counts a lost channel. With a dead-letter exchange the message is not lost.
#[tokio::test]
async fn a_message_whose_connection_is_lost_again_and_again_is_dead_lettered() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let mut jobs = channel.consume(jobs).await?;
    let mut failed = fixture
        .connections
        .channel("failed")
        .await?
        .consume(|channel: SetupChannel| async move {
            channel.queue_declare(queue("failed")).await?;
            Ok(BasicConsumeArguments::new("failed", ""))
        })
        .await?;
    channel.publish(to("jobs"), plain(), "x").await?;
    let dead = loop {
        tokio::select! {
            job = jobs.try_next() => {
                let job = job?.context("the stream has ended")?;
                fixture.host.close_all_connections().await?;
                drop(job);
            }
            dead = next(&mut failed) => break dead?,
        }
    };
    ensure!(dead.text() == "x", "{}", dead.text());
    dead.ack().await?;
    Ok(())
}

#[tokio::test]
async fn a_worker_that_stops_gives_back_at_once_the_tasks_that_wait_for_another_attempt() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let (seen, mut told) = mpsc::unbounded_channel();
    let handler = move |task: Value| {
        let _ = seen.send(task);
        async { Err::<(), _>("never") }
    };
    let subscribe = |channel: SetupChannel| async move {
        channel.queue_declare(queue("tasks")).await?;
        channel.basic_qos(BasicQosArguments::new(0, 1, false)).await?;
        Ok(BasicConsumeArguments::new("tasks", ""))
    };
    let working = tokio::spawn(Worker::new(&channel, subscribe).await?.run_until(handler, stopped));
    channel.publish(to("tasks"), plain(), "{}").await?;
    // After the fifth attempt it waits for eight seconds.
    for _ in 0..5 {
        timeout(PATIENCE, told.recv()).await?.context("the worker has ended")?;
    }
    let since = Instant::now();
    drop(stop);
    timeout(PATIENCE, working).await???;
    ensure!(since.elapsed() < Duration::from_secs(6), "the worker waited for {:?}", since.elapsed());
    let task = loop {
        // The message was given back on another channel, so it may arrive a moment later.
        if let Some(task) = channel.get(BasicGetArguments::new("tasks")).await? {
            break task;
        }
        ensure!(since.elapsed() < PATIENCE, "the task is lost");
    };
    ensure!(task.text() == "{}", "{}", task.text());
    task.ack().await?;
    Ok(())
}
