//! How the Docker daemon is found, and what `cargo broker` prints if there is no daemon or no image.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // Clippy knows tests by `#[test]`, not their helpers.

mod left;

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use testbed::{Program, skip};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional},
    net::{TcpListener, UnixListener, UnixStream},
};

/// A directory for one test. It is removed with this value.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = env::temp_dir().join(format!("testbed-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    /// Adds a Docker configuration with one context, which is the active one.
    fn with_context(self, name: &str, address: &str) -> Directory {
        let meta = self.0.join("contexts/meta/5e0f");
        fs::create_dir_all(&meta).unwrap();
        let context = serde_json::json!({"Name": name, "Endpoints": {"docker": {"Host": address}}});
        fs::write(meta.join("meta.json"), context.to_string()).unwrap();
        fs::write(self.0.join("config.json"), serde_json::json!({"currentContext": name}).to_string()).unwrap();
        self
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A program that sees only this Docker configuration.
fn program(path: &str, configuration: &Path) -> Program {
    Program::new(path)
        .env("TESTBED_BROKER", "docker")
        .env("DOCKER_HOST", "")
        .env("DOCKER_CONTEXT", "")
        .env("DOCKER_CONFIG", configuration.to_str().unwrap())
        .deadline(Duration::from_secs(90))
}

fn broker(configuration: &Path) -> Program {
    program(env!("CARGO_BIN_EXE_broker"), configuration).args(["--port", "26000"])
}

/// A socket that leads to another socket, as if it belonged to another daemon. Counts the connections.
fn forward(socket: &Path, target: PathBuf) -> Arc<AtomicUsize> {
    let listener = UnixListener::bind(socket).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        while let Ok((mut visitor, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            let target = target.clone();
            tokio::spawn(async move {
                let mut daemon = UnixStream::connect(target).await?;
                copy_bidirectional(&mut visitor, &mut daemon).await
            });
        }
    });
    count
}

#[tokio::test]
async fn the_daemon_of_the_active_context_is_used() {
    let daemon = PathBuf::from("/var/run/docker.sock");
    if UnixStream::connect(&daemon).await.is_err() || !has_image().await {
        skip("it needs Docker with an image of RabbitMQ").unwrap();
        return;
    }
    let directory = Directory::new("context");
    let socket = directory.0.join("docker.sock");
    let visits = forward(&socket, daemon);
    let directory = directory.with_context("elsewhere", &format!("unix://{}", socket.display()));

    let mut broker = broker(&directory.0).spawn().unwrap();
    let id = broker.id().unwrap();
    let _container = Container(id);
    let url = loop {
        let line = broker.line().await.unwrap();
        if let Some(url) = line.trim().strip_prefix("export AMQP_URL=") {
            break url.to_owned();
        }
    };
    assert_ne!(visits.load(Ordering::Relaxed), 0, "the socket of the context was not used");
    let ctl = program(env!("CARGO_BIN_EXE_ctl"), &directory.0).args(["--quiet", "status"]).url(&url);
    let status = ctl.run().await.unwrap();
    assert!(status.stdout.contains("RabbitMQ version: "), "{status:?}");
    broker.interrupt().unwrap();
    let finished = broker.wait().await.unwrap();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(left::of(id), "");
}

/// Removes the container of a process. If the test fails, the socket ends before the process could remove the container
/// itself.
struct Container(u32);

impl Drop for Container {
    fn drop(&mut self) {
        left::remove_container_of(self.0);
    }
}

/// Whether the image exists here, or can be fetched.
async fn has_image() -> bool {
    let image = env::var("RABBITMQ_IMAGE").unwrap_or_else(|_| "rabbitmq:4-management".to_owned());
    let script = r#"docker image inspect "$1" || docker pull "$1""#;
    let docker = Program::new("sh").args(["-c", script, "sh", &image]).deadline(Duration::from_secs(300));
    docker.run().await.is_ok_and(|finished| finished.code == Some(0))
}

#[tokio::test]
async fn the_error_names_a_daemon_that_does_not_answer_and_where_its_address_is_from() {
    let directory = Directory::new("silent").with_context("gone", "unix:///no/such.sock");
    let finished = broker(&directory.0).run().await.unwrap();
    assert_eq!(finished.code, Some(1));
    let expected =
        "Docker: no daemon answers at unix:///no/such.sock, which the Docker context `gone` names (No such file";
    assert!(finished.stderr.contains(expected), "{finished:?}");

    let finished = broker(&directory.0).env("DOCKER_HOST", "tcp://127.0.0.1:1").run().await.unwrap();
    let expected = "no daemon answers at tcp://127.0.0.1:1, which DOCKER_HOST names (Connection refused";
    assert!(finished.stderr.contains(expected), "{finished:?}");

    let finished = broker(&directory.0).env("DOCKER_CONTEXT", "unknown").run().await.unwrap();
    assert!(finished.stderr.contains("the Docker context `unknown` is not in "), "{finished:?}");

    let directory = Directory::new("far").with_context("far", "ssh://ana@far.example");
    let finished = broker(&directory.0).run().await.unwrap();
    assert!(finished.stderr.contains("`ssh://` is not supported here"), "{finished:?}");
}

/// A test cannot reach Docker Hub's limit. So this daemon answers like one that has reached it.
#[tokio::test]
async fn the_pull_limit_is_explained() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut visitor, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (reader, mut writer) = visitor.split();
                let mut lines = BufReader::new(reader).lines();
                let mut request = String::new();
                while let Ok(Some(line)) = lines.next_line().await {
                    if !line.is_empty() {
                        request += &line;
                        continue;
                    }
                    let (status, body) = if request.contains("/_ping") {
                        ("200 OK", "OK")
                    } else if request.contains("/images/create") {
                        (
                            "500 Internal Server Error",
                            r#"{"message":"toomanyrequests: You have reached your unauthenticated pull rate limit."}"#,
                        )
                    } else {
                        ("404 Not Found", r#"{"message":"no such thing"}"#)
                    };
                    let length = body.len();
                    let answer = format!(
                        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
                         Connection: close\r\n\r\n{body}"
                    );
                    drop(writer.write_all(answer.as_bytes()).await);
                    break;
                }
            });
        }
    });
    let directory = Directory::new("limit");
    for by_context in [false, true] {
        let (directory, broker) = if by_context {
            let directory = Directory::new("limit-context").with_context("limited", &address);
            let broker = broker(&directory.0);
            (Some(directory), broker)
        } else {
            (None, broker(&directory.0).env("DOCKER_HOST", &address))
        };
        let finished = broker.run().await.unwrap();
        drop(directory);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        for words in ["cannot be fetched: ", "toomanyrequests", "`docker login`", "mirror in RABBITMQ_IMAGE"] {
            assert!(finished.stderr.contains(words), "no {words} in {}", finished.stderr);
        }
    }
}
