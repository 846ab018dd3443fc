//! The six chapters, each with a sender in one language and a receiver in the other.

use anyhow::Result;
use testbed::VirtualHost;

use crate::{Port, Ports};

const MESSAGES: &str = " [*] Waiting for messages. To exit press CTRL+C";
const LOGS: &str = " [*] Waiting for logs. To exit press CTRL+C";

pub async fn hello_world(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    // One message before the receiver starts, one after it: each program has to accept the other's declaration.
    ports.run(from, "send", host, &[], &[" [x] Sent 'Hello World!'"]).await?;
    let mut receiver = ports.start(to, "receive", host, &[], MESSAGES).await?;
    receiver.expect(" [x] Received Hello World!").await?;
    ports.run(from, "send", host, &[], &[" [x] Sent 'Hello World!'"]).await?;
    receiver.expect(" [x] Received Hello World!").await
}

pub async fn work_queues(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    ports.run(from, "new_task", host, &[], &[" [x] Sent Hello World!"]).await?;
    let mut worker = ports.start(to, "worker", host, &[], MESSAGES).await?;
    ports.run(from, "new_task", host, &["A", "second", "of", "wörk."], &[" [x] Sent A second of wörk."]).await?;
    for line in [" [x] Received Hello World!", " [x] Done", " [x] Received A second of wörk.", " [x] Done"] {
        worker.expect(line).await?;
    }
    // When a worker is killed, a worker in the other language gets its task.
    let mut other = ports.start(from, "worker", host, &[], MESSAGES).await?;
    ports.run(from, "new_task", host, &["long...................."], &[" [x] Sent long...................."]).await?;
    worker.expect(" [x] Received long....................").await?;
    worker.kill()?;
    other.expect(" [x] Received long....................").await
}

pub async fn pub_sub(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    let mut receiver = ports.start(to, "receive_logs", host, &[], LOGS).await?;
    let mut other = ports.start(from, "receive_logs", host, &[], LOGS).await?;
    ports.run(from, "emit_log", host, &[], &[" [x] Sent info: Hello World!"]).await?;
    ports.run(from, "emit_log", host, &["grüße", "an alle"], &[" [x] Sent grüße an alle"]).await?;
    for receiver in [&mut receiver, &mut other] {
        receiver.expect(" [x] info: Hello World!").await?;
        receiver.expect(" [x] grüße an alle").await?;
    }
    Ok(())
}

pub async fn routing(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    let mut receiver = ports.start(to, "receive_logs_direct", host, &["warning", "info"], LOGS).await?;
    ports.run(from, "emit_log_direct", host, &[], &[" [x] Sent info:Hello World!"]).await?;
    ports.run(from, "emit_log_direct", host, &["error", "no", "match"], &[" [x] Sent error:no match"]).await?;
    ports.run(from, "emit_log_direct", host, &["warning", "a", "match"], &[" [x] Sent warning:a match"]).await?;
    receiver.expect(" [x] info:Hello World!").await?;
    receiver.expect(" [x] warning:a match").await
}

pub async fn topics(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    let keys = ["*.orange.*", "lazy.#", "anonymous.info"];
    let mut receiver = ports.start(to, "receive_logs_topic", host, &keys, LOGS).await?;
    ports.run(from, "emit_log_topic", host, &[], &[" [x] Sent anonymous.info:Hello World!"]).await?;
    for key in ["quick.orange.fox", "quick.brown.fox", "lazy.orange.elephant", "lazy"] {
        ports
            .run(from, "emit_log_topic", host, &[key, "an", "animal"], &[&format!(" [x] Sent {key}:an animal")])
            .await?;
    }
    receiver.expect(" [x] anonymous.info:Hello World!").await?;
    for key in ["quick.orange.fox", "lazy.orange.elephant", "lazy"] {
        receiver.expect(&format!(" [x] {key}:an animal")).await?;
    }
    Ok(())
}

pub async fn rpc(ports: &Ports, host: &VirtualHost<'_>, from: Port, to: Port) -> Result<()> {
    let mut server = ports.start(to, "rpc_server", host, &[], " [x] Awaiting RPC requests").await?;
    ports.run(from, "rpc_client", host, &[], &[" [x] Requesting fib(30)", " [.] Got 832040"]).await?;
    server.expect(" [.] fib(30)").await?;
    if to == Port::Rust {
        // A client that does not know error replies gets the error as an ordinary reply.
        let error = " [.] Got fib takes a whole number from 0 to 186";
        ports.run(from, "rpc_client", host, &["abc"], &[" [x] Requesting fib(abc)", error]).await?;
    }
    let answer = " [.] Got 332825110087067562321196029789634457848";
    ports.run(from, "rpc_client", host, &["186"], &[" [x] Requesting fib(186)", answer]).await?;
    server.expect(" [.] fib(186)").await
}
