//! Looks at a queue with an AMQP client, because we may know only the URL of the broker.

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

/// How many messages and consumers a queue has.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Queue {
    pub(super) messages: u32,
    pub(super) consumers: u32,
}

/// Checks that the broker accepts the login. Without this check, the programs would fail one by one.
///
/// # Errors
/// When the broker refuses the login.
pub(super) async fn log_in(url: &str) -> Result<()> {
    ask(url, |_| async {}).await.map(drop)
}

/// Looks at a queue. One that does not exist counts as empty.
///
/// # Errors
/// When the broker refuses the login.
pub(super) async fn look(url: &str, name: &str) -> Result<Queue> {
    // Passive: this asks for the queue, and does not create it. If it does not exist, the broker closes the channel.
    let passive = QueueDeclareArguments::new(name).passive(true).finish();
    let queue = ask(url, |channel| async move { channel.queue_declare(passive).await.ok().flatten() }).await?;
    let (_, messages, consumers) = queue.flatten().unwrap_or_default();
    Ok(Queue { messages, consumers })
}

/// Empties a queue.
///
/// # Errors
/// When the broker refuses the login.
pub(super) async fn purge(url: &str, name: &str) -> Result<()> {
    let all = QueuePurgeArguments::new(name);
    ask(url, |channel| async move { drop(channel.queue_purge(all).await) }).await.map(drop)
}

/// Opens a connection and does something with its channel. With TLS this does nothing, because this client does not speak
/// TLS. The programs then report whether their login works.
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
    // In a task of its own, because amqprs panics if a call is dropped before its answer comes.
    let answer = tokio::spawn(async move {
        let connection = Connection::open(&arguments).await?;
        let channel = connection.open_channel(None).await?;
        // The channel is kept until the connection is closed. Dropping its last clone would close it.
        let answer = question(channel.clone()).await;
        drop(connection.close().await);
        anyhow::Ok(answer)
    });
    let refused = || {
        let (host, port) = (url.host_str().unwrap_or("localhost"), url.port().unwrap_or(5672));
        format!("RabbitMQ at {host}:{port} refuses the login; check user, password and virtual host in AMQP_URL")
    };
    timeout(PATIENCE, answer).await.context("RabbitMQ does not answer")??.map(Some).with_context(refused)
}

/// The arguments with user, password and virtual host decoded. In the URL they are percent-encoded.
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
