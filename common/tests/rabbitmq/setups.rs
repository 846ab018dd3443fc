//! Setup functions of the program, which the library runs: whatever they do, nothing hangs, and other channels still work.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use amqprs::channel::BasicConsumeArguments;
use anyhow::{Context, Result, ensure};
use common::{Channel, ConnectionManager, Error, Event, SetupChannel};
use tokio::time::{sleep, timeout};

use crate::{Fixture, consume, expect_in, next, plain, queue, to};

const ROOM: Duration = Duration::from_secs(30);

async fn fixture_with_short_deadlines() -> Result<Fixture> {
    Fixture::with(|options| options.operation_timeout(Duration::from_secs(2))).await
}

/// Cuts the connection and waits until the client has noticed the loss.
async fn cut(fixture: &Fixture) -> Result<()> {
    let mut events = fixture.connections.events();
    fixture.host.close_all_connections().await?;
    while !matches!(timeout(ROOM, events.next()).await?.context("the manager is closed")?, Event::Lost(_)) {}
    Ok(())
}

/// Publishes as soon as the channel works again.
async fn publish(channel: &Channel, name: &str, body: &str) -> Result<()> {
    Ok(timeout(ROOM, channel.publish_at_least_once(to(name), plain(), body)).await??)
}

#[tokio::test]
async fn a_setup_dropped_half_way_leaves_nothing_behind() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let runs = Arc::new(AtomicUsize::new(0));
    let (begun, mut beginning) = tokio::sync::mpsc::unbounded_channel();
    let counted = runs.clone();
    let hangs = channel.setup(move |channel| {
        counted.fetch_add(1, Ordering::Relaxed);
        let begun = begun.clone();
        async move {
            channel.queue_declare(queue("half")).await?;
            let _ = begun.send(());
            pending().await
        }
    });
    tokio::select! {
        outcome = hangs => anyhow::bail!("the setup ended: {outcome:?}"),
        _ = beginning.recv() => {}
    }
    timeout(ROOM, channel.setup(|channel| async move { channel.queue_declare(queue("q")).await.map(drop) })).await??;
    timeout(ROOM, channel.publish(to("q"), plain(), "before")).await??;
    cut(&fixture).await?;
    publish(&channel, "q", "after").await?;
    expect_in(&channel, "q", "before").await?;
    expect_in(&channel, "q", "after").await?;
    ensure!(runs.load(Ordering::Relaxed) == 1, "the dropped setup ran again");
    Ok(())
}

#[tokio::test]
async fn a_setup_that_panics_before_its_async_block_is_an_error_to_its_caller() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    fn panics(_: SetupChannel) -> std::future::Ready<common::Result<()>> {
        panic!("the test panics on purpose")
    }
    let error = timeout(ROOM, channel.setup(panics)).await?.expect_err("it should panic");
    ensure!(error.to_string().contains("panicked"), "{error}");
    let subscribe =
        |_| -> std::future::Ready<common::Result<BasicConsumeArguments>> { panic!("the test panics on purpose") };
    let error = timeout(ROOM, channel.consume(subscribe)).await?.err().context("it should panic")?;
    ensure!(error.to_string().contains("panicked"), "{error}");
    channel.queue_declare(queue("q")).await?;
    publish(&channel, "q", "x").await?;
    timeout(ROOM, channel.close()).await??;
    Ok(timeout(ROOM, fixture.connections.close_all()).await??)
}

/// A later run that fails is repeated. Here it fails with a panic, an error and an endless wait, before it succeeds.
#[tokio::test]
async fn a_setup_that_fails_at_later_runs_is_run_again() -> Result<()> {
    let fixture = fixture_with_short_deadlines().await?;
    let channel = fixture.channel().await?;
    let (steps, subscriptions) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    async fn misbehave(run: usize) -> common::Result<()> {
        match run {
            1 => panic!("the test panics on purpose"),
            2 => Err(Error::other("as told to")),
            3 => pending().await,
            _ => Ok(()),
        }
    }
    let count = steps.clone();
    let step = move |channel: SetupChannel| {
        let run = count.fetch_add(1, Ordering::Relaxed);
        assert!(run != 4, "before the async block");
        async move {
            misbehave(run).await?;
            channel.queue_declare(queue("steps")).await.map(drop)
        }
    };
    channel.setup(step).await?;
    let count = subscriptions.clone();
    let subscribe = move |channel: SetupChannel| {
        let run = count.fetch_add(1, Ordering::Relaxed);
        assert!(run != 4, "before the async block");
        async move {
            misbehave(run).await?;
            channel.queue_declare(queue("q")).await?;
            Ok(BasicConsumeArguments::new("q", ""))
        }
    };
    let mut consumer = channel.consume(subscribe).await?;
    cut(&fixture).await?;
    publish(&channel, "steps", "x").await?;
    publish(&channel, "q", "y").await?;
    ensure!(next(&mut consumer).await?.text() == "y");
    ensure!(
        steps.load(Ordering::Relaxed) == 6 && subscriptions.load(Ordering::Relaxed) == 6,
        "not all runs took place"
    );
    Ok(())
}

