//! The plain programs, without the helper: each works with the programs that use it, and lacks what the text says.

use amqprs::BasicProperties;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use testbed::{Broker, Program, Running, VirtualHost, lesson};

use crate::{AWAITING, declare_queue, gets, json::example, plain_client::PlainClient, request, rpc_client, server};

const REJECTED: &str = " [.] Rejected a request: its body or its `reply_to` is wrong";
const IGNORED: &str = " [.] Ignored a reply with an unknown correlation id";

async fn plain_client(host: &VirtualHost<'_>, n: &str) -> Result<Program> {
    Ok(example("plain_rpc_client").await?.url(host.url()).arg(n))
}

async fn plain_server(host: &VirtualHost<'_>) -> Result<Running> {
    let mut server = example("plain_rpc_server").await?.url(host.url()).spawn()?;
    server.expect(AWAITING).await?;
    Ok(server)
}

#[tokio::test]
async fn the_plain_client_gets_its_answer_from_the_helpers_server() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = server(&host).await?;
    for (n, answer) in [("30", "832040"), ("0", "0"), ("186", "332825110087067562321196029789634457848")] {
        gets(plain_client(&host, n).await?, n, answer).await?;
        server.expect(&format!(" [.] fib({n})")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_helpers_client_gets_its_answer_from_the_plain_server() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = plain_server(&host).await?;
    for (n, answer) in [("30", "832040"), ("0", "0"), ("186", "332825110087067562321196029789634457848")] {
        gets(rpc_client(&host, n), n, answer).await?;
        server.expect(&format!(" [.] fib({n})")).await?;
    }
    gets(example("direct_client").await?.url(host.url()).arg("6"), "6", "8").await
}

#[tokio::test]
async fn a_reply_with_an_unknown_correlation_id_is_ignored() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    declare_queue(&host).await?;
    let mut client = plain_client(&host, "30").await?.spawn()?;
    let request = request(&host).await?;
    let id = request["properties"]["correlation_id"].as_str().context("no correlation id")?;
    let reply_to = request["properties"]["reply_to"].as_str().context("no reply queue")?;
    for stranger in [json!({"correlation_id": "another"}), json!({})] {
        lesson::publish(&host, "", reply_to, stranger, "1").await?;
        client.stderr_line_containing(IGNORED).await?;
    }
    lesson::publish(&host, "", reply_to, json!({"correlation_id": id}), "3").await?;
    let end = client.wait().await?;
    ensure!(end.code == Some(0) && end.stdout == " [x] Requesting fib(30)\n [.] Got 3\n", "{end:?}");
    Ok(())
}

#[tokio::test]
async fn the_plain_server_rejects_requests_it_cannot_answer_and_still_works() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = plain_server(&host).await?;
    let client = PlainClient::new(&host).await?;
    for body in ["abc", "-1", "187", "100000", "", "3.5", "99999999999999999999999999999999", "\0"] {
        client.ask("1", body).await?;
        server.stderr_line_containing(REJECTED).await?;
    }
    client.ask("1", vec![b'9'; 10 << 20]).await?;
    server.stderr_line_containing(REJECTED).await?;
    client.ask("1", [0xff, 0xfe]).await?;
    server.stderr_line_containing(REJECTED).await?;
    client.send(BasicProperties::default(), "30").await?;
    server.stderr_line_containing(REJECTED).await?;
    gets(rpc_client(&host, "7"), "7", "13").await?;
    // The server computed nothing for the other requests.
    server.expect(" [.] fib(7)").await
}

#[tokio::test]
async fn the_plain_servers_reply_has_the_id_of_its_request() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let _server = plain_server(&host).await?;
    let mut client = PlainClient::new(&host).await?;
    client.ask("one of many", "10").await?;
    let reply = client.reply().await?;
    ensure!(reply.text() == "55" && reply.properties.correlation_id().is_some_and(|id| id == "one of many"));
    ensure!(reply.properties.message_type().is_none() && reply.exchange.is_empty());

    let properties = BasicProperties::default().with_reply_to(&client.reply_queue).finish();
    client.send(properties, "11").await?;
    let reply = client.reply().await?;
    ensure!(reply.text() == "89" && reply.properties.correlation_id().is_none());
    Ok(())
}

#[tokio::test]
async fn the_plain_client_takes_an_error_for_a_result() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let _server = server(&host).await?;
    gets(plain_client(&host, "abc").await?, "abc", "fib takes a whole number from 0 to 186").await
}

