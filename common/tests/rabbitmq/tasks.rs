//! Master and workers: tasks in JSON.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use amqprs::channel::{BasicConsumeArguments, BasicGetArguments, BasicQosArguments};
use anyhow::{Context, Result, ensure};
use common::{
    Channel, Error, Outcome, ProcessOptions, SetupChannel,
    tasks::{Master, Worker},
};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{Fixture, expect_empty, plain, queue, to};

#[derive(Deserialize)]
struct Task {
    n: u32,
}

async fn tasks(channel: SetupChannel) -> common::Result<BasicConsumeArguments> {
    channel.queue_declare(queue("tasks")).await?;
    channel.basic_qos(BasicQosArguments::new(0, 2, false)).await?;
    Ok(BasicConsumeArguments::new("tasks", ""))
}

/// A worker that reports each task. `decide` decides its outcome from its number and how often it has come before.
async fn worker(
    channel: &Channel,
    options: Option<ProcessOptions>,
    decide: impl Fn(u32, usize) -> Result<Outcome, Error> + Send + Sync + Clone + 'static,
) -> Result<mpsc::UnboundedReceiver<u32>> {
    let (seen, told) = mpsc::unbounded_channel();
    let times: Arc<[AtomicUsize; 10]> = Arc::default();
    let handler = move |Task { n }| {
        let (seen, times, decide) = (seen.clone(), times.clone(), decide.clone());
        async move {
            let before = times[n as usize].fetch_add(1, Ordering::Relaxed);
            let _ = seen.send(n);
            decide(n, before)
        }
    };
    let mut worker = Worker::new(channel, tasks).await?;
    if let Some(options) = options {
        worker = worker.options(options);
    }
    tokio::spawn(worker.run(handler));
    Ok(told)
}

async fn expect(told: &mut mpsc::UnboundedReceiver<u32>, n: u32) -> Result<()> {
    let next = tokio::time::timeout(std::time::Duration::from_secs(20), told.recv()).await.context("no task came")?;
    ensure!(next == Some(n), "expected task {n}, got {next:?}");
    Ok(())
}

/// No task is left, not even an unacknowledged one: after all connections are closed, the queue is empty.
async fn expect_done(fixture: Fixture) -> Result<()> {
    fixture.connections.close_all().await?;
    let again = common::ConnectionManager::new(fixture.host.url().parse()?);
    expect_empty(&again.channel("look").await?, "tasks").await
}

#[tokio::test]
async fn a_task_is_persistent_json_and_without_its_queue_an_error() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let master = Master::new(&channel);
    let error = master.create_task("tasks", &json!({"n": 1})).await.expect_err("no queue");
    ensure!(matches!(&error, Error::Unroutable(_)) && error.to_string().contains("no queue `tasks`"), "{error}");
    let error = master.create_task("tasks", &json!([1])).await.expect_err("no object");
    ensure!(matches!(error, Error::Invalid(_)), "{error}");

    channel.queue_declare(queue("tasks")).await?;
    master.create_task("tasks", &json!({"n": 1, "a": [true, null, "ü"]})).await?;
    let task = channel.get(BasicGetArguments::new("tasks").no_ack(true).finish()).await?.context("no task came")?;
    ensure!(task.text() == r#"{"n":1,"a":[true,null,"ü"]}"#, "{}", task.text());
    ensure!(task.properties.delivery_mode() == Some(2), "{}", task.info());
    ensure!(task.properties.content_type().map(String::as_str) == Some("application/json"), "{}", task.info());
    Ok(())
}

#[tokio::test]
async fn a_task_that_fails_or_panics_comes_again_until_it_succeeds() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let mut told = worker(&channel, None, |n, before| match before {
        0 => Err(Error::other("not yet")),
        _ => {
            assert_ne!((n, before), (2, 1), "the test panics on purpose");
            Ok(Outcome::Ack)
        }
    })
    .await?;
    let master = Master::new(&channel);
    for n in [1, 2] {
        master.create_task("tasks", &json!({"n": n})).await?;
        for _ in 0..=n {
            expect(&mut told, n).await?;
        }
    }
    expect_done(fixture).await
}