#[tokio::test]
async fn a_setup_that_never_ends_ends_by_its_deadline_and_closing_does_not_wait_for_it() -> Result<()> {
    let fixture = fixture_with_short_deadlines().await?;
    let channel = fixture.channel().await?;
    let error = timeout(ROOM, channel.setup(|_| pending())).await?.expect_err("it never ends");
    ensure!(matches!(error, Error::Timeout { .. }) && error.to_string().contains("a setup function"), "{error}");
    let error = timeout(ROOM, channel.consume(|_| pending())).await?.err().context("it never ends")?;
    ensure!(matches!(error, Error::Timeout { .. }) && error.to_string().contains("a setup function"), "{error}");

    // Now the deadline is long, so only closing ends them.
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let setting_up = tokio::spawn({
        let channel = channel.clone();
        async move { channel.setup(|_| pending()).await }
    });
    let other = fixture.connections.channel("other").await?;
    let consuming = tokio::spawn(async move { other.consume(|_| pending()).await.map(drop) });
    channel.queue_declare(queue("q")).await?;
    timeout(Duration::from_secs(15), channel.close()).await??;
    timeout(Duration::from_secs(15), fixture.connections.close_all()).await??;
    ensure!(matches!(setting_up.await?, Err(Error::Shutdown(_))));
    ensure!(matches!(consuming.await?, Err(Error::Shutdown(_))));
    Ok(())
}

#[tokio::test]
async fn a_setup_that_uses_its_own_channel_is_refused_at_its_first_run() -> Result<()> {
    fn refused<T>(outcome: common::Result<T>) -> common::Result<T> {
        match outcome {
            Err(Error::Invalid(reason)) if reason.contains("a setup cannot use the channel") => {
                Err(Error::other("refused"))
            }
            other => other,
        }
    }
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    for way in 0..4 {
        let own = channel.clone();
        let step = move |_| {
            let own = own.clone();
            async move {
                match way {
                    0 => refused(own.publish(to("q"), plain(), "x").await),
                    1 => refused(own.queue_declare(queue("q")).await.map(drop)),
                    2 => refused(own.setup(|_| async { Ok(()) }).await),
                    _ => refused(
                        consume(&own, "q", true)
                            .await
                            .map(drop)
                            .map_err(|error| error.downcast::<Error>().unwrap_or_else(Error::other)),
                    ),
                }
            }
        };
        let error = timeout(ROOM, channel.setup(step)).await?.expect_err("it should be refused");
        ensure!(error.to_string() == "refused", "{way}: {error}");
    }
    // Using another channel works, also at later runs.
    let other = fixture.connections.channel("other").await?;
    let step = move |_| {
        let other = other.clone();
        async move { other.publish_at_least_once(to("q"), plain(), "set up").await }
    };
    channel.setup(step).await?;
    expect_in(&channel, "q", "set up").await?;
    cut(&fixture).await?;
    publish(&channel, "q", "x").await?;
    expect_in(&channel, "q", "set up").await
}

/// With a heartbeat of 2 s RabbitMQ closes a silent connection after 4 s or 5 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setup_that_blocks_does_not_stop_the_heartbeats() -> Result<()> {
    let fixture = Fixture::with(|options| options.heartbeat(2).expect("2 is allowed")).await?;
    let channel = fixture.channel().await?;
    let mut events = fixture.connections.events();
    ensure!(matches!(events.next().await, Some(Event::Connected)));
    let blocks = |_| async {
        std::thread::sleep(Duration::from_secs(8));
        Ok(())
    };
    channel.setup(blocks).await?;
    ensure!(timeout(Duration::ZERO, events.next()).await.is_err(), "the connection was lost");
    Ok(())
}

