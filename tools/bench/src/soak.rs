//! Does much work with `common`, and checks that its memory does not grow.

use std::time::{Duration, Instant};

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicPublishArguments, BasicQosArguments, QueueDeclareArguments},
};
use anyhow::{Context, Result, ensure};
use common::{
    Channel, ConnectionManager, Message, SetupChannel,
    rpc::{RpcClient, RpcServer},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::{task::JoinHandle, time::interval};
use uuid::Uuid;

use crate::{args::SoakArgs, usage};

/// Growth that does not count: allocators keep pages, and tables grow to the size that the worst moment needs.
const ALLOWED_MIB: f64 = 8.0;

/// How much memory messages that wait at the broker may cost a slow consumer. Only its prefetch may be in memory.
const SLOW_MIB: f64 = 8.0;

const PREFETCH: u16 = 100;
const IN_FLIGHT: usize = 500;

/// Returns whether the memory stayed the same.
pub async fn run(args: &SoakArgs, url: &str) -> Result<bool> {
    let connections = ConnectionManager::new(url.parse()?);
    let mut well = true;
    well &= watch("messages published and consumed", args.messages, ALLOWED_MIB, messages(&connections, args.messages))
        .await?;
    well &= watch("calls", args.calls, ALLOWED_MIB, calls(&connections, args.calls)).await?;
    // The first run allocates what stays allocated. The second run must not need more.
    for again in ["", " again"] {
        let allowed = if again.is_empty() { f64::INFINITY } else { ALLOWED_MIB };
        let what = format!("channels opened, used and closed{again}");
        well &= watch(&what, args.channels.into(), allowed, channels(&connections, args.channels)).await?;
    }
    let queue = unique("backlog");
    let channel = connections.channel("backlog").await?;
    channel.setup(declare(queue.clone())).await?;
    fill(&channel, &queue, args.backlog).await?;
    let slowly = consume_slowly(&channel, &queue);
    well &= watch("messages waiting for a slow consumer", args.backlog, SLOW_MIB, slowly).await?;
    connections.close_all().await?;
    Ok(well)
}

/// Samples the memory during a phase. After a tenth of the time it may not grow by more than `allowed`.
async fn watch(what: &str, count: u64, allowed: f64, phase: impl Future<Output = Result<()>>) -> Result<bool> {
    let begun = Instant::now();
    let mut samples = Vec::new();
    let mut ticks = interval(Duration::from_millis(100));
    tokio::pin!(phase);
    loop {
        tokio::select! {
            done = &mut phase => break done?,
            _ = ticks.tick() => samples.extend(usage::resident_mib().map(|size| (begun.elapsed(), size))),
        }
    }
    samples.extend(usage::resident_mib().map(|size| (begun.elapsed(), size)));
    let shown: Vec<_> = samples.iter().step_by(samples.len().div_ceil(12).max(1)).collect();
    let shown: Vec<_> = shown.iter().map(|(at, size)| format!("{size:.1} at {:.0} s", at.as_secs_f64())).collect();
    let warm = samples.iter().filter(|(at, _)| *at >= begun.elapsed() / 10).map(|(_, size)| *size);
    let growth = warm.clone().fold(0.0, f64::max) - warm.clone().next().unwrap_or_default();
    let verdict = match samples.is_empty() {
        true => "this system does not report the memory of a process".to_owned(),
        false if growth > allowed => format!("GREW by {growth:.1} MiB"),
        false => format!("grew by {growth:.1} MiB"),
    };
    println!("{count} {what} in {:.1} s: {verdict}", begun.elapsed().as_secs_f64());
    println!("  MiB: {}", shown.join(", "));
    Ok(growth <= allowed)
}

fn unique(what: &str) -> String {
    format!("bench-{what}-{}", Uuid::new_v4().simple())
}

/// A setup that declares a queue which is deleted with its connection.
fn declare(
    queue: String,
) -> impl Fn(SetupChannel) -> futures_util::future::BoxFuture<'static, common::Result<()>> + Send + Sync {
    move |channel| {
        let arguments = QueueDeclareArguments::new(&queue).exclusive(true).finish();
        Box::pin(async move { channel.queue_declare(arguments).await.map(drop) })
    }
}

