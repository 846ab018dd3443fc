//! What the programs of chapter 2 do when something is wrong.

use anyhow::Result;
use serde_json::json;
use testbed::{
    Broker, Program, lesson,
    stranger::{Letter, tables},
};

use crate::{NEW_TASK, WAITING, WORKER, does, new_task, worker};

#[tokio::test]
async fn a_bad_address_is_one_clear_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let (new_task, worker) = (Program::new(NEW_TASK), Program::new(WORKER));
    tokio::try_join!(lesson::refuses_bad_addresses(&host, &new_task), lesson::refuses_bad_addresses(&host, &worker))?;
    Ok(())
}

#[tokio::test]
async fn a_queue_that_was_declared_differently_is_one_clear_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let classic = json!({"durable": true, "arguments": {"x-queue-type": "classic"}});
    host.put("/api/queues/{vhost}/task_queue", classic).await?;
    for program in [new_task(&host).arg("a task"), Program::new(WORKER).url(host.url())] {
        let end = program.run().await?;
        let line = lesson::one_clear_line(&end)?;
        for part in ["cannot declare queue `task_queue`", "406", "x-queue-type", "use another name, or delete the old"]
        {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(end.stdout, "");
    }
    Ok(())
}

#[tokio::test]
async fn a_task_that_is_not_text_does_not_stop_the_worker() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut worker = crate::worker(&host).await?;
    // `H`, a byte that cannot be in UTF-8 text, `i`.
    lesson::publish_base64(&host, "", "task_queue", "SP9p").await?;
    crate::does(&mut worker, "H\u{fffd}i").await?;
    crate::send(&host, "and on").await?;
    crate::does(&mut worker, "and on").await
}

#[tokio::test]
async fn the_help_has_an_example_and_no_password() -> Result<()> {
    lesson::shows_help(&Program::new(NEW_TASK), "new_task -- ").await?;
    lesson::shows_help(&Program::new(WORKER), "worker").await
}

#[tokio::test]
async fn an_argument_it_does_not_know_is_refused_with_the_usage() -> Result<()> {
    lesson::shows_usage(&Program::new(NEW_TASK).arg("--something")).await?;
    lesson::shows_usage(&Program::new(WORKER).arg("something")).await
}

#[tokio::test]
async fn logs_go_to_standard_error_only() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    lesson::logs_to_stderr(&host, &new_task(&host), " [x] Sent Hello World!").await?;
    let elsewhere = Broker::shared().await?.virtual_host().await?;
    lesson::logs_to_stderr(&elsewhere, &Program::new(WORKER), WAITING).await
}

/// Such headers would overflow the stack, and end each worker that gets the task.
#[tokio::test]
async fn a_task_with_a_header_nested_too_deeply_is_done_without_it() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut worker = worker(&host).await?;
    Letter::new(tables(8_000), "deep\nforged").post(&host, "task_queue").await?;
    does(&mut worker, r"deep\nforged").await
}

/// The worker needs a second channel for its consumer.
#[tokio::test]
async fn a_worker_whose_user_may_have_one_channel_only_ends_with_the_brokers_words() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    lesson::ends_over_the_limit_of_channels(&host, &Program::new(WORKER), WAITING).await
}
