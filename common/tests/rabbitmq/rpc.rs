//! Remote procedure calls: every call ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use amqprs::channel::{BasicConsumeArguments, BasicQosArguments};
use anyhow::{Context, Result, ensure};
use common::{
    Channel, Error, Message, SetupChannel,
    rpc::{RpcClient, RpcServer},
};
use tokio::{sync::oneshot, task::JoinSet};

use crate::{Fixture, consume, expect_empty, next, plain, queue, to};

const PATIENCE: Duration = Duration::from_secs(20);

/// The two ways to receive replies.
#[derive(Clone, Copy, Debug)]
pub enum Replies {
    Queue,
    Direct,
}
pub const BOTH: [Replies; 2] = [Replies::Queue, Replies::Direct];

impl Replies {
    pub async fn client(self, channel: &Channel) -> Result<Arc<RpcClient>> {
        Ok(Arc::new(match self {
            Replies::Queue => RpcClient::new(channel).await?,
            Replies::Direct => RpcClient::direct(channel).await?,
        }))
    }
}

async fn requests(channel: SetupChannel) -> common::Result<BasicConsumeArguments> {
    channel.queue_declare(queue("double")).await?;
    channel.basic_qos(BasicQosArguments::new(0, 10, false)).await?;
    Ok(BasicConsumeArguments::new("double", ""))
}

/// Doubles a number. Panics on the text `panic`, and fails on any other text.
async fn double(request: Message) -> Result<String, std::num::ParseIntError> {
    let text = request.text();
    assert_ne!(text, "panic", "the test panics on purpose");
    Ok((2 * text.parse::<i64>()?).to_string())
}

async fn serve(channel: &Channel) -> Result<()> {
    let server = RpcServer::new(channel, requests).await?;
    tokio::spawn(server.serve(double));
    Ok(())
}

/// A request that comes back could not be told to its call.
#[tokio::test]
async fn a_call_on_a_channel_without_confirms_is_refused_at_once() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.connections.channel_without_confirms("without").await?;
    let client = RpcClient::new(&channel).await?;
    let since = Instant::now();
    let error = client.call("missing", "21", PATIENCE).await.expect_err("nothing was declared");
    ensure!(matches!(error, Error::Invalid(_)) && error.to_string().contains("channel with confirms"), "{error}");
    ensure!(since.elapsed() < PATIENCE / 2, "after {:?}", since.elapsed());
    // By direct reply-to, requests are published on the AMQP channel of the replies, which has confirms.
    let client = RpcClient::direct(&channel).await?;
    let error = client.call("missing", "21", PATIENCE).await.expect_err("nothing was declared");
    ensure!(matches!(error, Error::Unroutable(_)), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_calls_gets_its_own_reply() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    serve(&channel).await?;
    for replies in BOTH {
        let client = replies.client(&channel).await?;
        let mut calls = JoinSet::new();
        for number in 0..1_000 {
            let client = client.clone();
            calls.spawn(async move { (number, client.call("double", number.to_string(), PATIENCE).await) });
        }
        for (number, reply) in calls.join_all().await {
            ensure!(reply?.text() == (2 * number).to_string(), "the call for {number} got the reply of another call");
        }
        ensure!(client.pending() == 0, "{} calls are still pending", client.pending());
    }
    Ok(())
}

#[tokio::test]
async fn an_error_and_a_panic_are_error_replies_and_the_server_still_works() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    serve(&channel).await?;
    let client = RpcClient::direct(&channel).await?;
    for (request, words) in [("abc", "invalid digit"), ("", "empty string"), ("panic", "the server failed")] {
        let error = client.call("double", request, PATIENCE).await.expect_err(request);
        ensure!(matches!(&error, Error::Remote(remote) if remote.message.contains(words)), "{request}: {error}");
    }
    ensure!(client.call("double", "21", PATIENCE).await?.text() == "42");
    Ok(())
}

#[tokio::test]
async fn a_call_to_a_missing_queue_fails_at_once() -> Result<()> {
    let fixture = Fixture::new().await?;
    for replies in BOTH {
        let client = replies.client(&fixture.channel().await?).await?;
        let since = Instant::now();
        let error = client.call("nobody", "x", PATIENCE).await.expect_err("the queue should be missing");
        ensure!(matches!(error, Error::Unroutable(_)) && since.elapsed() < Duration::from_secs(5), "{error}");
        ensure!(client.pending() == 0, "the call is still pending");
    }
    Ok(())
}

