//! Remote procedure calls while servers and clients lose their connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use amqprs::channel::{BasicConsumeArguments, BasicPublishArguments, BasicQosArguments};
use anyhow::{Context, Result, ensure};
use common::{Channel, ConnectionManager, Error, Message, SetupChannel, rpc::RpcServer};
use testbed::{Broker, Proxy, VirtualHost};
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
    time::timeout,
};

use crate::{
    Fixture, next, plain, queue,
    rpc::{BOTH, Replies},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A separate connection, behind its own proxy.
struct Line {
    proxy: Proxy,
    channel: Channel,
    _connections: ConnectionManager,
}

impl Line {
    async fn new(host: &VirtualHost<'_>) -> Result<Self> {
        let proxy = Proxy::start(host.broker().port()).await?;
        let (name, password, port) = (host.name(), host.password(), proxy.port());
        let url = format!("amqp://{name}:{password}@127.0.0.1:{port}/{name}?reconnect_interval=1");
        let connections = ConnectionManager::new(url.parse()?);
        Ok(Self { proxy, channel: connections.channel("test").await?, _connections: connections })
    }
}

async fn requests(channel: SetupChannel) -> common::Result<BasicConsumeArguments> {
    channel.queue_declare(queue("echo")).await?;
    channel.basic_qos(BasicQosArguments::new(0, 2, false)).await?;
    Ok(BasicConsumeArguments::new("echo", ""))
}

async fn many_requests(channel: SetupChannel) -> common::Result<BasicConsumeArguments> {
    let arguments = requests(channel.clone()).await?;
    channel.basic_qos(BasicQosArguments::new(0, 50, false)).await?;
    Ok(arguments)
}

/// Serves requests, and counts them.
async fn serve(channel: &Channel) -> Result<Arc<AtomicUsize>> {
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let echo = move |request: Message| {
        count.fetch_add(1, Ordering::Relaxed);
        async move { Ok::<_, Error>(request.body) }
    };
    tokio::spawn(RpcServer::new(channel, many_requests).await?.serve(echo));
    Ok(served)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_calls_end_while_connections_break_with_a_reply_queue() -> Result<()> {
    ten_thousand_calls(Replies::Queue).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_calls_end_while_connections_break_with_direct_replies() -> Result<()> {
    ten_thousand_calls(Replies::Direct).await
}

/// 500 calls at a time, and two servers. After every 500 calls one of the three connections breaks.
async fn ten_thousand_calls(replies: Replies) -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let (one, other, asking) = (Line::new(&host).await?, Line::new(&host).await?, Line::new(&host).await?);
    let shares = [serve(&one.channel).await?, serve(&other.channel).await?];
    let client = replies.client(&asking.channel).await?;
    let (mut calls, mut answered, mut lost) = (JoinSet::new(), 0, 0);
    for number in 0..10_000 {
        let client = client.clone();
        calls.spawn(async move { (number, client.call("echo", number.to_string(), PATIENCE).await) });
        while calls.len() >= 500 || (number == 9_999 && !calls.is_empty()) {
            let (number, outcome) = calls.join_next().await.context("no call is pending")??;
            match outcome {
                Ok(reply) => {
                    ensure!(reply.text() == number.to_string(), "the answer to {number} is {}", reply.text());
                    answered += 1;
                }
                // The connection of this call broke.
                Err(Error::Lost { .. } | Error::Unconfirmed { .. }) => lost += 1,
                Err(error) => return Err(error.into()),
            }
            if (answered + lost) % 500 == 0 {
                match fastrand::u8(..6) {
                    0 => asking.proxy.reset(),
                    1 | 2 => one.proxy.reset(),
                    _ => other.proxy.cut(),
                }
            }
        }
    }
    ensure!(answered + lost == 10_000 && client.pending() == 0, "{} calls are left", client.pending());
    ensure!(answered > 3_000, "only {answered} answers");
    let shares = shares.map(|served| served.load(Ordering::Relaxed));
    ensure!(shares.iter().all(|&share| share > 1_000), "the servers had {shares:?} requests");
    Ok(())
}

#[tokio::test]
async fn a_server_that_dies_between_reply_and_acknowledgement_causes_a_second_reply_that_does_no_harm() -> Result<()> {
    for replies in BOTH {
        let fixture = Fixture::new().await?;
        let channel = fixture.channel().await?;
        let client = replies.client(&channel).await?;
        let dying = Line::new(&fixture.host).await?;
        let mut requests = dying.channel.consume(requests).await?;
        let call = tokio::spawn({
            let client = client.clone();
            async move { client.call("echo", "question", PATIENCE).await }
        });

        let request = next(&mut requests).await?;
        let reply_to = request.properties.reply_to().context("the request has no `reply_to`")?;
        let id = request.properties.correlation_id().context("the request has no `correlation_id`")?;
        let to = BasicPublishArguments::new("", reply_to);
        dying.channel.publish(to, plain().with_correlation_id(id).finish(), "first answer").await?;
        ensure!(call.await??.text() == "first answer");
        drop((requests, request));
        dying._connections.close_all().await?;

        let (again, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let answer = move |request: Message| {
            let _ = again.send(request.redelivered);
            async move { Ok::<_, Error>(request.body) }
        };
        tokio::spawn(RpcServer::new(&channel, many_requests).await?.serve(answer));
        ensure!(asked.recv().await == Some(true), "the request did not come again");
        // The second reply arrives before this one, because both take the same way.
        ensure!(client.call("echo", "next", PATIENCE).await?.text() == "next");
        ensure!(client.pending() == 0, "a call is still pending");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_stopped_answers_the_requests_it_has_begun_and_leaves_the_rest_to_others() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let client = Replies::Queue.client(&channel).await?;
    let (begun, mut beginnings) = tokio::sync::mpsc::unbounded_channel();
    let go = Arc::new(Semaphore::new(0));
    let (stop, stopped) = oneshot::channel::<()>();
    let slow = {
        let go = go.clone();
        move |request: Message| {
            let (begun, go) = (begun.clone(), go.clone());
            async move {
                let _ = begun.send(());
                let _permit = go.acquire().await.map_err(Error::other)?;
                Ok::<_, Error>(request.text() + " by the first")
            }
        }
    };
    let server = RpcServer::new(&channel, requests).await?;
    let serving = tokio::spawn(server.serve_until(slow, async { drop(stopped.await) }));
    let mut calls = JoinSet::new();
    for number in 0..5 {
        let client = client.clone();
        calls.spawn(async move { client.call("echo", number.to_string(), PATIENCE).await });
    }
    // Wait until the server has begun as many requests as its prefetch.
    for _ in 0..2 {
        beginnings.recv().await.context("the server has ended")?;
    }
    drop(stop);
    while channel.queue_declare(queue("echo")).await?.consumers > 0 {}
    ensure!(!serving.is_finished(), "the server ended too early");
    go.add_permits(2);
    timeout(PATIENCE, serving).await???;
    let waiting = channel.queue_declare(queue("echo")).await?;
    ensure!(waiting.messages == 3, "{} requests are in the queue", waiting.messages);

    serve(&channel).await?;
    let mut by_the_first = 0;
    for reply in calls.join_all().await {
        by_the_first += usize::from(reply?.text().ends_with(" by the first"));
    }
    ensure!(by_the_first == 2, "{by_the_first}");
    Ok(())
}

#[tokio::test]
async fn a_server_works_on_no_more_than_its_prefetch_even_after_losses() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let (asking, serving) = (Line::new(&host).await?, Line::new(&host).await?);
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let go = Arc::new(Semaphore::new(0));
    let (begun, mut beginnings) = tokio::sync::mpsc::unbounded_channel();
    let slow = {
        let (running, most, go) = (running.clone(), most.clone(), go.clone());
        move |request: Message| {
            let (running, most, go, begun) = (running.clone(), most.clone(), go.clone(), begun.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let _ = begun.send(());
                drop(go.acquire().await);
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Error>(request.body)
            }
        }
    };
    tokio::spawn(RpcServer::new(&serving.channel, requests).await?.serve(slow));
    let client = Replies::Queue.client(&asking.channel).await?;
    let mut calls = JoinSet::new();
    for number in 0..6 {
        let client = client.clone();
        calls.spawn(async move { (number, client.call("echo", number.to_string(), PATIENCE).await) });
    }
    for _ in 0..2 {
        beginnings.recv().await.context("the server has ended")?;
    }
    for _ in 0..3 {
        serving.proxy.cut();
        while asking.channel.queue_declare(queue("echo")).await?.consumers > 0 {}
        // The server has reconnected, and RabbitMQ sends it as many requests as before.
        while asking.channel.queue_declare(queue("echo")).await?.consumers == 0 {}
    }
    go.add_permits(1_000);
    for (number, reply) in calls.join_all().await {
        ensure!(reply?.text() == number.to_string(), "the call for {number} got the reply of another call");
    }
    ensure!(most.load(Ordering::SeqCst) == 2, "{} at a time", most.load(Ordering::SeqCst));
    Ok(())
}

#[tokio::test]
async fn a_reply_that_is_too_large_becomes_an_error_reply_and_does_not_affect_others() -> Result<()> {
    // This is the default limit of RabbitMQ 4. It needs a private broker, because the default of 3.x is 128 MiB.
    let broker = Broker::builder().configuration("max_message_size = 16777216").start().await?;
    let connections = ConnectionManager::new(broker.url().parse()?);
    let channel = connections.channel("server").await?;
    let grow = |request: Message| async move {
        let size = if request.text() == "large" { 17 << 20 } else { 10 };
        Ok::<_, Error>(vec![b'x'; size])
    };
    tokio::spawn(RpcServer::new(&channel, many_requests).await?.serve(grow));
    let client = Replies::Direct.client(&connections.channel("client").await?).await?;
    let mut calls = JoinSet::new();
    for number in 0..40 {
        let (client, body) = (client.clone(), if number == 20 { "large" } else { "small" });
        calls.spawn(async move { (body, client.call("echo", body, PATIENCE).await) });
    }
    for (body, reply) in calls.join_all().await {
        match (body, reply) {
            ("large", Err(Error::Remote(error))) => ensure!(error.message.contains("larger than"), "{error}"),
            ("small", Ok(reply)) => ensure!(reply.body.len() == 10),
            (body, reply) => anyhow::bail!("{body}: unexpected: {:?}", reply.map(|reply| reply.body.len())),
        }
    }
    Ok(())
}
