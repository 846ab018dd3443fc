//! A login that was good once: the password, the user or the virtual host is changed while a program is connected.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::Event;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::{Fixture, logs, queue};

const ROOM: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_changed_password_a_deleted_virtual_host_and_a_deleted_user_are_said_once_each_and_mended_while_it_runs()
-> Result<()> {
    logs::keep();
    let fixture = Fixture::new().await?;
    let name = fixture.host.name();
    let channel = fixture.channel().await?;
    channel.setup(|channel| async move { channel.queue_declare(queue("q")).await.map(drop) }).await?;
    let mut events = fixture.connections.events();
    // Each line names the user or the virtual host, which have a name of this test's own.
    let named = format!("`{name}`");
    let trying = "trying until it works";
    let user = format!("/api/users/{name}");
    let rights = format!("/api/permissions/{name}/{name}");
    let everything = json!({"configure": ".*", "write": ".*", "read": ".*"});
    let mut recovered = async || {
        while let Some(event) = timeout(ROOM, events.next()).await.context("not connected again")? {
            if matches!(event, Event::Recovered) {
                return Ok(());
            }
        }
        anyhow::bail!("the events ended")
    };

    fixture.host.put(&user, json!({"password": "another", "tags": ""})).await?;
    fixture.host.close_all_connections().await?;
    let text = logs::wait_for(&[&named, trying], ROOM).await?;
    ensure!(text.contains("refused the connection") && text.contains("and its password"), "{text}");
    ensure!(!text.contains(fixture.host.password()), "the password is in the log");
    fixture.host.put(&user, json!({"password": fixture.host.password(), "tags": ""})).await?;
    recovered().await?;
    ensure!(logs::with(&[&named, trying]).len() == 1, "{:?}", logs::with(&[&named, trying]));
    channel.queue_declare(queue("q")).await?;

    fixture.host.delete(&format!("/api/vhosts/{name}")).await?;
    let text = logs::wait_for(&[&named, trying, "not found"], ROOM).await?;
    ensure!(text.contains("check the virtual host"), "{text}");
    fixture.host.put(&format!("/api/vhosts/{name}"), json!({})).await?;
    fixture.host.put(&rights, everything.clone()).await?;
    recovered().await?;
    // Between the two the user has no right in it, which is another kind of failure.
    let missing = logs::with(&[&named, trying, "not found"]);
    ensure!(missing.len() == 1, "{missing:?}");
    channel.queue_declare(queue("q")).await?;

    // To RabbitMQ an unknown user and a wrong password are the same. What was said is said again only of a connection that
    // was good: that lived for a second.
    sleep(Duration::from_millis(1_200)).await;
    let before = logs::with(&[&named, trying, "and its password"]).len();
    fixture.host.delete(&user).await?;
    // Versions differ in whether that ends the user's connections.
    drop(timeout(Duration::from_secs(5), fixture.host.close_all_connections()).await);
    let deadline = Instant::now() + ROOM;
    while logs::with(&[&named, trying, "and its password"]).len() == before {
        ensure!(Instant::now() < deadline, "nothing is said of the deleted user");
        sleep(Duration::from_millis(20)).await;
    }
    fixture.host.put(&user, json!({"password": fixture.host.password(), "tags": ""})).await?;
    fixture.host.put(&rights, everything).await?;
    recovered().await?;
    let refused = logs::with(&[&named, trying, "and its password"]).len();
    ensure!(refused == before + 1, "{refused} lines after {before}");
    channel.queue_declare(queue("q")).await?;
    Ok(())
}