#[tokio::test]
async fn a_call_without_a_server_ends_at_its_timeout_and_its_request_expires() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("double")).await?;
    let client = RpcClient::new(&channel).await?;
    let since = Instant::now();
    for client in [client, RpcClient::direct(&channel).await?] {
        let error = client.call("double", "1", Duration::from_millis(200)).await.expect_err("no server");
        ensure!(matches!(error, Error::Timeout { .. }), "{error}");
        ensure!(client.pending() == 0, "the call is still pending");
    }
    // A request expires only after it has spent its time in the queue.
    while channel.queue_declare(queue("double")).await?.messages > 0 {
        ensure!(since.elapsed() < PATIENCE, "a request is still there");
    }
    Ok(())
}

#[tokio::test]
async fn a_dropped_call_leaves_nothing_behind_and_its_late_reply_does_no_harm() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let client = RpcClient::new(&channel).await?;
    let (release, released) = oneshot::channel::<()>();
    let released = std::sync::Mutex::new(Some(released));
    let server = RpcServer::new(&channel, requests).await?;
    tokio::spawn(server.serve(move |request: Message| {
        let wait = released.lock().expect("no other thread has panicked").take();
        async move {
            if let Some(wait) = wait {
                let _ = wait.await;
            }
            Ok::<_, Error>(request.body)
        }
    }));
    {
        let call = client.call("double", "late", PATIENCE);
        ensure!(tokio::time::timeout(Duration::from_millis(300), call).await.is_err(), "it was answered");
    }
    ensure!(client.pending() == 0, "the call is still pending");
    let _ = release.send(());
    ensure!(client.call("double", "next", PATIENCE).await?.text() == "next");
    Ok(())
}

#[tokio::test]
async fn a_lost_connection_ends_all_calls_at_once_and_the_next_ones_work() -> Result<()> {
    for replies in BOTH {
        a_lost_connection_ends_all_calls(replies).await?;
    }
    Ok(())
}

async fn a_lost_connection_ends_all_calls(replies: Replies) -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let client = replies.client(&channel).await?;
    channel.queue_declare(queue("double")).await?;
    for _ in 0..3 {
        let mut calls = JoinSet::new();
        for _ in 0..20 {
            let client = client.clone();
            calls.spawn(async move { client.call("double", "1", PATIENCE).await });
        }
        // All requests are in the queue, so all calls wait for a reply.
        while channel.queue_declare(queue("double")).await?.messages < 20 {}
        let since = Instant::now();
        fixture.host.close_all_connections().await?;
        for outcome in calls.join_all().await {
            let error = outcome.err().ok_or_else(|| anyhow::anyhow!("a reply came, although there is no server"))?;
            ensure!(matches!(error, Error::Lost { .. } | Error::Unconfirmed { .. }), "{error}");
        }
        ensure!(since.elapsed() < Duration::from_secs(10), "after {:?}", since.elapsed());
        channel.queue_purge(amqprs::channel::QueuePurgeArguments::new("double")).await?;
    }
    serve(&channel).await?;
    ensure!(client.call("double", "21", PATIENCE).await?.text() == "42");
    Ok(())
}

#[tokio::test]
async fn a_request_without_reply_to_gets_no_reply_and_a_vanished_client_does_no_harm() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = RpcServer::new(&channel, requests).await?;
    let serving = tokio::spawn(server.serve_until(double, async { drop(stopped.await) }));
    channel.publish(to("double"), plain(), "1").await?;
    let gone = amqprs::BasicProperties::default().with_reply_to("amq.gen-gone").with_correlation_id("x").finish();
    channel.publish(to("double"), gone, "1").await?;
    let client = RpcClient::new(&channel).await?;
    ensure!(client.call("double", "21", PATIENCE).await?.text() == "42");
    // The server acknowledges all requests before it ends.
    drop(stop);
    serving.await??;
    fixture.connections.close_all().await?;
    let again = common::ConnectionManager::new(fixture.host.url().parse()?);
    expect_empty(&again.channel("look").await?, "double").await
}

