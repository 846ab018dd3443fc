//! What chapter 2 promises, shown by its programs on a real RabbitMQ.

mod bad_input;
mod json;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use testbed::{Broker, Finished, Program, Running, VirtualHost, lesson};

const WAITING: &str = " [*] Waiting for messages. To exit press CTRL+C";
const DONE: &str = " [x] Done";

const NEW_TASK: &str = env!("CARGO_BIN_EXE_new_task");
const WORKER: &str = env!("CARGO_BIN_EXE_worker");

fn new_task(host: &VirtualHost<'_>) -> Program {
    Program::new(NEW_TASK).url(host.url())
}

/// Sends a task. When this returns, the task is in the queue.
async fn send(host: &VirtualHost<'_>, task: &str) -> Result<Finished> {
    let sent = new_task(host).arg(task).run().await?;
    ensure!(sent.code == Some(0) && sent.stdout == format!(" [x] Sent {task}\n"), "{sent:?}");
    Ok(sent)
}

/// Starts a worker. When this returns, it has subscribed.
async fn worker(host: &VirtualHost<'_>) -> Result<Running> {
    let mut worker = Program::new(WORKER).url(host.url()).spawn()?;
    worker.expect(WAITING).await?;
    Ok(worker)
}

/// The worker's next line must say that it has begun this task.
async fn begins(worker: &mut Running, task: &str) -> Result<()> {
    worker.expect(&format!(" [x] Received {task}")).await
}

/// The worker's next lines must say that it has begun and finished this task.
async fn does(worker: &mut Running, task: &str) -> Result<()> {
    begins(worker, task).await?;
    worker.expect(DONE).await
}

#[tokio::test]
async fn a_task_is_sent_and_done() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut worker = worker(&host).await?;
    let sent = send(&host, "a task").await?;
    assert_eq!(sent.stderr, "");
    does(&mut worker, "a task").await?;

    worker.interrupt()?;
    let end = worker.wait().await?;
    assert_eq!(end.stdout, format!("{WAITING}\n [x] Received a task\n{DONE}\n"));
    assert_eq!(end.stderr, "");
    Ok(())
}

#[tokio::test]
async fn without_words_the_task_is_hello_world() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let sent = new_task(&host).run().await?;
    assert_eq!(sent.stdout, " [x] Sent Hello World!\n");
    does(&mut worker(&host).await?, "Hello World!").await
}

#[tokio::test]
async fn words_are_joined() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let sent = new_task(&host).args(["Three", "words", "and more"]).run().await?;
    assert_eq!(sent.stdout, " [x] Sent Three words and more\n");
    does(&mut worker(&host).await?, "Three words and more").await
}

#[tokio::test]
async fn tasks_sent_before_there_is_a_worker_wait_in_order() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    for task in ["first", "second", "third"] {
        send(&host, task).await?;
    }
    let mut worker = worker(&host).await?;
    for task in ["first", "second", "third"] {
        does(&mut worker, task).await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_dot_is_a_second_of_work() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut worker = worker(&host).await?;
    let start = Instant::now();
    send(&host, "one . and another.").await?;
    does(&mut worker, "one . and another.").await?;
    assert!(start.elapsed() >= Duration::from_secs(2), "done after {:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn two_workers_take_turns() -> Result<()> {
    take_turns(2).await
}

#[tokio::test]
async fn three_workers_take_turns() -> Result<()> {
    take_turns(3).await
}

/// The workers get the tasks in turn, in the order in which they were started.
async fn take_turns(count: usize) -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut workers = Vec::new();
    for _ in 0..count {
        workers.push(worker(&host).await?);
    }
    for number in 0..count * 3 {
        let task = format!("task {number}");
        send(&host, &task).await?;
        // The worker that has been free for the longest time is next. So send one task at a time.
        does(&mut workers[number % count], &task).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_busy_worker_gets_no_second_task_while_another_is_free() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut busy = worker(&host).await?;
    let mut free = worker(&host).await?;
    send(&host, "a minute of work: ............................................................").await?;
    assert!(busy.line().await?.starts_with(" [x] Received a minute"));
    // If the workers took turns, the busy worker would get every second of these tasks.
    for task in ["first", "second", "third", "fourth"] {
        send(&host, task).await?;
        does(&mut free, task).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_waiting_task_is_not_kept_for_a_busy_worker() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut busy = worker(&host).await?;
    send(&host, "long....................").await?;
    begins(&mut busy, "long....................").await?;
    // There is no other worker. Without a prefetch of 1, RabbitMQ would send these to the busy worker.
    send(&host, "first").await?;
    send(&host, "second").await?;

    let mut newcomer = worker(&host).await?;
    does(&mut newcomer, "first").await?;
    does(&mut newcomer, "second").await
}

#[tokio::test]
async fn a_task_outlives_its_worker() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut first = worker(&host).await?;
    let mut other = worker(&host).await?;
    send(&host, "long....................").await?;
    begins(&mut first, "long....................").await?;
    first.kill()?;
    begins(&mut other, "long....................").await
}

#[tokio::test]
async fn ctrl_c_ends_a_worker_at_once_and_its_task_goes_back() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut first = worker(&host).await?;
    send(&host, "a minute of work: ............................................................").await?;
    assert!(first.line().await?.starts_with(" [x] Received a minute"));
    first.interrupt()?;
    // The deadline of `wait` is shorter than the work.
    let end = first.wait().await?;
    assert!(!end.stdout.contains(DONE), "{}", end.stdout);

    let message = lesson::take(&host, "task_queue").await?;
    assert_eq!(message["redelivered"], true);
    Ok(())
}

