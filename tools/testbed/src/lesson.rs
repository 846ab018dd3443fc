//! Checks that every lesson program must pass, and functions that the tests of several chapters share. These publish and
//! fetch messages through the management interface, so that a test does not depend on our own client.

use std::time::Duration;

use anyhow::{Context, Error, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{Finished, Program, VirtualHost};

/// A password that is in every bad address. No output may contain it.
const MARKED: &str = "marked-passw0rd";

/// A program must report a bad address within this time.
const SOON: Duration = Duration::from_secs(15);

/// A bad address: what is wrong with it, the URL, and what the line on standard error must contain.
struct BadAddress {
    what: &'static str,
    url: String,
    says: Vec<String>,
}

/// Runs the program with addresses at which there is no broker, or a broker that refuses it. Each time it must end soon, with
/// exit code 1, nothing on standard output, and [one clear line](one_clear_line) that says what happened, where, and what to
/// do.
pub async fn refuses_bad_addresses(host: &VirtualHost<'_>, program: &Program) -> Result<()> {
    // Bound but not listening: no other program can take the port, and nothing answers there.
    let closed = TcpSocket::new_v4()?;
    closed.bind(([127, 0, 0, 1], 0).into())?;
    // Listening: the system accepts connections, and then sends nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let mut others = JoinSet::new();
    let ports = Ports {
        closed: closed.local_addr()?.port(),
        silent: silent.local_addr()?.port(),
        curt: answering(&mut others, "").await?,
        other: answering(&mut others, "SSH-2.0-OpenSSH_9.2\r\n").await?,
        web: answering(&mut others, "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await?,
    };
    let cases = bad_addresses(host, ports)?;

    let mut runs = JoinSet::new();
    for BadAddress { what, url, says } in cases {
        let run = program.clone().url(&url).env("RUST_BACKTRACE", "1").deadline(SOON).run();
        let secret = host.password().to_owned();
        runs.spawn(async move {
            let check = async {
                let finished = run.await?;
                ensure!(finished.stdout.is_empty(), "it printed {:?}", finished.stdout);
                let line = one_clear_line(&finished)?;
                for part in says.iter().filter(|part| !part.is_empty()) {
                    ensure!(line.contains(part), "it does not say {part:?}: {line}");
                }
                for secret in [MARKED, &secret] {
                    ensure!(!line.contains(secret), "it shows the password: {line}");
                }
                Ok(())
            };
            check.await.with_context(|| format!("{what} ({url:?})"))
        });
    }
    let failures: Vec<Error> = runs.join_all().await.into_iter().filter_map(Result::err).collect();
    let report: String = failures.iter().map(|failure| format!("\n- {failure:#}")).collect();
    ensure!(failures.is_empty(), "{} bad addresses are not reported as they should be:{report}", failures.len());
    Ok(())
}

/// Ports of this machine without a broker.
struct Ports {
    closed: u16,
    silent: u16,
    /// Closes each connection.
    curt: u16,
    /// Speaks another protocol.
    other: u16,
    web: u16,
}

/// A port that gives every client the same answer when it sends something, and then closes the connection.
async fn answering(servers: &mut JoinSet<()>, answer: &'static str) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    servers.spawn(async move {
        while let Ok((mut visitor, _)) = listener.accept().await {
            // A client that has closed its connection gets no answer.
            if matches!(visitor.read(&mut [0; 64]).await, Ok(1..)) {
                drop(visitor.write_all(answer.as_bytes()).await);
            }
        }
    });
    Ok(port)
}

