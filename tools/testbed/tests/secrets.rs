//! Runs every lesson program with a marked password, with all logs, and with every failure that we know. No output may
//! contain the password.
#![allow(clippy::unwrap_used)] // Clippy knows tests by `#[test]`, not their helpers.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::json;
use testbed::{Broker, Finished, Program, VirtualHost, build_programs};
use tokio::{
    io::AsyncWriteExt,
    net::TcpListener,
    sync::{OnceCell, Semaphore},
    task::JoinSet,
};

/// The password, and the parts of it that no output may contain: its beginning and its end, which percent-encoding does
/// not change, and its beginning in Base64.
const PASSWORD: &str = "mark3d/p@ss?w0rd";
const ENCODED: &str = "mark3d%2Fp%40ss%3Fw0rd";
const MARKS: [&str; 3] = ["mark3d", "w0rd", "bWFyazNk"];

/// How many programs run at a time. The machine runs other tests, too.
const AT_ONCE: usize = 8;

async fn programs() -> &'static BTreeMap<String, PathBuf> {
    static PROGRAMS: OnceCell<BTreeMap<String, PathBuf>> = OnceCell::const_new();
    PROGRAMS.get_or_init(|| async { build_programs(|_| ()).await.unwrap() }).await
}

/// A program with the arguments that it needs, and with all logs.
fn program(name: &str, path: &Path) -> Program {
    let needed: &[&str] = if name.starts_with("receive_logs_") { &["info"] } else { &[] };
    Program::new(path).args(needed).env("RUST_BACKTRACE", "full").env("RUST_LOG", "trace").arg("-vv")
}

fn has_no_password(what: &str, Finished { stdout, stderr, .. }: &Finished) {
    for mark in MARKS {
        assert!(!stdout.contains(mark) && !stderr.contains(mark), "{what} shows the password:\n{stdout}\n{stderr}");
    }
}

/// A virtual host whose user has the marked password.
async fn marked_host() -> VirtualHost<'static> {
    let host = Broker::shared().await.unwrap().virtual_host().await.unwrap();
    host.put(&format!("/api/users/{}", host.name()), json!({"password": PASSWORD, "tags": ""})).await.unwrap();
    host
}

/// A port that gives every client the same answer, and then closes the connection.
async fn answering(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut visitor, _)) = listener.accept().await {
            drop(visitor.write_all(answer.as_bytes()).await);
        }
    });
    port
}

/// URLs that lead to no broker or are invalid. Each contains the password, encoded or not.
async fn bad_urls(host: &VirtualHost<'_>, silent: u16) -> Vec<String> {
    let port = host.broker().port();
    let (web, other, curt) =
        (answering("HTTP/1.1 400 no\r\n\r\n").await, answering("SSH-2.0\r\n").await, answering("").await);
    let mut urls = Vec::new();
    for secret in [PASSWORD, ENCODED, "mark3dw0rd"] {
        let name = host.name();
        urls.extend([
            format!("amqp://{name}:{secret}wrong@localhost:{port}/{name}"),
            format!("amqp://{name}:{secret}@localhost:{port}/nowhere"),
            format!("amqp://nobody:{secret}@localhost:{port}/{name}"),
            format!("amqp://guest:{secret}@127.0.0.1:1"),
            format!("amqp://guest:{secret}@127.0.0.1:1,127.0.0.1:2/x?name=n"),
            format!("amqp://guest:{secret}@127.0.0.1:{silent}?connection_timeout=0.2"),
            format!("amqps://guest:{secret}@127.0.0.1:{silent}?connection_timeout=0.2&no_verify_ssl=1"),
            format!("amqp://guest:{secret}@127.0.0.1:{web}"),
            format!("amqp://guest:{secret}@127.0.0.1:{other}"),
            format!("amqp://guest:{secret}@127.0.0.1:{curt}"),
            format!("amqps://guest:{secret}@127.0.0.1:{port}"),
            format!("amqps://guest:{secret}@127.0.0.1:{port}?no_verify_ssl=1"),
            format!("amqps://guest:{secret}@h?cafile=/no/such/file"),
            format!("amqp://guest:{secret}@no-such-host.invalid"),
            format!("guest:{secret}@localhost"),
            format!("http://guest:{secret}@localhost"),
            format!("amqp:guest:{secret}@localhost"),
            format!("amqp://guest:{secret}@localhost:port"),
            format!("amqp://guest:{secret}@[::1"),
            format!("amqp://guest:{secret}%ff@localhost"),
            format!("amqp://guest:{secret}\n@localhost"),
            format!("amqp://guest:{secret}@localhost?heartbeat=1"),
            format!("amqp://guest:{secret}@localhost?unknown=1"),
            format!("amqp://guest:{secret}"),
            format!(" amqp://guest:{secret}@local host"),
        ]);
    }
    urls
}

#[tokio::test(flavor = "multi_thread")]
async fn no_program_shows_its_password_when_it_fails() {
    let host = marked_host().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = bad_urls(&host, silent.local_addr().unwrap().port()).await;
    let directory = std::env::temp_dir().join(format!("testbed-{}-secrets", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("password");
    fs::write(&file, format!("{PASSWORD}\0\n")).unwrap();

    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut runs = JoinSet::new();
    let mut run = |what: String, program: Program| {
        let turns = turns.clone();
        runs.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            let finished = program.run().await.unwrap();
            assert_ne!(finished.code, Some(0), "{what} succeeds: {finished:?}");
            has_no_password(&what, &finished);
        });
    };
    for (name, path) in programs().await {
        for url in &urls {
            run(format!("{name} at {url:?}"), program(name, path).url(url));
        }
        let url = format!("amqp://guest:{ENCODED}@127.0.0.1:1");
        run(format!("{name} with --url twice"), program(name, path).args(["--url", &url, "--url", &url]));
        run(format!("{name} with --ulr"), program(name, path).arg(format!("--ulr={url}")));
        run(format!("{name} with a value for -v"), program(name, path).arg(format!("--verbose={url}")));
        run(format!("{name} with a NUL in the file"), program(name, path).arg("--password-file").arg(&file));
        run(format!("{name} with a directory"), program(name, path).url(&url).arg("--password-file").arg(&directory));
    }
    while let Some(run) = runs.join_next().await {
        if let Err(error) = run {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    fs::remove_dir_all(&directory).unwrap();
}

/// A program also prints on standard error when it loses its connection.
#[tokio::test(flavor = "multi_thread")]
async fn no_program_shows_its_password_when_it_works() {
    let host = marked_host().await;
    let (name, port) = (host.name(), host.broker().port());
    let directory = std::env::temp_dir().join(format!("testbed-{}-secrets-file", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("password");
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    for (program_name, path) in programs().await {
        // The password from the URL, and from a file.
        for url in [
            format!("amqp://{name}:{ENCODED}@localhost:{port}/{name}"),
            format!("amqp://{name}@localhost:{port}/{name}"),
        ] {
            let mut program = program(program_name, path).url(&url);
            if !url.contains(ENCODED) {
                program = program.arg("--password-file").arg(&file);
            }
            let mut running = program.spawn().unwrap();
            running.stderr_line_containing("connected to RabbitMQ").await.unwrap();
            if program_name.starts_with("receive") || ["worker", "rpc_server"].contains(&&**program_name) {
                running.line().await.unwrap();
                host.close_all_connections().await.unwrap();
                running.stderr_line_containing("connected again").await.unwrap();
            }
            drop(running.kill());
            has_no_password(program_name, &running.wait().await.unwrap());
        }
    }
    fs::remove_dir_all(&directory).unwrap();
}
