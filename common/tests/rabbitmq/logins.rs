//! Logins that worked once: the password, the user or the virtual host changes while a program is connected.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::Event;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::{Fixture, logs, queue};

const ROOM: Duration = Duration::from_secs(60);

#[tokio::test]
async fn after_a_changed_password_or_a_deleted_user_or_virtual_host_the_log_says_it_once_and_a_repair_is_enough()
-> Result<()> {
    logs::keep();
    let fixture = Fixture::new().await?;
    let name = fixture.host.name();
    let channel = fixture.channel().await?;
    channel.setup(|channel| async move { channel.queue_declare(queue("q")).await.map(drop) }).await?;
    let mut events = fixture.connections.events();
    // Each line names the user or the virtual host. Only this test uses these names.
    let named = format!("`{name}`");
    let trying = "trying until it works";
    let user = format!("/api/users/{name}");
    let rights = format!("/api/permissions/{name}/{name}");
    let everything = json!({"configure": ".*", "write": ".*", "read": ".*"});
    let mut recovered = async || {
        while let Some(event) = timeout(ROOM, events.next()).await.context("it has not reconnected")? {
            if matches!(event, Event::Recovered) {
                return Ok(());
            }
        }
        anyhow::bail!("the stream of events has ended")
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
    // Between the two requests the user has no rights in the virtual host, which is another kind of failure.
    let missing = logs::with(&[&named, trying, "not found"]);
    ensure!(missing.len() == 1, "{missing:?}");
    channel.queue_declare(queue("q")).await?;

    // RabbitMQ gives the same answer for an unknown user and a wrong password. The client logs the same failure again
    // only after a connection that has lasted for a second.
    sleep(Duration::from_millis(1_200)).await;
    let before = logs::with(&[&named, trying, "and its password"]).len();
    fixture.host.delete(&user).await?;
    // Some versions close the user's connections now, others do not.
    drop(timeout(Duration::from_secs(5), fixture.host.close_all_connections()).await);
    let deadline = Instant::now() + ROOM;
    while logs::with(&[&named, trying, "and its password"]).len() == before {
        ensure!(Instant::now() < deadline, "the log does not mention the deleted user");
        sleep(Duration::from_millis(20)).await;
    }
    fixture.host.put(&user, json!({"password": fixture.host.password(), "tags": ""})).await?;
    fixture.host.put(&rights, everything).await?;
    recovered().await?;
    let refused = logs::with(&[&named, trying, "and its password"]).len();
    ensure!(refused == before + 1, "{refused} lines in the log, {before} before");
    channel.queue_declare(queue("q")).await?;
    Ok(())
}