fn bad_addresses(host: &VirtualHost<'_>, ports: Ports) -> Result<Vec<BadAddress>> {
    let Ports { closed, silent, curt, other, web } = ports;
    let good = host.url();
    let broker = host.broker();
    let (name, port) = (host.name(), broker.port());
    let management = broker.management_url().and_then(|url| url.rsplit_once(':')).context("no management page")?.1;
    let form = "amqp://user:password@localhost:5672/virtual-host";
    let case = |what, url: String, says: [&str; 3]| BadAddress { what, url, says: says.map(str::to_owned).to_vec() };
    Ok(vec![
        case(
            "nothing listens",
            format!("amqp://guest:{MARKED}@127.0.0.1:{closed}"),
            [
                &format!("cannot connect to RabbitMQ at 127.0.0.1:{closed}"),
                "is RabbitMQ running there?",
                "cargo broker",
            ],
        ),
        case(
            "the port accepts and says nothing",
            format!("amqp://guest:{MARKED}@127.0.0.1:{silent}"),
            [&format!("cannot connect to RabbitMQ at 127.0.0.1:{silent}"), "no answer within 10 s", "usually 5672"],
        ),
        case(
            "the port closes the connection",
            format!("amqp://guest:{MARKED}@127.0.0.1:{curt}"),
            [&format!("cannot connect to RabbitMQ at 127.0.0.1:{curt}"), "closes them at once", "usually 5672"],
        ),
        case(
            "something else is there",
            format!("amqp://guest:{MARKED}@127.0.0.1:{other}"),
            [&format!("cannot connect to RabbitMQ at 127.0.0.1:{other}"), "does not speak AMQP 0-9-1", "usually 5672"],
        ),
        case(
            "a web server is there",
            format!("amqp://guest:{MARKED}@127.0.0.1:{web}"),
            [&format!("cannot connect to RabbitMQ at 127.0.0.1:{web}"), "a web server answers there", "usually 5672"],
        ),
        case(
            // The management page needs five seconds to notice that the request is not HTTP. Then it closes the connection.
            "the management page is there",
            format!("amqp://guest:{MARKED}@localhost:{management}"),
            [&format!("cannot connect to RabbitMQ at localhost:{management}"), "usually 5672", ""],
        ),
        case(
            "no host has that name",
            format!("amqp://guest:{MARKED}@no-such-host.invalid"),
            ["cannot connect to RabbitMQ at no-such-host.invalid:5672", "is RabbitMQ running there?", ""],
        ),
        case(
            "wrong password",
            good.replace(host.password(), MARKED),
            [&format!("RabbitMQ at localhost:{port} refused"), &format!("check user `{name}` and its password"), ""],
        ),
        case(
            "wrong user",
            format!("amqp://nobody:{MARKED}@localhost:{port}/{name}"),
            [&format!("RabbitMQ at localhost:{port} refused"), "check user `nobody` and its password", ""],
        ),
        case(
            "wrong virtual host",
            good.replace(&format!(":{port}/{name}"), &format!(":{port}/nowhere")),
            [&format!("RabbitMQ at localhost:{port} refused"), "check the virtual host `nowhere`", "list_vhosts"],
        ),
        case(
            "another user's virtual host",
            good.replace(&format!(":{port}/{name}"), &format!(":{port}/%2F")),
            [&format!("RabbitMQ at localhost:{port} refused"), &format!("the rights of `{name}` in it"), ""],
        ),
        case("an empty URL", String::new(), ["the URL of RabbitMQ is malformed", "begin with amqp://", form]),
        case(
            "no scheme",
            format!("guest:{MARKED}@localhost:5672"),
            ["the URL of RabbitMQ is malformed", "begin with amqp://", form],
        ),
        case(
            "another scheme",
            format!("http://guest:{MARKED}@localhost:5672"),
            ["the URL of RabbitMQ is malformed", "begin with amqp://", form],
        ),
        case(
            "a port that is not a number",
            format!("amqp://guest:{MARKED}@localhost:amqp"),
            ["the URL of RabbitMQ is malformed", "port", form],
        ),
        case(
            "a port that is too large",
            format!("amqp://guest:{MARKED}@localhost:567200"),
            ["the URL of RabbitMQ is malformed", "port", form],
        ),
        case(
            "an unknown parameter",
            format!("{}?heartbeet={MARKED}", good.replace(host.password(), MARKED)),
            ["unknown parameter `heartbeet`", "known are", "heartbeat"],
        ),
        case(
            "a bad value",
            format!("{good}?heartbeat=often"),
            ["`heartbeat` cannot be `often`", "from 2 to 65535", ""],
        ),
    ])
}

/// The one line that a program prints on standard error when it cannot continue. It begins with `Error: `, and is not a panic
/// or a backtrace. The exit code is 1.
pub fn one_clear_line(finished: &Finished) -> Result<&str> {
    let Finished { code, stderr, .. } = finished;
    ensure!(*code == Some(1), "the exit code is {code:?}, standard error {stderr:?}");
    let line = stderr.strip_suffix('\n').unwrap_or(stderr);
    let line = line.strip_suffix('\r').unwrap_or(line);
    ensure!(line.starts_with("Error: ") && !line.contains('\n'), "this is not one line with an error: {stderr:?}");
    ensure!(!line.contains("panicked") && !line.contains("backtrace"), "this is a panic: {line}");
    Ok(line)
}

/// Asks for `--help`. The exit code must be 0. The help must contain an example to copy and say where the address comes from.
/// It must not contain the password, although the environment has one.
pub async fn shows_help(program: &Program, example: &str) -> Result<()> {
    for flag in ["--help", "-h"] {
        let url = format!("amqp://guest:{MARKED}@localhost:5672");
        let Finished { code, stdout, stderr } = program.clone().url(url).arg(flag).run().await?;
        ensure!(code == Some(0) && stderr.is_empty(), "{flag} ended with {code:?} and {stderr:?}");
        for part in
            [&format!("Example: cargo run --bin {example}"), "--url", "AMQP_URL", "amqp://guest:guest@localhost:5672"]
        {
            ensure!(stdout.contains(part), "{flag} does not show {part:?}:\n{stdout}");
        }
        ensure!(!stdout.contains(MARKED), "{flag} shows the password:\n{stdout}");
    }
    Ok(())
}

/// Runs the program with arguments that it cannot take. The exit code must be 2, with the usage on standard error, before it
/// connects to a broker.
pub async fn shows_usage(program: &Program) -> Result<()> {
    let stderr = refuses_arguments(program).await?;
    ensure!(stderr.contains("Usage: "), "there is no usage: {stderr}");
    Ok(())
}

