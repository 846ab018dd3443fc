//! The manager: one connection, named channels, setups, and closing.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use amqprs::channel::{BasicConsumeArguments, BasicPublishArguments, ExchangeDeclareArguments, QueueDeclareArguments};
use anyhow::{Context, Result, ensure};
use common::{ConnectOptions, ConnectionManager, Error, SetupChannel};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet, time::timeout};

use crate::{Fixture, expect_in, plain, queue, to};

#[tokio::test]
async fn a_manager_that_is_never_used_does_not_connect() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("amqp://127.0.0.1:{}", listener.local_addr()?.port());
    let connections = ConnectionManager::new(url.parse()?);
    connections.close_all().await?;
    let connected = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
    ensure!(connected.is_err(), "it has connected");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_at_once_get_one_connection_and_one_channel() -> Result<()> {
    let fixture = Fixture::new().await?;
    let mut tasks = JoinSet::new();
    for number in 0..50 {
        let connections = fixture.connections.clone();
        tasks.spawn(async move {
            let channel = connections.channel("shared").await?;
            channel.queue_declare(queue(&format!("q{number}"))).await
        });
    }
    for outcome in tasks.join_all().await {
        outcome?;
    }
    ensure!(fixture.connection_names().await?.len() == 1, "more than one connection");
    ensure!(fixture.channels().await? == 1, "more than one channel");
    Ok(())
}

#[tokio::test]
async fn a_closed_channel_is_opened_again_when_the_program_asks_for_it() -> Result<()> {
    let fixture = Fixture::new().await?;
    let first = fixture.channel().await?;
    first.queue_declare(queue("q")).await?;
    first.close().await?;
    ensure!(
        matches!(first.publish(to("q"), plain(), "x").await, Err(Error::Shutdown(_))),
        "a closed channel still publishes"
    );
    let second = fixture.channel().await?;
    second.publish(to("q"), plain(), "y").await?;
    expect_in(&second, "q", "y").await
}

#[tokio::test]
async fn errors_have_the_brokers_own_words_and_the_channel_goes_on() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    for _ in 0..3 {
        let error = channel
            .queue_declare(QueueDeclareArguments::new("q"))
            .await
            .expect_err("it should differ from the existing queue");
        let text = error.to_string();
        ensure!(
            text.contains("cannot declare queue `q`: 406 PRECONDITION_FAILED - inequivalent arg 'durable'"),
            "{text}"
        );
        ensure!(matches!(error, Error::Closed { code: 406, .. }), "{text}");

        let missing = QueueDeclareArguments::new("missing").passive(true).finish();
        let error = channel.queue_declare(missing).await.expect_err("the queue should be missing");
        ensure!(error.to_string().contains("404 NOT_FOUND - no queue 'missing'"), "{error}");
    }
    ensure!(fixture.connection_names().await?.len() == 1, "the connection changed");
    Ok(())
}

#[tokio::test]
async fn setup_steps_run_in_order_at_each_opening_and_a_failed_first_run_is_not_kept() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let ran = Arc::new(Mutex::new(Vec::new()));
    for step in ["first", "second"] {
        let ran = ran.clone();
        let run = move |_| {
            ran.lock().expect("no other thread has panicked").push(step);
            async { Ok(()) }
        };
        channel.setup(run).await?;
    }
    let failing = |_| async { Err(Error::other("not today")) };
    let error = channel.setup(failing).await.expect_err("the step should fail");
    ensure!(error.to_string() == "not today", "{error}");
    let panicking = |_| async { panic!("the test panics on purpose") };
    ensure!(channel.setup(panicking).await.is_err(), "a panic is an error");

    // The broker closes the channel. For the next call it is open again.
    channel
        .queue_declare(QueueDeclareArguments::new("missing").passive(true).finish())
        .await
        .expect_err("the queue should be missing");
    channel.queue_declare(queue("q")).await?;
    let ran = ran.lock().expect("no other thread has panicked").clone();
    ensure!(ran == ["first", "second", "first", "second"], "{ran:?}");
    Ok(())
}

#[tokio::test]
async fn a_setups_declarations_are_restored_with_the_channel() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let declare = |channel: common::SetupChannel| async move {
        channel.exchange_declare(ExchangeDeclareArguments::new("logs", "fanout")).await
    };
    channel.setup(declare).await?;
    channel.exchange_delete(amqprs::channel::ExchangeDeleteArguments::new("logs")).await?;
    channel
        .queue_declare(QueueDeclareArguments::new("missing").passive(true).finish())
        .await
        .expect_err("the queue should be missing");
    channel.publish(amqprs::channel::BasicPublishArguments::new("logs", ""), plain(), "x").await?;
    Ok(())
}