#[tokio::test]
async fn the_plain_client_gets_no_answer_to_a_request_that_was_rejected() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = plain_server(&host).await?;
    let client = plain_client(&host, "abc").await?.spawn()?;
    server.stderr_line_containing(REJECTED).await?;
    // There was time enough for a reply: meanwhile the server has answered another request.
    gets(rpc_client(&host, "7"), "7", "13").await?;
    waits_in_vain(client, " [x] Requesting fib(abc)\n").await
}

#[tokio::test]
async fn without_the_servers_queue_the_request_is_lost() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut client = plain_client(&host, "30").await?.spawn()?;
    client.expect(" [x] Requesting fib(30)").await?;
    // The helper's client says that there is no queue. The plain client does not know.
    let end = rpc_client(&host, "30").run().await?;
    ensure!(lesson::one_clear_line(&end)?.contains("no queue `rpc_queue`"), "{end:?}");
    let mut late = plain_server(&host).await?;
    gets(rpc_client(&host, "7"), "7", "13").await?;
    late.expect(" [.] fib(7)").await?;
    waits_in_vain(client, " [x] Requesting fib(30)\n").await
}

#[tokio::test]
async fn a_request_outlives_its_plain_client() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    declare_queue(&host).await?;
    let mut client = plain_client(&host, "20").await?.spawn()?;
    request_is_in_the_queue(&host).await?;
    client.kill()?;
    client.wait().await?;
    plain_server(&host).await?.expect(" [.] fib(20)").await
}

#[tokio::test]
async fn a_plain_client_that_has_lost_its_connection_waits_in_vain() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    declare_queue(&host).await?;
    let mut client = plain_client(&host, "20").await?.spawn()?;
    request_is_in_the_queue(&host).await?;
    host.close_all_connections().await?;
    client.stderr_line_containing("the connection to RabbitMQ was lost").await?;
    let mut server = plain_server(&host).await?;
    server.expect(" [.] fib(20)").await?;
    gets(rpc_client(&host, "7"), "7", "13").await?;
    waits_in_vain(client, " [x] Requesting fib(20)\n").await
}

#[tokio::test]
async fn a_reply_that_the_broker_refuses_ends_the_plain_server_and_not_the_helpers() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    // A queue that refuses every message.
    let full = json!({"durable": true, "arguments": {"x-max-length": 0, "x-overflow": "reject-publish"}});
    host.put("/api/queues/{vhost}/full", full).await?;
    let ask = async || lesson::publish(&host, "", "rpc_queue", json!({"reply_to": "full"}), "30").await;

    let mut helpers = server(&host).await?;
    ask().await?;
    helpers.expect(" [.] fib(30)").await?;
    gets(rpc_client(&host, "7"), "7", "13").await?;
    helpers.interrupt()?;
    helpers.wait().await?;

    let plain = plain_server(&host).await?;
    ask().await?;
    let end = plain.wait().await?;
    ensure!(end.code == Some(1) && end.stderr.contains("Error: RabbitMQ refused the message"), "{end:?}");
    Ok(())
}

#[tokio::test]
async fn a_plain_server_outlives_its_connection() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = plain_server(&host).await?;
    host.close_all_connections().await?;
    server.stderr_line_containing("the connection to RabbitMQ was lost").await?;
    gets(rpc_client(&host, "11"), "11", "89").await?;
    server.expect(" [.] fib(11)").await
}

#[tokio::test]
async fn a_bad_address_is_one_clear_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let (client, server) = (example("plain_rpc_client").await?, example("plain_rpc_server").await?);
    tokio::try_join!(lesson::refuses_bad_addresses(&host, &client), lesson::refuses_bad_addresses(&host, &server))?;
    Ok(())
}

async fn request_is_in_the_queue(host: &VirtualHost<'_>) -> Result<()> {
    lesson::until("the request", async || {
        let queue = host.queue("rpc_queue").await.ok()?;
        (queue["messages_ready"].as_u64() == Some(1)).then_some(())
    })
    .await
}

/// Ends a client that still waits. Until then it has printed only this.
async fn waits_in_vain(mut client: Running, stdout: &str) -> Result<()> {
    client.kill()?;
    let end = client.wait().await?;
    ensure!(end.code != Some(0) && end.stdout == stdout && !end.stderr.contains("Error"), "{end:?}");
    Ok(())
}
