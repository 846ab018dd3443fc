//! The promises of `common`, tested with a real RabbitMQ: one broker for all tests, and a virtual host for each.

mod alarms;
mod arguments;
mod cancelled;
mod connection_limits;
mod consuming;
mod cutting;
mod dangers;
mod declaring;
mod getting;
mod json_rpc;
mod leftovers;
mod limits;
mod logins;
mod logs;
mod managing;
mod permissions;
mod publishing;
mod recovering;
mod refusals;
mod restarting;
mod returning;
mod rpc;
mod rpc_under_fire;
mod settling;
mod setups;
mod strangers;
mod suspecting;
mod tasks;

use std::{io::Write, sync::Once, time::Duration};

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicGetArguments, BasicPublishArguments, BasicQosArguments},
};
use anyhow::{Context, Result, ensure};
use common::{Channel, ConnectOptions, ConnectionManager, Consumer, Delivery, QueueDeclaration};
use testbed::{Broker, VirtualHost};
use tokio::time::timeout;

/// A virtual host for this test alone, and a manager that is connected to it.
struct Fixture {
    host: VirtualHost<'static>,
    connections: ConnectionManager,
}

impl Fixture {
    async fn new() -> Result<Self> {
        Self::with(|options| options).await
    }

    async fn with(change: impl FnOnce(ConnectOptions) -> ConnectOptions) -> Result<Self> {
        fail_when_amqprs_panics();
        let host = Broker::shared().await?.virtual_host().await?;
        let options = change(host.url().parse::<ConnectOptions>()?);
        Ok(Self { connections: ConnectionManager::new(options), host })
    }

    async fn channel(&self) -> Result<Channel> {
        Ok(self.connections.channel("test").await?)
    }

    /// The broker's names for this test's connections. A new connection has a new name.
    async fn connection_names(&self) -> Result<Vec<String>> {
        let connections = self.host.connections().await?;
        Ok(connections.iter().map(|connection| connection["name"].to_string()).collect())
    }

    /// How many channels this test's connections have.
    async fn channels(&self) -> Result<u64> {
        let user = self.host.name();
        let listed = self.host.broker().rabbitmqctl(&["-q", "list_channels", "user"]).await?;
        Ok(listed.lines().filter(|line| line.trim() == user).count() as u64)
    }
}

/// amqprs panics in its own tasks, where a test does not notice it. This ends the whole run instead.
fn fail_when_amqprs_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            usual(panic);
            if panic.location().is_some_and(|location| location.file().contains("amqprs")) {
                // Write to stderr directly, because the captured output of the test is lost now.
                let _ = writeln!(std::io::stderr(), "{panic}");
                std::process::abort();
            }
        }));
    });
}

/// A classic queue, which is the fastest to declare.
fn queue(name: &str) -> QueueDeclaration {
    common::classic_queue(name)
}

fn to(queue: &str) -> BasicPublishArguments {
    BasicPublishArguments::new("", queue)
}

fn plain() -> BasicProperties {
    BasicProperties::default()
}

/// Declares a queue with these messages in it.
async fn filled(channel: &Channel, name: &str, bodies: impl IntoIterator<Item = String>) -> Result<()> {
    channel.queue_declare(queue(name)).await?;
    let mut confirms = Vec::new();
    for body in bodies {
        confirms.push(channel.publish_with_deferred_confirm(to(name), plain(), body).await?);
    }
    for confirm in confirms {
        confirm.await?;
    }
    Ok(())
}

async fn consume(channel: &Channel, name: &'static str, auto_ack: bool) -> Result<Consumer> {
    let subscribe = move |channel: common::SetupChannel| async move {
        channel.queue_declare(queue(name)).await?;
        Ok(BasicConsumeArguments::new(name, "").auto_ack(auto_ack).finish())
    };
    Ok(channel.consume(subscribe).await?)
}

/// Sets a prefetch in a setup of the channel.
async fn prefetch(channel: &Channel, arguments: BasicQosArguments) -> common::Result<()> {
    let set = move |channel: common::SetupChannel| {
        let arguments = arguments.clone();
        async move { channel.basic_qos(arguments).await }
    };
    channel.setup(set).await
}

/// The next delivery, or an error if none comes.
async fn next(consumer: &mut Consumer) -> Result<Delivery> {
    timeout(Duration::from_secs(20), consumer.try_next())
        .await
        .context("no delivery came")??
        .context("the stream ended")
}

/// Takes the next message of a queue and acknowledges it. It must be this one.
async fn expect_in(channel: &Channel, name: &str, body: &str) -> Result<()> {
    let message = channel.get(BasicGetArguments::new(name)).await?.context("the queue is empty")?;
    ensure!(message.text() == body, "expected {body:?}, got {:?}", message.text());
    message.ack().await?;
    Ok(())
}

async fn expect_empty(channel: &Channel, name: &str) -> Result<()> {
    let message = channel.get(BasicGetArguments::new(name)).await?;
    ensure!(message.is_none(), "the queue `{name}` is not empty");
    Ok(())
}
