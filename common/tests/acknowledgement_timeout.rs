//! A delivery that is not acknowledged in time: RabbitMQ 4.3 cancels the consumer of a quorum queue, older ones close the
//! channel. On a broker of its own, with a short timeout; in a process of its own, for it reads the log.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicPublishArguments},
};
use anyhow::{Context, Result, ensure};
use common::{ConnectOptions, ConnectionManager, Consumer, Delivery, Settlement, Setup, quorum_queue};
use testbed::Broker;
use tokio::time::{sleep, timeout};
use tracing_subscriber::fmt::MakeWriter;

const ROOM: Duration = Duration::from_secs(120);

async fn next(consumer: &mut Consumer) -> Result<Delivery> {
    timeout(ROOM, consumer.next()).await.context("no delivery came")??.context("the stream ended")
}

async fn subscribe(channel: Setup) -> common::Result<BasicConsumeArguments> {
    channel.queue_declare(quorum_queue("late")).await?;
    Ok(BasicConsumeArguments::new("late", ""))
}

#[tokio::test]
async fn a_delivery_that_is_not_acknowledged_in_time_names_the_timeout_and_what_to_do() -> Result<()> {
    let log = Log::default();
    tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).try_init().map_err(|e| anyhow::anyhow!("{e}"))?;
    let broker = Broker::builder().configuration("consumer_timeout = 10000").start().await?;
    // Old versions look once a minute.
    broker.rabbitmqctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 1000)."]).await?;
    let connections = ConnectionManager::new(broker.url().parse::<ConnectOptions>()?);
    let channel = connections.channel("test").await?;
    let mut consumer = channel.consume(subscribe).await?;
    for body in ["held", "unread", "unread too"] {
        channel.publish(BasicPublishArguments::new("", "late"), BasicProperties::default(), body).await?;
    }
    let held = next(&mut consumer).await?;
    ensure!(held.text() == "held");
    timeout(ROOM, async {
        while !log.text().contains("consumer_timeout") {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .with_context(|| log.text())?;
    println!("{}", log.text());
    // It has waited too long, and comes again; the others come again as well.
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

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
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
