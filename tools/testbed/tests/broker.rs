//! A broker that we start, of the kind that `TESTBED_BROKER` names, or the first kind that works.

#![allow(clippy::unwrap_used)] // Clippy knows tests by `#[test]`, not their helpers.

use std::time::Duration;

use amqprs::{
    channel::{QueueDeclareArguments, QueueDeleteArguments},
    connection::{Connection, OpenConnectionArguments},
};
use testbed::Broker;
use tokio::time::timeout;

#[tokio::test]
async fn it_speaks_amqp_and_tells_its_version() {
    let broker = Broker::shared().await.unwrap();
    let version = broker.version().await.unwrap();
    assert!(version.split('.').count() >= 3, "{version}");
    assert_eq!(broker.url(), format!("amqp://guest:guest@localhost:{}", broker.port()));
    assert!(broker.management_url().unwrap().starts_with("http://localhost:"));
}

#[tokio::test]
async fn rabbitmqctl_answers() {
    let broker = Broker::shared().await.unwrap();
    let users = broker.rabbitmqctl(&["list_users"]).await.unwrap();
    assert!(users.contains("guest"), "{users}");
    let error = broker.rabbitmqctl(&["no_such_command"]).await.unwrap_err();
    assert!(error.to_string().contains("no_such_command"), "{error:#}");
}

#[tokio::test]
async fn each_test_has_a_virtual_host_of_its_own() {
    let broker = Broker::shared().await.unwrap();
    let mine = broker.virtual_host().await.unwrap();
    let other = broker.virtual_host().await.unwrap();
    let connection = connect(&mine.url()).await;
    declare(&connection, "hello").await;
    assert_eq!(mine.queue("hello").await.unwrap()["durable"], true);
    assert!(other.queue("hello").await.is_err());
    // Its user may not use other virtual hosts.
    let astray = mine.url().replace(&format!("/{}", mine.name()), &format!("/{}", other.name()));
    assert!(Connection::open(&arguments(&astray)).await.is_err());
}

#[tokio::test]
async fn a_dropped_virtual_host_is_gone() {
    let broker = Broker::shared().await.unwrap();
    let gone = broker.virtual_host().await.unwrap();
    let name = gone.name().to_owned();
    drop(gone);
    let other = broker.virtual_host().await.unwrap();
    assert!(other.get(&format!("/api/vhosts/{name}")).await.is_err());
    assert!(other.get(&format!("/api/users/{name}")).await.is_err());
}

#[tokio::test]
async fn only_the_connections_of_one_virtual_host_are_cut() {
    let broker = Broker::shared().await.unwrap();
    let mine = broker.virtual_host().await.unwrap();
    let other = broker.virtual_host().await.unwrap();
    let (_cut, kept) = (connect(&mine.url()).await, connect(&other.url()).await);
    let connections = mine.connections().await.unwrap();
    assert_eq!(connections.len(), 1);
    assert!(connections[0]["name"].is_string(), "{connections:?}");
    mine.close_all_connections().await.unwrap();
    assert!(mine.connections().await.unwrap().is_empty());
    assert_eq!(other.connections().await.unwrap().len(), 1);
    declare(&kept, "still_there").await;
}

#[tokio::test]
async fn it_survives_a_stop_a_kill_and_a_pause() {
    let broker = Broker::start().await.unwrap();
    let port = broker.port();
    declare(&connect(broker.url()).await, "durable").await;

    broker.stop().await.unwrap();
    assert!(broker.version().await.is_err());
    broker.start_again().await.unwrap();
    assert_eq!(broker.port(), port);
    delete(&connect(broker.url()).await, "durable").await;

    declare(&connect(broker.url()).await, "durable").await;
    // RabbitMQ 3 writes a declaration to the disk a moment after its answer; killed before that, it has lost the queue.
    broker.rabbitmqctl(&["eval", "mnesia:sync_log()."]).await.unwrap();
    broker.kill().await.unwrap();
    assert!(broker.version().await.is_err());
    broker.start_again().await.unwrap();
    delete(&connect(broker.url()).await, "durable").await;

    broker.pause().await.unwrap();
    let silence = timeout(Duration::from_millis(300), broker.version()).await;
    assert!(silence.is_err(), "a paused broker answered: {silence:?}");
    broker.resume().await.unwrap();
    broker.version().await.unwrap();

    broker.shutdown().await.unwrap();
    assert!(tokio::net::TcpStream::connect(("localhost", port)).await.is_err());
}

async fn connect(url: &str) -> Connection {
    Connection::open(&arguments(url)).await.unwrap()
}

fn arguments(url: &str) -> OpenConnectionArguments {
    let url = url::Url::parse(url).unwrap();
    let virtual_host = match url.path().trim_start_matches('/') {
        "" => "/",
        name => name,
    };
    OpenConnectionArguments::new(url.host_str().unwrap(), url.port().unwrap(), url.username(), url.password().unwrap())
        .virtual_host(virtual_host)
        .finish()
}

async fn declare(connection: &Connection, queue: &str) {
    let channel = connection.open_channel(None).await.unwrap();
    let queue = QueueDeclareArguments::durable_client_named(queue);
    channel.queue_declare(queue).await.unwrap();
}

/// Fails if there is no such queue. Deleting a missing queue is not an error, so look it up first.
async fn delete(connection: &Connection, queue: &str) {
    let channel = connection.open_channel(None).await.unwrap();
    let look = QueueDeclareArguments::new(queue).passive(true).finish();
    channel.queue_declare(look).await.unwrap();
    channel.queue_delete(QueueDeleteArguments::new(queue)).await.unwrap();
}