#[tokio::test]
async fn a_task_that_is_done_does_not_come_again() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut first = worker(&host).await?;
    send(&host, "done.").await?;
    send(&host, "next....................").await?;
    does(&mut first, "done.").await?;
    // With a prefetch of 1, the next task comes only after the acknowledgement of the one before.
    begins(&mut first, "next....................").await?;
    first.kill()?;
    // Requeued tasks come in the old order, so the first task would come first.
    begins(&mut worker(&host).await?, "next....................").await
}

#[tokio::test]
async fn a_task_is_persistent() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    send(&host, "a task").await?;
    let message = lesson::take(&host, "task_queue").await?;
    assert_eq!(message["payload"], "a task");
    assert_eq!(message["properties"]["delivery_mode"], 2);
    assert_eq!(message["exchange"], "");
    assert_eq!(message["routing_key"], "task_queue");
    Ok(())
}

#[tokio::test]
async fn both_programs_declare_the_same_durable_quorum_queue() -> Result<()> {
    let broker = Broker::shared().await?;
    let (by_sender, by_worker) = (broker.virtual_host().await?, broker.virtual_host().await?);
    send(&by_sender, "a task").await?;
    let _worker = worker(&by_worker).await?;
    for host in [by_sender, by_worker] {
        let queue = host.queue("task_queue").await?;
        assert_eq!(queue["durable"], true);
        assert_eq!(queue["auto_delete"], false);
        assert_eq!(queue["exclusive"], false);
        assert_eq!(queue["arguments"], json!({"x-queue-type": "quorum"}));
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_that_loses_its_connection_gives_its_task_back_and_continues() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut worker = worker(&host).await?;
    send(&host, "cut off.").await?;
    begins(&mut worker, "cut off.").await?;
    host.close_all_connections().await?;
    worker.stderr_line_containing("the connection to RabbitMQ was lost").await?;
    worker.expect(DONE).await?;
    // Its acknowledgement was too late, so the task comes again.
    does(&mut worker, "cut off.").await?;
    send(&host, "and on").await?;
    does(&mut worker, "and on").await
}

/// Durable queues and persistent messages, on a broker of its own.
#[tokio::test]
async fn a_broker_that_restarts_loses_no_task_and_no_worker() -> Result<()> {
    let broker = Broker::start().await?;
    let (without_worker, with_worker) = (broker.virtual_host().await?, broker.virtual_host().await?);
    send(&without_worker, "first").await?;
    send(&without_worker, "second").await?;
    let mut idle = worker(&with_worker).await?;

    broker.restart().await?;

    let mut late = worker(&without_worker).await?;
    does(&mut late, "first").await?;
    does(&mut late, "second").await?;
    idle.stderr_line_containing("the connection to RabbitMQ was lost").await?;
    send(&with_worker, "after the restart").await?;
    does(&mut idle, "after the restart").await?;
    drop((late, idle, without_worker, with_worker));
    broker.shutdown().await
}
