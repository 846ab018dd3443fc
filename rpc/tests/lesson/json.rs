//! The examples with named functions. The interoperability tests run them with Python on the other side.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result, ensure};
use common::{ConnectionManager, rpc::JsonRpcClient};
use serde_json::json;
use testbed::{Broker, Program, Running, VirtualHost, build_examples, lesson};
use tokio::sync::OnceCell;

pub async fn example(name: &str) -> Result<Program> {
    static EXAMPLES: OnceCell<BTreeMap<String, PathBuf>> = OnceCell::const_new();
    let examples = EXAMPLES.get_or_try_init(build_examples).await?;
    Ok(Program::new(examples.get(name).with_context(|| format!("no example {name}"))?))
}

pub async fn server(host: &VirtualHost<'_>) -> Result<Running> {
    let mut server = example("json_rpc_server").await?.url(host.url()).spawn()?;
    server.expect(" [x] Awaiting RPC requests").await?;
    Ok(server)
}

async fn client(host: &VirtualHost<'_>, arguments: &[&str]) -> Result<Program> {
    Ok(example("json_rpc_client").await?.url(host.url()).args(arguments))
}

/// While this client runs, the exchange `rpc.dlx` stays, as it does with a server. Without it, one client's end deletes
/// the exchange, and the next client declares it. RabbitMQ 4.3 may then keep a broken exchange, and answer each
/// declaration with 541.
async fn keep_dead_letters(host: &VirtualHost<'_>) -> Result<JsonRpcClient> {
    let connections = ConnectionManager::new(host.url().parse()?);
    Ok(JsonRpcClient::new(&connections.channel("kept").await?).await?)
}

#[tokio::test]
async fn a_result_is_printed_as_json() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = server(&host).await?;
    for (method, arguments, result, call) in [
        ("multiply", r#"{"x":6,"y":7}"#, "42", " [.] multiply(6, 7)"),
        ("divide", r#"{"x":3,"y":2}"#, "1.5", " [.] divide(3, 2)"),
        ("sleep", r#"{"seconds":0}"#, "null", " [.] sleep(0)"),
    ] {
        let end = client(&host, &[method, arguments]).await?.run().await?;
        ensure!(end.code == Some(0) && end.stdout == format!("{result}\n") && end.stderr.is_empty(), "{end:?}");
        server.expect(call).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_error_of_the_function_is_printed_as_such() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let _server = server(&host).await?;
    for (method, arguments, words) in [
        ("divide", r#"{"x":1,"y":0}"#, "ZeroDivisionError: division by zero"),
        ("multiply", r#"{"x":9223372036854775807,"y":2}"#, "OverflowError: the product does not fit into 64 bits"),
        ("multiply", r#"{"x":1}"#, "InvalidArguments: missing field `y`"),
        ("sleep", r#"{"seconds":-1}"#, "TryFromFloatSecsError: "),
    ] {
        let end = client(&host, &[method, arguments]).await?.run().await?;
        let line = lesson::one_clear_line(&end)?;
        ensure!(line.starts_with(&format!("Error: the server answered with an error: {words}")), "{line}");
        ensure!(end.stdout.is_empty(), "{end:?}");
    }
    Ok(())
}

#[tokio::test]
async fn without_a_server_the_client_says_so() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let _kept = keep_dead_letters(&host).await?;
    let end = client(&host, &["multiply", "{}"]).await?.run().await?;
    ensure!(lesson::one_clear_line(&end)?.contains("no queue `multiply`"), "{end:?}");

    let silent = json!({"durable": true, "auto_delete": true, "arguments": {"x-dead-letter-exchange": "rpc.dlx"}});
    host.put("/api/queues/{vhost}/multiply", silent).await?;
    let end = client(&host, &["multiply", "{}", "--timeout", "1"]).await?.run().await?;
    let line = lesson::one_clear_line(&end)?;
    ensure!(line.contains("`multiply`") && line.contains("within 1 s"), "{line}");
    Ok(())
}

#[tokio::test]
async fn arguments_have_to_be_a_json_object() -> Result<()> {
    for arguments in
        [&["multiply"][..], &["multiply", "[1]"], &["multiply", "{"], &["multiply", "{}", "--timeout", "0"]]
    {
        lesson::refuses_arguments(&example("json_rpc_client").await?.args(arguments)).await?;
    }
    Ok(())
}