/// Runs the program with arguments that it cannot take. The exit code must be 2, before it connects to a broker. Returns what
/// it prints on standard error.
pub async fn refuses_arguments(program: &Program) -> Result<String> {
    // If the program tried to connect to this address, the exit code would be another one.
    let Finished { code, stdout, stderr } = program.clone().url("amqp://127.0.0.1:1").run().await?;
    ensure!(code == Some(2), "the exit code is {code:?}, standard error {stderr:?}");
    ensure!(stdout.is_empty(), "it printed {stdout:?}");
    ensure!(stderr.starts_with("error: ") && stderr.contains("--help"), "this is no help: {stderr}");
    Ok(stderr)
}

/// Runs the program with `-v`, `-vv` and all logs. Standard output must still be the lesson, which begins with `first_line`.
/// The logs must be on standard error. Neither may contain the password.
pub async fn logs_to_stderr(host: &VirtualHost<'_>, program: &Program, first_line: &str) -> Result<()> {
    for (flag, filter) in [("-v", None), ("-vv", None), ("-v", Some("trace"))] {
        let mut program = program.clone().url(host.url()).arg(flag);
        if let Some(filter) = filter {
            program = program.env("RUST_LOG", filter);
        }
        let mut running = program.spawn()?;
        running.expect(first_line).await?;
        running.stderr_line_containing("connected to RabbitMQ").await?;
        // A receiver waits forever. A sender may have ended already.
        drop(running.kill());
        let Finished { stdout, stderr, .. } = running.wait().await?;
        ensure!(stdout.lines().all(|line| line.starts_with(" [")), "{flag} put something else into {stdout:?}");
        ensure!(!stderr.contains(host.password()), "{flag} (RUST_LOG {filter:?}) shows the password:\n{stderr}");
    }
    Ok(())
}

/// Runs a program that needs two channels, although its user may have only one. Two of its runs must end with the broker's
/// words. RabbitMQ counts a channel a moment after it is open, and may accept the second one. Then the program prints its
/// first line, and is run again.
pub async fn ends_over_the_limit_of_channels(
    host: &VirtualHost<'_>,
    program: &Program,
    first_line: &str,
) -> Result<()> {
    host.put(&format!("/api/user-limits/{}/max-channels", host.name()), json!({"value": 1})).await?;
    let mut refused = 0;
    for _ in 0..10 {
        let mut running = program.clone().url(host.url()).spawn()?;
        if running.expect(first_line).await.is_ok() {
            running.kill()?;
            running.wait().await?;
            continue;
        }
        let Finished { code, stdout, stderr } = running.wait().await?;
        let last = stderr.lines().last().unwrap_or_default();
        ensure!(code == Some(1) && stdout.is_empty(), "{code:?} {stdout:?} {stderr:?}");
        ensure!(last.starts_with("Error: cannot open a channel: 530 NOT_ALLOWED"), "{stderr}");
        ensure!(last.contains("channels") && last.contains("limit"), "{stderr}");
        refused += 1;
        if refused == 2 {
            return Ok(());
        }
    }
    bail!("of 10 runs {refused} were refused")
}

/// Publishes a message through the management interface. An error if it reaches no queue. The properties have the names of
/// AMQP.
pub async fn publish(
    host: &VirtualHost<'_>,
    exchange: &str,
    routing_key: &str,
    properties: Value,
    body: &str,
) -> Result<()> {
    publish_encoded(host, exchange, routing_key, properties, ("string", body)).await
}

/// The same for a body that is not text, given in Base64.
pub async fn publish_base64(host: &VirtualHost<'_>, exchange: &str, routing_key: &str, body: &str) -> Result<()> {
    publish_encoded(host, exchange, routing_key, json!({}), ("base64", body)).await
}

async fn publish_encoded(
    host: &VirtualHost<'_>,
    exchange: &str,
    routing_key: &str,
    properties: Value,
    (encoding, body): (&str, &str),
) -> Result<()> {
    let exchange = if exchange.is_empty() { "amq.default" } else { exchange };
    let message = json!({
        "routing_key": routing_key,
        "properties": properties,
        "payload": body,
        "payload_encoding": encoding,
    });
    let answer = host.post(&format!("/api/exchanges/{{vhost}}/{exchange}/publish"), message).await?;
    ensure!(answer["routed"] == true, "no queue took the message for `{routing_key}`: {answer}");
    Ok(())
}

/// Removes the next message from a queue through the management interface, and returns it with `payload`, `properties`,
/// `exchange`, `routing_key`, `redelivered` and so on. An error if the queue is empty.
pub async fn take(host: &VirtualHost<'_>, queue: &str) -> Result<Value> {
    let how = json!({"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"});
    let mut messages = host.post(&format!("/api/queues/{{vhost}}/{queue}/get"), how).await?;
    let message = messages.as_array_mut().and_then(Vec::pop);
    message.with_context(|| format!("the queue {queue} is empty"))
}

/// Asks again and again, for at most ten seconds, until there is an answer. For things that no event reports.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        ensure!(Instant::now() < deadline, "waited ten seconds for {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
