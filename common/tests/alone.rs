//! Tests that need a process of their own, because they read the log or measure the memory.

use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicPublishArguments, QueueDeclareArguments, QueueDeleteArguments},
};
use anyhow::{Context, Result, ensure};
use common::{ConnectOptions, ConnectionManager, Consumer, Delivery, Settlement, SetupChannel, quorum_queue};
use testbed::Broker;
use tokio::time::{sleep, timeout};
use tracing_subscriber::fmt::MakeWriter;

const ROOM: Duration = Duration::from_secs(120);

async fn next(consumer: &mut Consumer) -> Result<Delivery> {
    timeout(ROOM, consumer.try_next()).await.context("no delivery came")??.context("the stream ended")
}

async fn subscribe(channel: SetupChannel) -> common::Result<BasicConsumeArguments> {
    channel.queue_declare(quorum_queue("late")).await?;
    Ok(BasicConsumeArguments::new("late", ""))
}

/// RabbitMQ 4.3 cancels the consumer of a quorum queue. Older versions close the channel.
#[tokio::test]
async fn a_delivery_that_is_not_acknowledged_in_time_names_the_timeout_and_what_to_do() -> Result<()> {
    let log = Log::of_this_process();
    let broker = Broker::builder().configuration("consumer_timeout = 10000").start().await?;
    // Old versions check once a minute.
    broker.rabbitmqctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 1000)."]).await?;
    let connections = ConnectionManager::new(broker.url().parse::<ConnectOptions>()?);
    let channel = connections.channel("late").await?;
    let mut consumer = channel.consume(subscribe).await?;
    for body in ["held", "unread", "unread too"] {
        channel.publish(BasicPublishArguments::new("", "late"), BasicProperties::default(), body).await?;
    }
    let held = next(&mut consumer).await?;
    ensure!(held.text() == "held");
    timeout(ROOM, async {
        while !log.of_channel("late").contains("consumer_timeout") {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .with_context(|| log.text())?;
    println!("{}", log.of_channel("late"));
    // The delivery was held too long, so RabbitMQ sends it again. It sends the others again, too.
    let settled = held.ack().await?;
    println!("RabbitMQ {}: settled {settled:?}", broker.version().await?);
    let mut left: Vec<_> = match settled {
        Settlement::Sent => vec!["unread", "unread too"],
        Settlement::TooLate => vec!["held", "unread", "unread too"],
    };
    while !left.is_empty() {
        let delivery = next(&mut consumer).await?;
        println!("{}", delivery.text());
        left.retain(|body| *body != delivery.text());
        delivery.ack().await?;
    }
    timeout(ROOM, connections.close_all()).await??;
    broker.shutdown().await
}

/// The log mentions the timeout only for a consumer that holds a delivery.
#[tokio::test]
async fn a_deleted_queue_is_not_taken_for_a_delivery_that_was_not_acknowledged() -> Result<()> {
    let log = Log::of_this_process();
    let host = Broker::shared().await?.virtual_host().await?;
    let connections = ConnectionManager::new(host.url().parse::<ConnectOptions>()?);
    let by = connections.channel("by").await?;
    let mut consumers = Vec::new();
    let mut held = None;
    for name in ["automatic", "settled", "held"] {
        let subscribe = move |channel: SetupChannel| async move {
            channel.queue_declare(quorum_queue(name)).await?;
            Ok(BasicConsumeArguments::new(name, "").auto_ack(name == "automatic").finish())
        };
        let mut consumer = connections.channel(name).await?.consume(subscribe).await?;
        by.publish(BasicPublishArguments::new("", name), BasicProperties::default(), name).await?;
        let delivery = next(&mut consumer).await?;
        match name {
            "settled" => drop(delivery.ack().await?),
            "held" => held = Some(delivery),
            _ => drop(delivery),
        }
        consumers.push(consumer);
        by.queue_delete(QueueDeleteArguments::new(name)).await?;
        timeout(ROOM, async {
            while !log.of_channel(name).contains("cancelled the consumer") {
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .with_context(|| log.text())?;
        let said = log.of_channel(name);
        ensure!(said.contains("the queue was deleted") || said.contains("was the queue deleted?"), "{said}");
        ensure!(said.contains("consumer_timeout") == (name == "held"), "{said}");
    }
    drop(held);
    timeout(ROOM, connections.close_all()).await??;
    Ok(())
}

/// The memory that this process uses, in MiB.
#[cfg(target_os = "linux")]
fn memory() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("VmRSS has no number")?.parse::<usize>()? / 1024)
}

/// After each of 20 cuts RabbitMQ sends 100 MiB again, and the consumer does not read them.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn deliveries_of_a_lost_connection_do_not_stay_in_memory() -> Result<()> {
    const MESSAGES: usize = 100;
    let host = Broker::shared().await?.virtual_host().await?;
    let connections = ConnectionManager::new(host.url().parse::<ConnectOptions>()?);
    let channel = connections.channel("test").await?;
    channel.queue_declare(QueueDeclareArguments::durable_client_named("q")).await?;
    for _ in 0..MESSAGES {
        channel.publish(BasicPublishArguments::new("", "q"), BasicProperties::default(), vec![b'x'; 1 << 20]).await?;
    }
    let before = memory()?;
    let mut consumer = channel.consume(|_| async { Ok(BasicConsumeArguments::new("q", "")) }).await?;
    let mut most = 0;
    for cut in 0..20 {
        // Wait until the broker says that it has sent all messages.
        timeout(ROOM, async {
            loop {
                let listed = ["-q", "list_queues", "-p", host.name(), "messages_unacknowledged"];
                let listed = host.broker().rabbitmqctl(&listed).await?;
                if listed.lines().any(|line| line.trim() == MESSAGES.to_string()) {
                    return Ok::<_, anyhow::Error>(());
                }
            }
        })
        .await
        .with_context(|| format!("cut {cut}: not delivered"))??;
        most = most.max(memory()?);
        host.close_all_connections().await?;
    }
    println!("{before} MiB before, at most {most} MiB");
    ensure!(
        most < before + 3 * MESSAGES,
        "stale deliveries stay in memory: {before} MiB before, {most} MiB after 20 cuts"
    );
    next(&mut consumer).await?.ack().await?;
    timeout(ROOM, connections.close_all()).await??;
    Ok(())
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// The manager runs on its own threads, so all tests in this file share one log.
    fn of_this_process() -> Self {
        static LOG: LazyLock<Log> = LazyLock::new(|| {
            let log = Log::default();
            tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).init();
            log
        });
        LOG.clone()
    }

    fn of_channel(&self, name: &str) -> String {
        let name = format!("channel `{name}`");
        self.text().lines().filter(|line| line.contains(&name)).collect()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}
