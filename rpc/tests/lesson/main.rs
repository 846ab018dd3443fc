//! What chapter 6 promises, shown by its programs on a real RabbitMQ.

mod bad_input;
mod by_hand;
mod json;
mod plain_client;
mod under_fire;
mod wire;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{ConnectionManager, existing_queue};
use serde_json::{Value, json};
use testbed::{Broker, Program, Running, VirtualHost, lesson};
use tokio::task::JoinSet;

const AWAITING: &str = " [x] Awaiting RPC requests";

const RPC_CLIENT: &str = env!("CARGO_BIN_EXE_rpc_client");
const RPC_SERVER: &str = env!("CARGO_BIN_EXE_rpc_server");

fn rpc_client(host: &VirtualHost<'_>, n: &str) -> Program {
    Program::new(RPC_CLIENT).url(host.url()).arg(n)
}

/// Starts a server. When this returns, it is subscribed.
async fn server(host: &VirtualHost<'_>) -> Result<Running> {
    let mut server = Program::new(RPC_SERVER).url(host.url()).spawn()?;
    server.expect(AWAITING).await?;
    Ok(server)
}

/// Runs the client, which must get this answer.
async fn gets(client: Program, n: &str, answer: &str) -> Result<()> {
    let end = client.run().await?;
    let expected = format!(" [x] Requesting fib({n})\n [.] Got {answer}\n");
    ensure!(end.code == Some(0) && end.stdout == expected && end.stderr.is_empty(), "expected {expected:?}: {end:?}");
    Ok(())
}

/// Declares the queue of the servers. No server consumes from it.
async fn declare_queue(host: &VirtualHost<'_>) -> Result<()> {
    let quorum = json!({"durable": true, "arguments": {"x-queue-type": "quorum"}});
    host.put("/api/queues/{vhost}/rpc_queue", quorum).await
}

/// Waits for the request that a client sends to a queue without a server.
async fn request(host: &VirtualHost<'_>) -> Result<Value> {
    lesson::until("the request", async || lesson::take(host, "rpc_queue").await.ok()).await
}

#[tokio::test]
async fn a_question_is_answered() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = server(&host).await?;
    gets(rpc_client(&host, "6"), "6", "8").await?;
    server.expect(" [.] fib(6)").await?;

    server.interrupt()?;
    let end = server.wait().await?;
    assert_eq!(end.stdout, format!("{AWAITING}\n [.] fib(6)\n"));
    assert_eq!(end.stderr, "");
    Ok(())
}

#[tokio::test]
async fn without_a_number_it_is_30() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = server(&host).await?;
    gets(Program::new(RPC_CLIENT).url(host.url()), "30", "832040").await?;
    server.expect(" [.] fib(30)").await
}

#[tokio::test]
async fn the_answers_are_right() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = server(&host).await?;
    for (n, answer) in [
        ("0", "0"),
        ("1", "1"),
        ("2", "1"),
        ("10", "55"),
        ("93", "12200160415121876738"),
        // The first number that does not fit into 64 bits, and the last one that fits into 128.
        ("94", "19740274219868223167"),
        ("186", "332825110087067562321196029789634457848"),
    ] {
        gets(rpc_client(&host, n), n, answer).await?;
        server.expect(&format!(" [.] fib({n})")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn many_clients_at_once_each_get_their_own_answer() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let _server = server(&host).await?;
    let mut clients = JoinSet::new();
    let (mut a, mut b) = (0_u64, 1);
    for n in 0..30 {
        let (n, answer) = (n.to_string(), a.to_string());
        let client = rpc_client(&host, &n);
        clients.spawn(async move { gets(client, &n, &answer).await });
        (a, b) = (b, a + b);
    }
    clients.join_all().await.into_iter().collect()
}

#[tokio::test]
async fn two_servers_share_the_work() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut one = server(&host).await?;
    let mut other = server(&host).await?;
    for n in ["3", "4", "5", "6", "7", "8"] {
        let end = rpc_client(&host, n).run().await?;
        assert_eq!(end.code, Some(0), "{end:?}");
    }
    assert!(one.line().await?.starts_with(" [.] fib("));
    assert!(other.line().await?.starts_with(" [.] fib("));
    Ok(())
}

