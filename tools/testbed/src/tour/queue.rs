//! A look at a queue, with a client of our own: the broker may be one of which we know no more than its URL.

use std::time::Duration;

use amqprs::{
    channel::{Channel, QueueDeclareArguments, QueuePurgeArguments},
    connection::{Connection, OpenConnectionArguments},
};
use anyhow::{Context, Result, ensure};
use percent_encoding::percent_decode_str;
use tokio::time::timeout;
use url::Url;

/// How long the broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is in a queue, and how many read from it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Queue {
    pub(super) messages: u32,
    pub(super) consumers: u32,
}

/// Whether the broker lets us in; else the programs would only fail one by one.
///
/// # Errors
/// When it does not.
pub(super) async fn log_in(url: &str) -> Result<()> {
    ask(url, |_| async {}).await.map(drop)
}

/// Looks at a queue. One that does not exist is as good as empty.
///
/// # Errors
/// When the broker does not let us in.
pub(super) async fn look(url: &str, name: &str) -> Result<Queue> {
    // Passive: asks, and creates nothing. If there is no such queue, the broker answers by closing the channel.
    let passive = QueueDeclareArguments::new(name).passive(true).finish();
    let queue = ask(url, |channel| async move { channel.queue_declare(passive).await.ok().flatten() }).await?;
    let (_, messages, consumers) = queue.flatten().unwrap_or_default();
    Ok(Queue { messages, consumers })
}

/// Empties a queue.
///
/// # Errors
/// When the broker does not let us in.
pub(super) async fn purge(url: &str, name: &str) -> Result<()> {
    let all = QueuePurgeArguments::new(name);
    ask(url, |channel| async move { drop(channel.queue_purge(all).await) }).await.map(drop)
}

/// Does something with a channel of a connection of its own; nothing if the broker speaks TLS, which we do not:
/// whether the programs do is for them to say.
async fn ask<T, F>(url: &str, question: impl FnOnce(Channel) -> F + Send + 'static) -> Result<Option<T>>
where
    T: Send + 'static,
    F: Future<Output = T> + Send,
{
    // No error may show the URL: there is a password in it.
    let url = Url::parse(url).context("the broker's URL")?;
    if url.scheme() != "amqp" {
        return Ok(None);
    }
    let arguments = arguments(&url)?;
    // In a task of its own: amqprs does not survive a call that is given up half-way.
    let answer = tokio::spawn(async move {
        let connection = Connection::open(&arguments).await?;
        let channel = connection.open_channel(None).await?;
        // Kept until the connection is closed: dropping the last one closes the channel.
        let answer = question(channel.clone()).await;
        drop(connection.close().await);
        anyhow::Ok(answer)
    });
    let refused = || {
        let (host, port) = (url.host_str().unwrap_or("localhost"), url.port().unwrap_or(5672));
        format!("RabbitMQ at {host}:{port} turns us away; check user, password and virtual host in AMQP_URL")
    };
    timeout(PATIENCE, answer).await.context("RabbitMQ does not answer")??.map(Some).with_context(refused)
}

/// User, password and virtual host as they are; in the URL they are percent-encoded.
fn arguments(url: &Url) -> Result<OpenConnectionArguments> {
    let decode = |text: &str, default: &str| match text {
        "" => default.to_owned(),
        text => percent_decode_str(text).decode_utf8_lossy().into_owned(),
    };
    let virtual_host = decode(url.path().strip_prefix('/').unwrap_or_default(), "/");
    ensure!(virtual_host.len() <= 255, "the virtual host in AMQP_URL is longer than 255 bytes");
    let arguments = OpenConnectionArguments::new(
        url.host_str().unwrap_or("localhost"),
        url.port().unwrap_or(5672),
        &decode(url.username(), "guest"),
        &decode(url.password().unwrap_or_default(), "guest"),
    )
    .virtual_host(&virtual_host)
    .connection_name("cargo tour")
    .finish();
    Ok(arguments)
}
