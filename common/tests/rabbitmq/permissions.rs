//! A user with limited rights, in the virtual host of another user.

use amqprs::channel::{
    BasicConsumeArguments, BasicGetArguments, BasicPublishArguments, ExchangeDeclareArguments, QueueBindArguments,
    QueueDeclareArguments,
};
use anyhow::{Result, ensure};
use common::{ConnectionManager, Error};
use serde_json::json;
use testbed::Broker;

use crate::{Fixture, consume, expect_in, plain, queue, to};

/// The call is refused with 403, and the error names the missing right.
fn lacks<T>(right: &str, what: &str, outcome: Result<T, Error>) -> Result<()> {
    let Err(error) = outcome else { anyhow::bail!("{what} is allowed") };
    let text = error.to_string();
    ensure!(matches!(error, Error::Closed { code: 403, .. }), "{what}: {text}");
    ensure!(text.contains("ACCESS_REFUSED") && text.contains(&format!("lacks the right `{right}`")), "{what}: {text}");
    ensure!(text.contains("set_permissions"), "{what}: {text}");
    Ok(())
}

#[tokio::test]
async fn a_missing_right_is_named() -> Result<()> {
    let owner = Fixture::new().await?;
    let visitor = Broker::shared().await?.virtual_host().await?;
    let own = json!({"configure": "^own", "write": "^own", "read": "^own"});
    owner.host.put(&format!("/api/permissions/{{vhost}}/{}", visitor.name()), own).await?;
    owner.channel().await?.queue_declare(queue("theirs")).await?;

    let url = visitor.url().replace(&format!("/{}", visitor.name()), &format!("/{}", owner.host.name()));
    // The replacement has also changed the user, which follows two slashes in the URL: change it back.
    let url = url.replace(&format!("//{}", owner.host.name()), &format!("//{}", visitor.name()));
    let connections = ConnectionManager::new(url.parse()?);
    let channel = connections.channel("test").await?;
    lacks("configure", "a declaration", channel.queue_declare(queue("new")).await)?;
    let exchange = ExchangeDeclareArguments::new("new", "fanout");
    lacks("configure", "an exchange", channel.exchange_declare(exchange).await)?;
    let foreign = BasicPublishArguments::new("amq.direct", "key");
    lacks("write", "a message", channel.publish(foreign, plain(), "x").await)?;
    lacks("read", "consuming", channel.consume(|_| async { Ok(BasicConsumeArguments::new("theirs", "")) }).await)?;
    lacks("read", "fetching", channel.get(BasicGetArguments::new("theirs")).await)?;

    // Allowed calls still work on the same channel.
    channel.queue_declare(queue("own")).await?;
    channel.exchange_declare(ExchangeDeclareArguments::new("own", "fanout")).await?;
    channel.queue_bind(QueueBindArguments::new("own", "own", "")).await?;
    channel.publish(BasicPublishArguments::new("own", ""), plain(), "mine").await?;
    expect_in(&channel, "own", "mine").await?;
    Ok(connections.close_all().await?)
}

#[tokio::test]
async fn the_refusal_of_another_consumers_exclusive_queue_is_not_reported_as_a_missing_right() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(QueueDeclareArguments::durable_client_named("q")).await?;
    let exclusive = |_| async { Ok(BasicConsumeArguments::new("q", "").exclusive(true).finish()) };
    let _first = channel.consume(exclusive).await?;
    let error = consume(&channel, "q", false).await.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(error.contains("403") && error.contains("another consumer uses it exclusively"), "{error}");
    channel.publish(to("q"), plain(), "x").await?;
    Ok(())
}