/// A server that holds a request and dies does not keep it: another server gets the request.
#[cfg(unix)]
#[tokio::test]
async fn when_a_server_dies_with_a_request_another_one_answers() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut frozen = server(&host).await?;
    let mut other = server(&host).await?;
    let id = frozen.id().context("the server has ended")?.to_string();
    assert!(std::process::Command::new("kill").args(["-STOP", &id]).status()?.success());

    let mut clients = JoinSet::new();
    clients.spawn(gets(rpc_client(&host, "9"), "9", "34"));
    clients.spawn(gets(rpc_client(&host, "10"), "10", "55"));
    // One request went to the frozen server. With its prefetch of 1, it gets no second one.
    let answered = other.line().await?;
    frozen.kill()?;
    let left = if answered == " [.] fib(9)" { " [.] fib(10)" } else { " [.] fib(9)" };
    other.expect(left).await?;
    clients.join_all().await.into_iter().collect()
}

#[tokio::test]
async fn both_sides_may_start_first() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    declare_queue(&host).await?;
    let mut client = rpc_client(&host, "12").spawn()?;
    client.expect(" [x] Requesting fib(12)").await?;
    let _server = server(&host).await?;
    client.expect(" [.] Got 144").await
}

#[tokio::test]
async fn the_request_queue_is_durable_and_quorum() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let _server = server(&host).await?;
    let queue = host.queue("rpc_queue").await?;
    assert_eq!(queue["durable"], true);
    assert_eq!(queue["auto_delete"], false);
    assert_eq!(queue["exclusive"], false);
    assert_eq!(queue["arguments"], json!({"x-queue-type": "quorum"}));
    Ok(())
}

#[tokio::test]
async fn a_request_is_what_servers_in_other_languages_expect() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    declare_queue(&host).await?;
    let mut client = rpc_client(&host, "30").spawn()?;
    let request = request(&host).await?;
    assert_eq!(request["payload"], "30");
    assert_eq!(request["exchange"], "");
    let properties = &request["properties"];
    let id = properties["correlation_id"].as_str().context("no correlation id")?;
    assert_eq!(id.len(), "123e4567-e89b-12d3-a456-426614174000".len(), "{id} is no UUID");
    let reply_to = properties["reply_to"].as_str().context("no reply queue")?;
    assert!(reply_to.starts_with("amq.gen-"), "{reply_to}");
    assert_eq!(host.queue(reply_to).await?["exclusive"], true);

    // A server without the helper answers like this: with a `correlation_id`, but without a `type`.
    lesson::publish(&host, "", reply_to, json!({"correlation_id": id}), "832040").await?;
    client.expect(" [x] Requesting fib(30)").await?;
    client.expect(" [.] Got 832040").await?;
    assert_eq!(client.wait().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_reply_to_another_question_is_ignored() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    declare_queue(&host).await?;
    let mut client = rpc_client(&host, "30").spawn()?;
    let request = request(&host).await?;
    let id = request["properties"]["correlation_id"].as_str().context("no correlation id")?;
    let reply_to = request["properties"]["reply_to"].as_str().context("no reply queue")?;
    lesson::publish(&host, "", reply_to, json!({"correlation_id": "another"}), "1").await?;
    lesson::publish(&host, "", reply_to, json!({}), "2").await?;
    lesson::publish(&host, "", reply_to, json!({"correlation_id": id}), "3").await?;
    client.expect(" [x] Requesting fib(30)").await?;
    client.expect(" [.] Got 3").await?;
    assert_eq!(client.wait().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_server_that_starts_too_late_does_not_get_an_expired_request() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    declare_queue(&host).await?;
    let start = Instant::now();
    let end = rpc_client(&host, "20").args(["--timeout", "1"]).run().await?;
    assert_eq!(end.code, Some(1));
    assert!(start.elapsed() >= Duration::from_secs(1), "it gave up after {:?}", start.elapsed());

    // The expiration begins when RabbitMQ has the request. The client's timeout begins a little earlier.
    let connections = ConnectionManager::new(host.url().parse()?);
    let channel = connections.channel("test").await?;
    lesson::until("the end of the request", async || {
        let queue = channel.queue_declare(existing_queue("rpc_queue")).await.ok()?;
        (queue.messages == 0).then_some(())
    })
    .await?;
    let mut late = server(&host).await?;
    gets(rpc_client(&host, "7"), "7", "13").await?;
    late.expect(" [.] fib(7)").await
}

#[tokio::test]
async fn ctrl_c_ends_a_server_at_once() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = Program::new(RPC_SERVER).url(host.url()).deadline(Duration::from_secs(5)).spawn()?;
    server.expect(AWAITING).await?;
    server.interrupt()?;
    server.wait().await?;
    Ok(())
}

#[tokio::test]
async fn a_server_outlives_its_connection() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = server(&host).await?;
    host.close_all_connections().await?;
    server.stderr_line_containing("the connection to RabbitMQ was lost").await?;
    gets(rpc_client(&host, "11"), "11", "89").await?;
    server.expect(" [.] fib(11)").await
}