#[tokio::test]
async fn a_failed_task_may_get_one_more_attempt_or_none() -> Result<()> {
    for (options, times) in [
        (ProcessOptions { requeue: true, reject_on_redelivered: true }, 2),
        (ProcessOptions { requeue: false, reject_on_redelivered: false }, 1),
    ] {
        let fixture = Fixture::new().await?;
        let channel = fixture.channel().await?;
        let fails = |n, _| if n == 1 { Err(Error::other("never")) } else { Ok(Outcome::Ack) };
        let mut told = worker(&channel, Some(options), fails).await?;
        let master = Master::new(&channel);
        master.create_task("tasks", &json!({"n": 1})).await?;
        for _ in 0..times {
            expect(&mut told, 1).await?;
        }
        master.create_task("tasks", &json!({"n": 2})).await?;
        expect(&mut told, 2).await?;
        expect_done(fixture).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_may_reject_a_task_or_put_it_back() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let mut told = worker(&channel, None, |n, before| {
        Ok(match (n, before) {
            (1, _) => Outcome::Reject,
            (2, 0) => Outcome::Requeue,
            _ => Outcome::Ack,
        })
    })
    .await?;
    let master = Master::new(&channel);
    for (n, times) in [(1, 1), (2, 2), (3, 1)] {
        master.create_task("tasks", &json!({"n": n})).await?;
        for _ in 0..times {
            expect(&mut told, n).await?;
        }
    }
    expect_done(fixture).await
}

#[tokio::test]
async fn a_message_that_is_not_a_task_is_rejected_for_good() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let mut told = worker(&channel, None, |_, _| Ok(Outcome::Ack)).await?;
    for body in ["", "no JSON", "{}", r#"{"n":"one"}"#] {
        channel.publish(to("tasks"), plain(), body).await?;
    }
    Master::new(&channel).create_task("tasks", &json!({"n": 1})).await?;
    expect(&mut told, 1).await?;
    expect_done(fixture).await
}

#[tokio::test]
async fn a_worker_runs_as_many_tasks_as_its_prefetch_and_finishes_them_when_it_is_stopped() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let (begun, mut beginnings) = mpsc::unbounded_channel();
    let (go, running) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (stop, stopped) = oneshot::channel::<()>();
    let handler = {
        let (go, running) = (go.clone(), running.clone());
        move |Task { n }| {
            let (go, running, begun) = (go.clone(), running.clone(), begun.clone());
            async move {
                running.fetch_add(1, Ordering::SeqCst);
                let _ = begun.send(n);
                go.acquire().await.map_err(Error::other)?.forget();
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Error>(())
            }
        }
    };
    let working = tokio::spawn(Worker::new(&channel, tasks).await?.run_until(handler, async { drop(stopped.await) }));
    let master = Master::new(&channel);
    for n in 0..5 {
        master.create_task("tasks", &json!({"n": n})).await?;
    }
    expect(&mut beginnings, 0).await?;
    expect(&mut beginnings, 1).await?;
    ensure!(
        running.load(Ordering::SeqCst) == 2 && beginnings.try_recv().is_err(),
        "it runs more tasks than its prefetch"
    );
    go.add_permits(1);
    expect(&mut beginnings, 2).await?;
    drop(stop);
    while channel.queue_declare(queue("tasks")).await?.consumers > 0 {}
    ensure!(!working.is_finished(), "the worker ended too early");
    go.add_permits(2);
    tokio::time::timeout(std::time::Duration::from_secs(20), working).await???;
    ensure!(channel.queue_declare(queue("tasks")).await?.messages == 2, "tasks are lost, or were requeued");
    Ok(())
}

/// Nineteen tasks end at once, and few acks acknowledge them all. The unfinished task between them stays unacknowledged.
#[tokio::test]
async fn an_unfinished_task_is_not_acknowledged_with_those_around_it() -> Result<()> {
    const PREFETCH: u16 = 20;
    const UNFINISHED: u32 = 7;
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let (begun, mut beginnings) = mpsc::unbounded_channel();
    let go = Arc::new(Semaphore::new(0));
    let handler = {
        let go = go.clone();
        move |Task { n }| {
            let (go, begun) = (go.clone(), begun.clone());
            async move {
                let _ = begun.send(n);
                if n == UNFINISHED {
                    std::future::pending::<()>().await;
                }
                go.acquire().await.map_err(Error::other)?.forget();
                Ok::<_, Error>(())
            }
        }
    };
    let subscribe = |channel: SetupChannel| async move {
        let consume = tasks(channel.clone()).await?;
        channel.basic_qos(BasicQosArguments::new(0, PREFETCH, false)).await?;
        Ok(consume)
    };
    tokio::spawn(Worker::new(&channel, subscribe).await?.run(handler));
    let master = Master::new(&channel);
    let begin = async |tasks: std::ops::Range<u32>, beginnings: &mut mpsc::UnboundedReceiver<u32>| {
        for n in tasks.clone() {
            master.create_task("tasks", &json!({"n": n})).await?;
        }
        for n in tasks {
            expect(beginnings, n).await?;
        }
        anyhow::Ok(())
    };
    let first = u32::from(PREFETCH);
    begin(0..first, &mut beginnings).await?;
    go.add_permits(usize::from(PREFETCH) - 1);
    // These fit into the prefetch only when all of the nineteen are acknowledged.
    begin(first..2 * first - 1, &mut beginnings).await?;

    fixture.connections.close_all().await?;
    let again = common::ConnectionManager::new(fixture.host.url().parse()?);
    let look = again.channel("look").await?;
    let mut left = Vec::new();
    while let Some(task) = look.get(BasicGetArguments::new("tasks")).await? {
        left.push(task.json::<Task>()?.n);
        task.ack().await?;
    }
    left.sort_unstable();
    ensure!(left == std::iter::once(UNFINISHED).chain(first..2 * first - 1).collect::<Vec<_>>(), "{left:?}");
    Ok(())
}
