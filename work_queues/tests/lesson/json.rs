//! The examples with tasks in JSON. The interoperability tests run them with Python on the other side.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result, ensure};
use testbed::{Broker, Program, Running, VirtualHost, build_examples, lesson};
use tokio::sync::OnceCell;

async fn example(host: &VirtualHost<'_>, name: &str, arguments: &[&str]) -> Result<Program> {
    static EXAMPLES: OnceCell<BTreeMap<String, PathBuf>> = OnceCell::const_new();
    let examples = EXAMPLES.get_or_try_init(build_examples).await?;
    let program = Program::new(examples.get(name).with_context(|| format!("no example {name}"))?);
    Ok(program.url(host.url()).args(arguments))
}

async fn worker(host: &VirtualHost<'_>, arguments: &[&str]) -> Result<Running> {
    let mut worker = example(host, "json_worker", arguments).await?.spawn()?;
    worker.stderr_line_containing("Waiting for tasks").await?;
    Ok(worker)
}

async fn send(host: &VirtualHost<'_>, tasks: &[&str]) -> Result<()> {
    let end = example(host, "json_master", &[&["tasks"], tasks].concat()).await?.run().await?;
    let sent: String = tasks.iter().map(|task| format!(" [x] Sent {task}\n")).collect();
    ensure!(end.code == Some(0) && end.stdout == sent && end.stderr.is_empty(), "{end:?}");
    Ok(())
}

#[tokio::test]
async fn a_task_is_printed_as_json_and_done() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut first = worker(&host, &["tasks"]).await?;
    ensure!(host.queue("tasks").await?["durable"] == true, "the queue is not durable");
    send(&host, &[r#"{"b":1,"a":[null]}"#, "{}"]).await?;
    first.expect(r#"{"b":1,"a":[null]}"#).await?;
    first.expect("{}").await?;
    send(&host, &[r#"{"n":2}"#]).await?;
    // It gets one task at a time, so it has acknowledged the earlier ones.
    first.expect(r#"{"n":2}"#).await?;
    Ok(())
}

#[tokio::test]
async fn a_task_that_fails_goes_to_the_next_worker() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut fails = worker(&host, &["tasks", "--fail-on", "bad"]).await?;
    send(&host, &[r#"{"is":"good"}"#, r#"{"is":"bad"}"#]).await?;
    for line in [r#"{"is":"good"}"#, r#"{"is":"bad"}"#, r#"{"is":"bad"}"#] {
        fails.expect(line).await?;
    }
    fails.stderr_line_containing("failed as asked").await?;
    fails.kill()?;
    worker(&host, &["tasks"]).await?.expect(r#"{"is":"bad"}"#).await
}

#[tokio::test]
async fn a_master_without_workers_queue_says_so() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let end = example(&host, "json_master", &["tasks", "{}"]).await?.run().await?;
    let line = lesson::one_clear_line(&end)?;
    ensure!(line.contains("no queue `tasks`") && end.stdout.is_empty(), "{end:?}");
    Ok(())
}

#[tokio::test]
async fn a_task_has_to_be_a_json_object() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    for tasks in [&["tasks"][..], &["tasks", "1"], &["tasks", "{}", "{"]] {
        lesson::refuses_arguments(&example(&host, "json_master", tasks).await?).await?;
    }
    Ok(())
}
