//! A login that was good once: the password, the user or the virtual host is changed while a program is connected.

use std::{
    sync::{Mutex, Once, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use common::Event;
use serde_json::json;
use tokio::{sync::watch, time::timeout};
use tracing_subscriber::fmt::MakeWriter;

use crate::{Bench, queue};

const ROOM: Duration = Duration::from_secs(60);

/// The warnings of this process, line by line.
static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn log() -> watch::Receiver<usize> {
    static ONCE: Once = Once::new();
    static COUNT: std::sync::OnceLock<watch::Sender<usize>> = std::sync::OnceLock::new();
    struct Lines;
    impl std::io::Write for Lines {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            let line_text = String::from_utf8_lossy(line).into_owned();
            WARNINGS.lock().unwrap_or_else(PoisonError::into_inner).push(line_text);
            if let Some(count) = COUNT.get() {
                count.send_modify(|count| *count += 1);
            }
            Ok(line.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    impl MakeWriter<'_> for Lines {
        type Writer = Lines;
        fn make_writer(&self) -> Lines {
            Lines
        }
    }
    let count = COUNT.get_or_init(|| watch::Sender::new(0));
    ONCE.call_once(|| {
        let warnings = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false);
        // The first one in this process.
        let _ = warnings.with_writer(|| Lines).try_init();
    });
    count.subscribe()
}

/// The warnings that tell of an attempt in this virtual host.
fn warned(host: &str) -> Vec<String> {
    let named = format!("`{host}`");
    let lines = WARNINGS.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().filter(|line| line.contains(&named) && line.contains("trying until it works")).cloned().collect()
}

/// Waits for so many of them.
async fn wait_for(count: usize, host: &str, log: &mut watch::Receiver<usize>) -> Result<String> {
    let wait = log.wait_for(|_| warned(host).len() >= count);
    timeout(ROOM, wait).await.with_context(|| format!("{count} warnings: {:?}", warned(host)))??;
    Ok(warned(host).concat())
}

#[tokio::test]
async fn a_changed_password_is_said_once_and_a_deleted_user_and_virtual_host_too() -> Result<()> {
    let mut log = log();
    let bench = Bench::new().await?;
    let name = bench.host.name();
    let channel = bench.channel().await?;
    channel.setup(|channel| async move { channel.queue_declare(queue("q")).await.map(drop) }).await?;
    let mut events = bench.connections.events();
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

    bench.host.put(&user, json!({"password": "another", "tags": ""})).await?;
    bench.host.close_all_connections().await?;
    let text = wait_for(1, name, &mut log).await?;
    ensure!(text.contains("refused the connection") && text.contains("and its password"), "{text}");
    ensure!(!text.contains(bench.host.password()), "the password is in the log");
    bench.host.put(&user, json!({"password": bench.host.password(), "tags": ""})).await?;
    recovered().await?;
    ensure!(warned(name).len() == 1, "{:?}", warned(name));
    channel.queue_declare(queue("q")).await?;

    bench.host.delete(&format!("/api/vhosts/{name}")).await?;
    let text = wait_for(2, name, &mut log).await?;
    ensure!(text.contains("check the virtual host"), "{text}");
    bench.host.put(&format!("/api/vhosts/{name}"), json!({})).await?;
    bench.host.put(&rights, everything).await?;
    recovered().await?;
    println!("{}", warned(name).concat());
    channel.queue_declare(queue("q")).await?;
    Ok(())
}