#[test]
fn a_task_that_a_setup_spawns_belongs_to_the_program() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let fixture = Fixture::new().await?;
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let (closed, end) = tokio::sync::watch::channel(());
        let spawns = move |_| {
            let (sender, mut end) = (sender.clone(), end.clone());
            async move {
                tokio::spawn(async move {
                    let _ = end.changed().await;
                    let _ = sender.send("still there");
                });
                Ok(())
            }
        };
        fixture.channel().await?.setup(spawns).await?;
        timeout(ROOM, fixture.connections.close_all()).await??;
        closed.send(())?;
        ensure!(timeout(ROOM, receiver.recv()).await?.is_some(), "the task ended with the connection");
        Ok(())
    })
}

#[test]
fn when_the_programs_runtime_is_gone_the_setup_says_so() -> Result<()> {
    let second = tokio::runtime::Runtime::new()?;
    let fixture = second.block_on(fixture_with_short_deadlines())?;
    let first = tokio::runtime::Runtime::new()?;
    let channel = first.block_on(async {
        let channel = fixture.channel().await?;
        channel.setup(|channel| async move { channel.queue_declare(queue("q")).await.map(drop) }).await?;
        Ok::<_, anyhow::Error>(channel)
    })?;
    drop(first);
    second.block_on(async {
        cut(&fixture).await?;
        // The channel is never ready again. The errors of its calls say why.
        let error = timeout(ROOM, async {
            loop {
                match channel.publish(to("q"), plain(), "x").await {
                    Err(error @ Error::Timeout { .. }) => return error,
                    _ => sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await?;
        ensure!(error.to_string().contains("runtime"), "{error}");
        timeout(ROOM, fixture.connections.close_all()).await??;
        Ok(())
    })
}

#[tokio::test]
async fn outside_a_runtime_a_setup_is_refused() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let outcome = std::thread::spawn(move || {
        let setup = std::pin::pin!(channel.setup(|_| async { Ok(()) }));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        setup.poll(&mut context)
    });
    match outcome.join().map_err(|_| anyhow::anyhow!("the setup panicked"))? {
        std::task::Poll::Ready(Err(Error::Invalid(_))) => Ok(()),
        other => anyhow::bail!("unexpected: {other:?}"),
    }
}

#[tokio::test]
async fn ready_waits_until_all_channels_and_consumers_work_again() -> Result<()> {
    let fixture = fixture_with_short_deadlines().await?;
    fixture.connections.ready().await?;
    let (open, opened) = tokio::sync::watch::channel(true);
    let mut kept = Vec::new();
    for name in ["one", "two"] {
        let channel = fixture.connections.channel(name).await?;
        let opened = opened.clone();
        let step = move |_| {
            let mut opened = opened.clone();
            async move { opened.wait_for(|open| *open).await.map(drop).map_err(Error::other) }
        };
        channel.setup(step).await?;
        kept.push(consume(&channel, name, false).await?);
    }
    timeout(ROOM, fixture.connections.ready()).await??;
    open.send(false)?;
    cut(&fixture).await?;
    let error = timeout(ROOM, fixture.connections.ready()).await?.expect_err("the setups are still running");
    ensure!(matches!(error, Error::Timeout { .. }), "{error}");
    open.send(true)?;
    timeout(ROOM, fixture.connections.ready()).await??;
    // `ready` does not wait for consumers that are dropped.
    kept.pop();
    cut(&fixture).await?;
    timeout(ROOM, fixture.connections.ready()).await??;
    fixture.connections.close_all().await?;
    ensure!(matches!(fixture.connections.ready().await, Err(Error::Shutdown(_))));
    Ok(())
}

#[tokio::test]
async fn events_end_although_nothing_was_ever_connected() -> Result<()> {
    let connections = ConnectionManager::new("amqp://localhost:1".parse()?);
    let (mut events, mut late) = (connections.events(), connections.events());
    let waiting = tokio::spawn(async move { (events.next().await, events.next().await) });
    connections.close_all().await?;
    let (closed, end) = timeout(ROOM, waiting).await??;
    ensure!(matches!(closed, Some(Event::Closed)) && end.is_none(), "{closed:?}, {end:?}");
    ensure!(matches!(timeout(ROOM, late.next()).await?, Some(Event::Closed)));
    ensure!(timeout(ROOM, late.next()).await?.is_none());
    let mut later = connections.events();
    ensure!(matches!(timeout(ROOM, later.next()).await?, Some(Event::Closed)));
    ensure!(timeout(ROOM, later.next()).await?.is_none());
    Ok(())
}