async fn subscribe(channel: SetupChannel, (queue, prefetch): (String, u16)) -> common::Result<BasicConsumeArguments> {
    channel.queue_declare(QueueDeclareArguments::new(&queue).exclusive(true).finish()).await?;
    channel.basic_qos(BasicQosArguments::new(0, prefetch, false)).await?;
    Ok(BasicConsumeArguments::new(&queue, ""))
}

async fn messages(connections: &ConnectionManager, count: u64) -> Result<()> {
    let queue = unique("soak");
    let channel = connections.channel("messages").await?;
    let mut messages = channel.consume_with((queue.clone(), PREFETCH), subscribe).await?;
    let consuming: JoinHandle<Result<()>> = tokio::spawn(async move {
        for _ in 0..count {
            messages.try_next().await?.context("consuming ended")?.ack().await?;
        }
        Ok(())
    });
    let to = BasicPublishArguments::new("", &queue);
    // Publishes no faster than the consumer reads. Otherwise the broker, which shares the machine, would need more and
    // more memory.
    let publish = |_| channel.publish_with_deferred_confirm(to.clone(), BasicProperties::default(), vec![b'x'; 64]);
    stream::iter(0..count).then(publish).try_buffered(IN_FLIGHT).try_collect::<()>().await?;
    consuming.await?
}

async fn calls(connections: &ConnectionManager, count: u64) -> Result<()> {
    let queue = unique("calls");
    let requests = (queue.clone(), PREFETCH);
    let channel = connections.channel("calls").await?;
    let server = RpcServer::new(&channel, move |channel| subscribe(channel, requests.clone())).await?;
    let serving = tokio::spawn(server.serve(|request: Message| async { Ok::<_, common::Error>(request.body) }));
    let client = RpcClient::new(&channel).await?;
    let call = async |number: u64| {
        let reply = client.call(&queue, number.to_string(), Duration::from_secs(30)).await?;
        ensure!(reply.text() == number.to_string(), "a foreign reply");
        Ok(())
    };
    let mut calling = stream::iter(0..count).map(call).buffer_unordered(100);
    while let Some(answered) = calling.next().await {
        answered?;
    }
    serving.abort();
    ensure!(client.pending() == 0, "{} calls are left", client.pending());
    Ok(())
}

async fn channels(connections: &ConnectionManager, count: u16) -> Result<()> {
    let queue = unique("channels");
    let first = connections.channel("channels").await?;
    first.setup(declare(queue.clone())).await?;
    let mut open = Vec::new();
    for number in 0..count {
        open.push(connections.channel(&format!("channel {number}")).await?);
    }
    for channel in &open {
        channel.publish(BasicPublishArguments::new("", &queue), BasicProperties::default(), "one each").await?;
    }
    let got = first.queue_purge(amqprs::channel::QueuePurgeArguments::new(&queue)).await?;
    ensure!(got == u32::from(count), "{got} of {count} messages arrived");
    for channel in open {
        channel.close().await?;
    }
    first.close().await?;
    Ok(())
}

async fn fill(channel: &Channel, queue: &str, count: u64) -> Result<()> {
    let to = BasicPublishArguments::new("", queue);
    let publish =
        |_| channel.publish_with_deferred_confirm(to.clone(), BasicProperties::default(), vec![b'x'; 1 << 10]);
    Ok(stream::iter(0..count).then(publish).try_buffered(IN_FLIGHT).try_collect::<()>().await?)
}

/// Consumes for ten seconds, a hundred messages a second.
async fn consume_slowly(channel: &Channel, queue: &str) -> Result<()> {
    let mut messages = channel.consume_with((queue.to_owned(), PREFETCH), subscribe).await?;
    let mut pace = interval(Duration::from_millis(10));
    for _ in 0..1_000 {
        pace.tick().await;
        messages.try_next().await?.context("consuming ended")?.ack().await?;
    }
    Ok(())
}
