//! Functions and tasks over JSON, with aio-pika's `JsonRPC` and `JsonMaster` on the other side.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use testbed::VirtualHost;

use crate::{Port, Ports};

const CLIENT: &str = "json_rpc_client";

pub async fn rpc(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    let awaiting = " [x] Awaiting RPC requests";
    let _server = ports.start(to, "json_rpc_server", host, &[], awaiting).await?;
    ports.run(from, CLIENT, host, &["multiply", r#"{"x":6,"y":7}"#], &["42"]).await?;
    ports.run(from, CLIENT, host, &["divide", r#"{"x":3,"y":2}"#], &["1.5"]).await?;
    ports.run(from, CLIENT, host, &["sleep", r#"{"seconds":0.1}"#], &["null"]).await?;

    // The kind and the message of an error must arrive.
    let kind = if from == Port::Python { "JsonRPCError" } else { "the server answered with an error" };
    for (method, arguments, words) in [
        ("divide", r#"{"x":6,"y":0}"#, ["ZeroDivisionError", "division by zero"]),
        ("multiply", r#"{"x":6}"#, if to == Port::Rust { ["InvalidArguments", "`y`"] } else { ["TypeError", "y"] }),
    ] {
        fails(ports, from, host, &[method, arguments], &[kind, words[0], words[1]]).await?;
    }

    // The first call is for a function that no server has. The second is for a queue without a server, so the call
    // expires and comes back.
    let words = if from == Port::Python { ["MessageProcessError", "returned"] } else { ["no queue", "NO_ROUTE"] };
    fails(ports, from, host, &["nothing", "{}"], &words).await?;
    let silent = json!({"durable": true, "auto_delete": true, "arguments": {"x-dead-letter-exchange": "rpc.dlx"}});
    host.put("/api/queues/{vhost}/silent", silent).await?;
    let words = if from == Port::Python { ["TimeoutError", "timed-out"] } else { ["no answer", "within 1 s"] };
    fails(ports, from, host, &["silent", "{}", "--timeout", "1"], &words).await?;

    // Servers in both languages share the functions' queues.
    let _other = ports.start(from, "json_rpc_server", host, &[], awaiting).await?;
    for _ in 0..4 {
        ports.run(from, CLIENT, host, &["multiply", r#"{"x":-6,"y":7}"#], &["-42"]).await?;
    }
    Ok(())
}

/// Runs the client. It must end with exit code 1 and these words on standard error.
async fn fails(ports: &Ports, from: Port, host: &VirtualHost<'_>, arguments: &[&str], words: &[&str]) -> Result<()> {
    let end = ports.program(from, CLIENT, host, arguments)?.deadline(Duration::from_secs(20)).run().await?;
    let said = words.iter().all(|words| end.stderr.contains(words));
    ensure!(end.code == Some(1) && end.stdout.is_empty() && said, "{arguments:?} should say {words:?}: {end:?}");
    Ok(())
}

pub async fn tasks(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    let waiting = "Waiting for tasks";
    let mut worker = ports.program(to, "json_worker", host, &["jobs", "--fail-on", "bad"])?.spawn()?;
    worker.stderr_line_containing(waiting).await?;
    let (good, umlaut, bad) = (r#"{"n":1,"list":[true,null]}"#, r#"{"text":"grüße"}"#, r#"{"text":"bad"}"#);
    let sent = [&format!(" [x] Sent {good}")[..]];
    ports.run(from, "json_master", host, &["jobs", good], &sent).await?;
    worker.expect(good).await?;
    ensure!(ports.program(from, "json_master", host, &["jobs", umlaut, bad])?.run().await?.code == Some(0));
    worker.expect(umlaut).await?;
    // The task fails and comes again. At last it goes to a worker in the other language, which declares the queue in
    // the same way.
    worker.expect(bad).await?;
    worker.expect(bad).await?;
    worker.kill()?;
    let mut other = ports.program(from, "json_worker", host, &["jobs"])?.spawn()?;
    other.expect(bad).await
}