#[tokio::test]
async fn close_all_may_be_called_twice_and_at_once() -> Result<()> {
    let fixture = Fixture::new().await?;
    fixture.channel().await?;
    let (one, other) = tokio::join!(fixture.connections.close_all(), fixture.connections.close_all());
    one.and(other)?;
    fixture.connections.close_all().await?;
    gone(&fixture.host).await?;
    let error = fixture.connections.channel("later").await.err().context("a closed manager still opens channels")?;
    ensure!(matches!(error, Error::Shutdown(_)), "{error}");
    Ok(())
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_connection() -> Result<()> {
    let Fixture { host, connections } = Fixture::new().await?;
    let channel = connections.channel("kept").await?;
    drop(connections);
    // A channel holds its manager.
    channel.queue_declare(queue("q")).await?;
    ensure!(host.connections().await?.len() == 1, "the connection ended too early");
    drop(channel);
    gone(&host).await
}

/// Waits until the broker lists no connection. The list changes a moment after a connection has ended.
async fn gone(host: &testbed::VirtualHost<'_>) -> Result<()> {
    let since = Instant::now();
    while !host.connections().await?.is_empty() {
        ensure!(since.elapsed() < Duration::from_secs(10), "the connection is still open");
    }
    Ok(())
}

#[tokio::test]
async fn a_first_connection_fails_at_once_or_is_waited_for() -> Result<()> {
    // This port was free a moment ago, so nothing listens on it.
    let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let url = format!("amqp://127.0.0.1:{port}");
    let since = Instant::now();
    let error =
        ConnectionManager::new(url.parse()?).channel("x").await.err().context("nothing listens on this port")?;
    ensure!(matches!(error, Error::Connect { .. }) && since.elapsed() < Duration::from_secs(5), "{error}");

    let patient = url.parse::<ConnectOptions>()?.fail_fast(false).operation_timeout(Duration::from_secs(2));
    let connections = ConnectionManager::new(patient.connection_timeout(Duration::from_millis(500)));
    let error = connections.channel("x").await.err().context("nothing listens on this port")?;
    ensure!(error.to_string().contains("refused") && matches!(error, Error::Timeout { .. }), "{error}");
    ensure!(since.elapsed() > Duration::from_millis(1500), "it gave up at once");
    Ok(())
}

#[tokio::test]
async fn a_port_that_accepts_and_says_nothing_is_an_error_in_time() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("amqp://127.0.0.1:{}?connection_timeout=1", listener.local_addr()?.port());
    let accepted = Arc::new(AtomicUsize::new(0));
    let counter = accepted.clone();
    let silent = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            open.push(stream);
        }
    });
    let error = ConnectionManager::new(url.parse()?).channel("x").await.err().context("the port does not answer")?;
    ensure!(error.to_string().contains("no answer within 1 s"), "{error}");
    ensure!(accepted.load(Ordering::Relaxed) > 0, "no client has connected");
    silent.abort();
    Ok(())
}

/// RabbitMQ closes the whole connection because of a declaration that is longer than a frame. `common` measures what a
/// setup declares, and refuses it before. But RabbitMQ 4.3 also ends the connection when it has to cut a name in its
/// answer that the user has no right to publish there.
#[tokio::test]
async fn a_setup_that_closes_the_connection_each_time_fails_soon() -> Result<()> {
    let fixture = Fixture::new().await?;
    if fixture.host.broker().skip_below("4.3").await? {
        return Ok(());
    }
    let rights = json!({"configure": ".*", "write": "^(q|amq\\.default)$", "read": ".*"});
    fixture.host.put(&format!("/api/permissions/{{vhost}}/{}", fixture.host.name()), rights).await?;
    let (channel, other) = (fixture.channel().await?, fixture.connections.channel("other").await?);
    let refused = |outcome: common::Result<()>| match outcome {
        Err(Error::Lost { code: Some(541), .. }) => Ok(()),
        outcome => Err(anyhow::anyhow!("{outcome:?}")),
    };
    let soon = Duration::from_secs(30);
    let breaking = move |channel: SetupChannel| {
        let other = other.clone();
        async move {
            let name = "щ".repeat(100);
            drop(other.publish(BasicPublishArguments::new(&name, ""), plain(), "x").await);
            channel.queue_declare(queue("q")).await.map(drop)
        }
    };
    refused(timeout(soon, channel.setup(breaking.clone())).await?)?;
    let consumer = channel.consume(move |channel| {
        let breaks = breaking(channel);
        async move { breaks.await.map(|()| BasicConsumeArguments::new("q", "")) }
    });
    refused(timeout(soon, consumer).await?.map(drop))?;
    // The rest still works. This channel may notice the last loss a moment later, but a setup is run again after it.
    channel.setup(|channel| async move { channel.queue_declare(queue("q")).await.map(drop) }).await?;
    channel.publish(to("q"), plain(), "still here").await?;
    expect_in(&channel, "q", "still here").await
}
