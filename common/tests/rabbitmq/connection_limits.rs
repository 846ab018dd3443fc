//! Limits on connections that an operator has set: the error says which one it is.

use anyhow::{Context, Result, ensure};
use common::ConnectionManager;

use crate::Fixture;

async fn refusal(fixture: &Fixture) -> Result<String> {
    let second = ConnectionManager::new(fixture.host.url().parse()?);
    let error = second.channel("test").await.err().context("a second connection was accepted")?.to_string();
    println!("{error}");
    ensure!(!error.contains("password"), "{error}");
    Ok(error)
}

#[tokio::test]
async fn the_limits_on_connections_of_a_user_and_of_a_virtual_host_are_named() -> Result<()> {
    let fixture = Fixture::new().await?;
    fixture.channel().await?;
    let (broker, name) = (fixture.host.broker(), fixture.host.name());
    let limit = r#"{"max-connections": 1}"#;

    broker.rabbitmqctl(&["set_user_limits", name, limit]).await?;
    let error = refusal(&fixture).await?;
    ensure!(error.contains("user connection limit (1) is reached") && error.contains("set_user_limits"), "{error}");
    broker.rabbitmqctl(&["clear_user_limits", name, "all"]).await?;

    broker.rabbitmqctl(&["set_vhost_limits", "-p", name, limit]).await?;
    let error = refusal(&fixture).await?;
    ensure!(error.contains("connection limit (1) is reached") && error.contains("set_vhost_limits"), "{error}");
    Ok(())
}