/// The queue for replies does not confirm messages, like a quorum queue without its majority.
#[tokio::test]
async fn a_request_whose_reply_is_not_confirmed_goes_back_and_is_answered_again() -> Result<()> {
    let fixture = Fixture::with(|options| options.operation_timeout(Duration::from_secs(3))).await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("replies")).await?;
    let replies = async |what: &str| {
        let host = fixture.host.name();
        let queue = format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{host}\">>, queue, <<\"replies\">>)), \
             sys:{what}(amqqueue:get_pid(Q))."
        );
        fixture.host.broker().rabbitmqctl(&["eval", &queue]).await
    };
    let (begun, mut beginnings) = tokio::sync::mpsc::unbounded_channel();
    let answer = move |request: Message| {
        let _ = begun.send(request.redelivered);
        async move { Ok::<_, Error>(request.body) }
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let server = RpcServer::new(&channel, requests).await?;
    let serving = tokio::spawn(server.serve_until(answer, stopped));
    replies("suspend").await?;
    channel.publish(to("double"), plain().with_reply_to("replies").finish(), "again").await?;
    for redelivered in [false, true] {
        let begun =
            tokio::time::timeout(PATIENCE, beginnings.recv()).await.context("the request did not come again")?;
        ensure!(begun == Some(redelivered), "{begun:?}");
    }
    replies("resume").await?;
    let mut answers = consume(&channel, "replies", true).await?;
    for _ in 0..2 {
        ensure!(next(&mut answers).await?.text() == "again");
    }
    // The server acknowledges the request before it ends.
    drop(stop);
    serving.await??;
    expect_empty(&channel, "double").await
}

#[tokio::test]
async fn a_server_that_forgets_the_correlation_id_is_named_as_the_cause() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let client = RpcClient::new(&channel).await?;
    let mut requests = consume(&channel, "forgetful", true).await?;
    for id in [None, Some("another")] {
        let patience = Duration::from_secs(2);
        let (outcome, replied) = tokio::join!(client.call("forgetful", "x", patience), async {
            let request = next(&mut requests).await?;
            let reply_to = request.properties.reply_to().context("the request has no `reply_to`")?;
            let mut reply = plain();
            if let Some(id) = id {
                reply.with_correlation_id(id);
            }
            channel.publish(to(reply_to), reply, "answer").await?;
            anyhow::Ok(())
        });
        replied?;
        let error = outcome.expect_err("the reply is not for this call").to_string();
        ensure!(error.contains("meanwhile 1 came without a request's `correlation_id`"), "{error}");
    }
    let error = client.call("forgetful", "x", Duration::from_millis(300)).await.expect_err("no server answers");
    ensure!(error.to_string().contains("is a server running"), "{error}");
    Ok(())
}

/// RabbitMQ that is short of memory stops reading from publishers, and may not say so.
#[tokio::test]
async fn a_call_to_a_broker_without_memory_names_this_as_the_possible_cause() -> Result<()> {
    let broker = testbed::Broker::start().await?;
    let connections = common::ConnectionManager::new(broker.url().parse()?);
    let channel = connections.channel("test").await?;
    for replies in BOTH {
        let client = replies.client(&channel).await?;
        channel.queue_declare(queue("double")).await?;
        broker.rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "1"]).await?;
        // The first message may arrive before the alarm, or it may be the one that makes RabbitMQ block the connection.
        let since = Instant::now();
        let error = loop {
            match client.call("double", "1", Duration::from_secs(1)).await.expect_err("no server").to_string() {
                error if error.contains("is a server running") && since.elapsed() < 3 * PATIENCE => {}
                error => break error,
            }
        };
        ensure!(error.contains("short of memory or disk"), "{error}");
        broker.rabbitmqctl(&["set_vm_memory_high_watermark", "0.6"]).await?;
    }
    connections.close_all().await?;
    broker.shutdown().await
}

#[tokio::test]
async fn any_future_stops_a_server() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = RpcServer::new(&channel, requests).await?;
    let serving = tokio::spawn(server.serve_until(double, stopped));
    drop(stop);
    tokio::time::timeout(PATIENCE, serving).await???;
    Ok(())
}
