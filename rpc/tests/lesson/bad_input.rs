//! What the programs of chapter 6 do when something is wrong.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use testbed::{
    Broker, Program, lesson,
    stranger::{Letter, tables},
};

use crate::{AWAITING, RPC_CLIENT, RPC_SERVER, declare_queue, gets, request, rpc_client, server};

#[tokio::test]
async fn a_bad_address_is_one_clear_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let (client, server) = (Program::new(RPC_CLIENT), Program::new(RPC_SERVER));
    tokio::try_join!(lesson::refuses_bad_addresses(&host, &client), lesson::refuses_bad_addresses(&host, &server))?;
    Ok(())
}

#[tokio::test]
async fn an_error_of_the_server_is_printed_as_such() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let _server = server(&host).await?;
    for n in ["abc", "-1", "187", "100000", "", "3.5", "two words"] {
        let end = rpc_client(&host, n).run().await?;
        let line = lesson::one_clear_line(&end)?;
        assert_eq!(line, "Error: the server answered with an error: fib takes a whole number from 0 to 186");
        assert_eq!(end.stdout, format!(" [x] Requesting fib({n})\n"));
    }
    gets(rpc_client(&host, "30"), "30", "832040").await
}

#[tokio::test]
async fn without_a_server_and_its_queue_the_client_says_so_at_once() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let start = Instant::now();
    let end = rpc_client(&host, "30").run().await?;
    // Long before its timeout of ten seconds.
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
    let line = lesson::one_clear_line(&end)?;
    assert!(line.contains("no queue `rpc_queue`") && line.contains("is its receiver running?"), "{line}");
    assert_eq!(end.stdout, " [x] Requesting fib(30)\n");
    Ok(())
}

#[tokio::test]
async fn without_a_server_on_the_queue_the_client_says_so_after_its_timeout() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    declare_queue(&host).await?;
    let start = Instant::now();
    let client = rpc_client(&host, "30").args(["--timeout", "2"]).deadline(Duration::from_secs(8));
    let end = client.run().await?;
    assert!(start.elapsed() >= Duration::from_secs(2), "it took {:?}", start.elapsed());
    let line = lesson::one_clear_line(&end)?;
    for part in ["`rpc_queue`", "no answer within 2 s", "is a server running"] {
        assert!(line.contains(part), "{line}");
    }
    assert_eq!(end.stdout, " [x] Requesting fib(30)\n");
    Ok(())
}

#[tokio::test]
async fn the_timeout_is_ten_seconds() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    declare_queue(&host).await?;
    let client = rpc_client(&host, "30").spawn()?;
    // The request expires when its client gives up, so the test need not wait ten seconds.
    let request = request(&host).await?;
    let expiration: u32 = request["properties"]["expiration"].as_str().context("no expiration")?.parse()?;
    assert!((9_500..=10_000).contains(&expiration), "it expires after {expiration} ms");
    drop(client);
    Ok(())
}

#[tokio::test]
async fn an_error_reply_of_a_server_in_another_language_is_an_error() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    declare_queue(&host).await?;
    let client = rpc_client(&host, "30").spawn()?;
    let request = request(&host).await?;
    let id = request["properties"]["correlation_id"].as_str().context("no correlation id")?;
    let reply_to = request["properties"]["reply_to"].as_str().context("no reply queue")?;
    let properties = json!({"correlation_id": id, "type": "error"});
    lesson::publish(&host, "", reply_to, properties, "out of numbers").await?;
    let end = client.wait().await?;
    assert_eq!(lesson::one_clear_line(&end)?, "Error: the server answered with an error: out of numbers");
    Ok(())
}

#[tokio::test]
async fn a_queue_that_was_declared_differently_is_one_clear_line() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let classic = json!({"durable": true, "arguments": {"x-queue-type": "classic"}});
    host.put("/api/queues/{vhost}/rpc_queue", classic).await?;
    let end = Program::new(RPC_SERVER).url(host.url()).run().await?;
    let line = lesson::one_clear_line(&end)?;
    for part in ["cannot declare queue `rpc_queue`", "406", "x-queue-type", "use another name, or delete the old one"] {
        assert!(line.contains(part), "{line}");
    }
    assert_eq!(end.stdout, "");
    Ok(())
}

#[tokio::test]
async fn the_help_has_an_example_and_no_password() -> Result<()> {
    lesson::shows_help(&Program::new(RPC_CLIENT), "rpc_client -- ").await?;
    lesson::shows_help(&Program::new(RPC_SERVER), "rpc_server").await
}

#[tokio::test]
async fn an_argument_it_does_not_know_is_refused_with_the_usage() -> Result<()> {
    lesson::shows_usage(&Program::new(RPC_CLIENT).args(["1", "2"])).await?;
    lesson::shows_usage(&Program::new(RPC_CLIENT).arg("--something")).await?;
    lesson::shows_usage(&Program::new(RPC_SERVER).arg("something")).await
}

#[tokio::test]
async fn a_timeout_is_a_number_of_seconds() -> Result<()> {
    for timeout in ["0", "soon", "-1", "1.5", ""] {
        let stderr = lesson::refuses_arguments(&Program::new(RPC_CLIENT).args(["--timeout", timeout])).await?;
        assert!(stderr.contains("--timeout <"), "{stderr}");
    }
    Ok(())
}

#[tokio::test]
async fn logs_go_to_standard_error_only() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    lesson::logs_to_stderr(&host, &Program::new(RPC_SERVER), AWAITING).await?;
    lesson::logs_to_stderr(&host, &rpc_client(&host, "30"), " [x] Requesting fib(30)").await
}

/// Such a header would overflow the stack: of each server that gets the request, or of a client that gets the reply.
#[tokio::test]
async fn a_header_nested_too_deeply_ends_neither_server_nor_client() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = server(&host).await?;
    Letter::new(tables(8_000), "6").post(&host, "rpc_queue").await?;
    server.expect(" [.] fib(6)").await?;
    gets(rpc_client(&host, "7"), "7", "13").await?;
    server.kill()?;
    server.wait().await?;

    let client = rpc_client(&host, "30").spawn()?;
    let request = request(&host).await?;
    let property = |name: &str| request["properties"][name].as_str().map(ToOwned::to_owned).context("not there");
    let reply = Letter { correlation_id: property("correlation_id")?, ..Letter::new(tables(8_000), "by a\nstranger") };
    reply.post(&host, &property("reply_to")?).await?;
    let end = client.wait().await?;
    assert_eq!(end.stdout, " [x] Requesting fib(30)\n [.] Got by a\\nstranger\n");
    assert!(end.code == Some(0) && end.stderr.contains("header \"a\" of the message"), "{end:?}");
    Ok(())
}

/// The consumer needs a second channel.
#[tokio::test]
async fn a_server_whose_user_may_have_one_channel_only_ends_with_the_brokers_words() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    lesson::ends_over_the_limit_of_channels(&host, &Program::new(RPC_SERVER), AWAITING).await
}
