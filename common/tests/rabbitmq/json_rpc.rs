//! Named functions over JSON, with Rust on both sides. The interoperability tests have Python on the other side.

use std::time::{Duration, Instant};

use amqprs::{
    FieldTable,
    channel::{BasicGetArguments, BasicPublishArguments},
};
use anyhow::{Context, Result, ensure};
use common::{
    Channel, ConnectionManager, Error, QueueDeclaration, RemoteError, classic_queue, existing_queue,
    rpc::{CallOptions, FunctionOptions, JsonRpcClient, JsonRpcServer},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use testbed::Broker;
use tokio::sync::oneshot;

use crate::{Fixture, next, plain};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Pair {
    x: i64,
    y: i64,
}

async fn server(channel: &Channel) -> Result<JsonRpcServer> {
    let server = JsonRpcServer::new(channel);
    server.register("multiply", |Pair { x, y }| async move { Ok(x * y) }).await?;
    server.register("swap", |Pair { x, y }| async move { Ok(Pair { x: y, y: x }) }).await?;
    server.register("parse", |text: Value| async move { Ok(text["text"].to_string().parse::<i64>()?) }).await?;
    server.register("nothing", |()| async { Ok(()) }).await?;
    let fail = |error: RemoteError| async move { Err::<(), _>(error) };
    server.register("fail", fail).await?;
    let panic = |_: Value| async move {
        assert!(Instant::now().elapsed() > PATIENCE, "the test panics on purpose");
        Ok(())
    };
    server.register("panic", panic).await?;
    Ok(server)
}

/// The queue that programs in other languages declare.
fn function(name: &str) -> QueueDeclaration {
    classic_queue(name).auto_delete(true).with("x-dead-letter-exchange", "rpc.dlx")
}

fn header(headers: Option<&FieldTable>, name: &str) -> Option<String> {
    Some(headers?.get(&name.try_into().ok()?)?.to_string())
}

#[tokio::test]
async fn arguments_and_results_are_typed() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let _server = server(&channel).await?;
    let client = JsonRpcClient::new(&channel).await?;
    ensure!(client.call::<i64>("multiply", &Pair { x: 6, y: 7 }, PATIENCE).await? == 42);
    ensure!(client.call::<Value>("multiply", &json!({"y": 3, "x": 2}), PATIENCE).await? == json!(6));
    ensure!(client.call::<Pair>("swap", &Pair { x: 1, y: 2 }, PATIENCE).await? == Pair { x: 2, y: 1 });
    client.call::<()>("nothing", &(), PATIENCE).await?;
    client.call::<()>("nothing", &json!({}), PATIENCE).await?;
    ensure!(client.pending() == 0);
    Ok(())
}

#[tokio::test]
async fn a_remote_error_keeps_its_kind_message_and_arguments() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let _server = server(&channel).await?;
    let client = JsonRpcClient::new(&channel).await?;
    let sent =
        RemoteError { kind: "Grief".into(), message: "all is ☂".into(), args: vec![json!(1), json!({"a": []})] };
    match client
        .call::<()>("fail", &json!({"type": "Grief", "message": "all is ☂", "args": [1, {"a": []}]}), PATIENCE)
        .await
    {
        Err(Error::Remote(error)) => ensure!(error == sent, "{error:?}"),
        other => anyhow::bail!("unexpected: {other:?}"),
    }
    for (name, arguments, kind, words) in [
        ("parse", json!({"text": "x"}), "ParseIntError", "invalid digit"),
        ("panic", json!({}), "Panic", "the server failed"),
        ("multiply", json!({"x": 1}), "InvalidArguments", "missing field `y`"),
        ("multiply", json!({}), "InvalidArguments", "missing field `x`"),
        ("multiply", json!({"x": "1", "y": 2}), "InvalidArguments", "invalid type: string"),
    ] {
        match client.call::<Value>(name, &arguments, PATIENCE).await {
            Err(Error::Remote(error)) => ensure!(error.kind == kind && error.message.contains(words), "{error:?}"),
            other => anyhow::bail!("{name}: unexpected: {other:?}"),
        }
    }
    ensure!(client.call::<i64>("multiply", &Pair { x: 6, y: 7 }, PATIENCE).await? == 42, "the server no longer works");
    Ok(())
}

#[tokio::test]
async fn wrong_use_is_refused_here() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let server = server(&channel).await?;
    let client = JsonRpcClient::new(&channel).await?;
    for arguments in [json!([1]), json!(1), json!("text")] {
        let error =
            client.call::<Value>("multiply", &arguments, PATIENCE).await.expect_err("the arguments are not an object");
        ensure!(matches!(error, Error::Invalid(_)), "{error}");
    }
    let error = client
        .call::<String>("multiply", &Pair { x: 1, y: 1 }, PATIENCE)
        .await
        .expect_err("the result is not a string");
    ensure!(matches!(error, Error::Other { .. }), "{error}");
    for name in ["multiply", ""] {
        let error = server.register(name, |()| async { Ok(()) }).await.expect_err("registered twice");
        ensure!(matches!(error, Error::Invalid(_)), "{error}");
    }
    let lasting = FunctionOptions { auto_delete: false, ..FunctionOptions::default() };
    let other = JsonRpcServer::new(&channel);
    let error =
        other.register_with("multiply", lasting, |()| async { Ok(()) }).await.expect_err("declared differently");
    ensure!(matches!(error, Error::Closed { code: 406, .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_function_that_is_unregistered_finishes_its_calls_and_later_calls_fail() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let server = server(&channel).await?;
    let client = JsonRpcClient::new(&channel).await?;
    let (begun, beginning) = oneshot::channel();
    let (release, released) = oneshot::channel::<()>();
    let parts = std::sync::Mutex::new(Some((begun, released)));
    let slow = move |()| {
        let parts = parts.lock().expect("no other thread has panicked").take();
        async move {
            if let Some((begun, released)) = parts {
                let _ = begun.send(());
                let _ = released.await;
            }
            Ok("done")
        }
    };
    server.register("slow", slow).await?;
    let (call, ()) = tokio::try_join!(async { Ok(client.call::<String>("slow", &(), PATIENCE).await?) }, async {
        beginning.await?;
        let release = async {
            // RabbitMQ deletes the queue when its last consumer has gone.
            while channel.queue_declare(existing_queue("slow")).await.is_ok() {}
            let _ = release.send(());
            anyhow::Ok(())
        };
        tokio::try_join!(async { Ok(server.unregister("slow").await?) }, release)?;
        anyhow::Ok(())
    })?;
    ensure!(call == "done", "{call}");
    let error = client.call::<()>("slow", &(), PATIENCE).await.expect_err("no server has this function");
    ensure!(matches!(error, Error::Unroutable(_)), "{error}");
    ensure!(server.unregister("slow").await.is_err(), "the function was registered twice");
    server.register("slow", |()| async { Ok("again") }).await?;
    ensure!(client.call::<String>("slow", &(), PATIENCE).await? == "again");
    Ok(())
}

#[tokio::test]
async fn a_call_that_expires_or_is_rejected_is_an_error() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let client = JsonRpcClient::new(&channel).await?;
    channel.queue_declare(function("silent")).await?;
    let since = Instant::now();
    let options =
        CallOptions { timeout: PATIENCE, expiration: Some(Duration::from_millis(100)), ..CallOptions::default() };
    let error = client.call::<()>("silent", &(), options).await.expect_err("no server has this function");
    ensure!(error.to_string().contains("expired in its queue") && since.elapsed() < PATIENCE / 2, "{error}");

    let (error, ()) = tokio::join!(client.call::<()>("silent", &(), PATIENCE), async {
        loop {
            match channel.get(BasicGetArguments::new("silent")).await {
                Ok(None) => {}
                Ok(Some(call)) => return drop(call.reject(false).await),
                Err(error) => panic!("{error}"),
            }
        }
    });
    ensure!(matches!(&error, Err(Error::Remote(error)) if error.kind == "Rejected"), "{error:?}");
    ensure!(client.pending() == 0);
    Ok(())
}

#[tokio::test]
async fn calls_and_replies_have_the_format_of_aio_pika() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let client = JsonRpcClient::new(&channel).await?;
    let mut calls = channel
        .consume(|channel| async move {
            channel.queue_declare(function("f")).await?;
            Ok(amqprs::channel::BasicConsumeArguments::new("f", ""))
        })
        .await?;
    let options =
        CallOptions { timeout: PATIENCE, expiration: Some(Duration::from_secs(3)), priority: 7, persistent: true };
    let (result, checked) = tokio::join!(client.call::<Value>("f", &Pair { x: 1, y: 2 }, options), async {
        let call = next(&mut calls).await?;
        ensure!(call.json::<Value>()? == json!({"x": 1, "y": 2}), "{}", call.text());
        let properties = &call.properties;
        let reply_to = properties.reply_to().context("no reply queue")?;
        ensure!(properties.message_type().map(String::as_str) == Some("call"), "{properties}");
        ensure!(properties.content_type().map(String::as_str) == Some("application/json"), "{properties}");
        ensure!(properties.expiration().map(String::as_str) == Some("3000"), "{properties}");
        ensure!(properties.priority() == Some(7) && properties.delivery_mode() == Some(2), "{properties}");
        ensure!(header(properties.headers(), "From").as_ref() == Some(reply_to), "{properties}");
        let mut reply = plain();
        let id = properties.correlation_id().context("no correlation id")?;
        reply.with_correlation_id(id).with_message_type("error").with_content_type("application/json");
        channel.publish(BasicPublishArguments::new("", reply_to), reply, "not in the usual form").await?;
        call.ack().await?;
        anyhow::Ok(())
    });
    checked?;
    ensure!(matches!(&result, Err(Error::Remote(error)) if error.message == "not in the usual form"), "{result:?}");

    let _server = server(&channel).await?;
    let mut replies = channel
        .consume(|channel| async move {
            channel.queue_declare(crate::queue("replies")).await?;
            Ok(amqprs::channel::BasicConsumeArguments::new("replies", "").auto_ack(true).finish())
        })
        .await?;
    for (body, kind, expected) in [
        ("{\"x\": 6, \"y\": 7}", "result", json!(42)),
        (
            "no JSON",
            "error",
            json!({"error": {"type": "InvalidArguments", "message": "expected ident at line 1 column 2", "args": ["expected ident at line 1 column 2"]}}),
        ),
    ] {
        let properties = plain().with_reply_to("replies").with_correlation_id("1").with_delivery_mode(2).finish();
        channel.publish(BasicPublishArguments::new("", "multiply"), properties, body).await?;
        let reply = next(&mut replies).await?;
        ensure!(reply.json::<Value>()? == expected, "{}", reply.text());
        let properties = &reply.properties;
        ensure!(properties.message_type().map(String::as_str) == Some(kind), "{properties}");
        ensure!(properties.correlation_id().map(String::as_str) == Some("1"), "{properties}");
        ensure!(properties.content_type().map(String::as_str) == Some("application/json"), "{properties}");
        ensure!(properties.delivery_mode() == Some(2) && properties.timestamp().is_some(), "{properties}");
    }
    Ok(())
}

#[tokio::test]
async fn functions_and_replies_and_dead_letters_work_again_after_a_loss() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let _server = server(&channel).await?;
    let client = JsonRpcClient::new(&channel).await?;
    for _ in 0..3 {
        fixture.host.close_all_connections().await?;
        // Their queues are missing until the functions are registered again.
        let since = Instant::now();
        loop {
            match client.call::<i64>("multiply", &Pair { x: 6, y: 7 }, PATIENCE).await {
                Ok(product) => break ensure!(product == 42),
                Err(Error::Unroutable(_) | Error::Lost { .. } | Error::Unconfirmed { .. })
                    if since.elapsed() < PATIENCE => {}
                Err(error) => return Err(error.into()),
            }
        }
        channel.queue_declare(function("silent")).await?;
        let options =
            CallOptions { timeout: PATIENCE, expiration: Some(Duration::from_millis(1)), ..CallOptions::default() };
        let error = client.call::<()>("silent", &(), options).await.expect_err("no server has this function");
        ensure!(error.to_string().contains("expired in its queue"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn values_that_json_does_not_have_are_an_error_and_never_null() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let server = JsonRpcServer::new(&channel);
    let divide = |arguments: Value| async move {
        let [x, y] = ["x", "y"].map(|name| arguments[name].as_f64().unwrap_or_default());
        Ok(json_of(x / y))
    };
    server.register("nested", divide).await?;
    let client = JsonRpcClient::new(&channel).await?;
    for y in [0.0, 1e-308] {
        match client.call::<Value>("nested", &json!({"x": 1e308, "y": y}), PATIENCE).await {
            Err(Error::Remote(error)) => {
                ensure!(error.kind == "InvalidResult" && error.message.contains("inf"), "{error}");
            }
            other => anyhow::bail!("unexpected: {other:?}"),
        }
    }
    let whole = client.call::<Value>("nested", &json!({"x": 6, "y": 4}), PATIENCE).await?;
    ensure!(whole == json!({"quotients": [[1.5], null]}), "{whole}");
    let arguments = std::collections::HashMap::from([("x", Some(f64::NAN))]);
    let error = client.call::<Value>("nested", &arguments, PATIENCE).await.expect_err("JSON has no such value");
    ensure!(matches!(&error, Error::Invalid(text) if text.contains("JSON has no number for `NaN`")), "{error}");
    let master = common::tasks::Master::new(&channel);
    let error = master.create_task("nested", &arguments).await.expect_err("JSON has no such value");
    ensure!(matches!(error, Error::Invalid(_)), "{error}");
    Ok(())
}

/// The number is nested inside the value.
fn json_of(quotient: f64) -> impl Serialize {
    #[derive(Serialize)]
    struct Outcome {
        quotients: (Vec<f64>, Option<f64>),
    }
    Outcome { quotients: (vec![quotient], None) }
}

/// RabbitMQ 4.3 can be configured to require this, and later versions always do.
#[tokio::test]
async fn functions_work_where_queues_have_to_be_durable_and_a_transient_one_is_refused_at_once() -> Result<()> {
    if Broker::shared().await?.skip_below("4.3").await? {
        return Ok(());
    }
    let deny = "deprecated_features.permit.transient_nonexcl_queues = false";
    let broker = Broker::builder().configuration(deny).start().await?;
    let connections = ConnectionManager::new(broker.url().parse()?);
    let channel = connections.channel("test").await?;
    let _server = server(&channel).await?;
    let client = JsonRpcClient::new(&channel).await?;
    ensure!(client.call::<i64>("multiply", &Pair { x: 6, y: 7 }, PATIENCE).await? == 42);

    let transient = FunctionOptions { durable: false, ..FunctionOptions::default() };
    let other = JsonRpcServer::new(&channel);
    let since = Instant::now();
    let error = other.register_with("t", transient, |()| async { Ok(()) }).await.expect_err("denied").to_string();
    let words = ["cannot declare queue `t`: 541", "neither durable nor exclusive: declare it `durable`"];
    ensure!(words.iter().all(|words| error.contains(words)) && since.elapsed() < PATIENCE / 2, "{error}");

    // The refusal closed the connection, but the client has reconnected.
    let since = Instant::now();
    loop {
        match client.call::<i64>("multiply", &Pair { x: 6, y: 7 }, PATIENCE).await {
            Ok(product) => break ensure!(product == 42),
            Err(Error::Unroutable(_) | Error::Lost { .. } | Error::Unconfirmed { .. })
                if since.elapsed() < PATIENCE => {}
            Err(error) => return Err(error.into()),
        }
    }
    connections.close_all().await?;
    broker.shutdown().await
}

#[tokio::test]
async fn the_error_names_the_argument_that_differs_when_two_servers_declare_a_functions_queue() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let _server = server(&channel).await?;
    let transient = FunctionOptions { durable: false, ..FunctionOptions::default() };
    let other = JsonRpcServer::new(&channel);
    let error = other
        .register_with("multiply", transient, |()| async { Ok(()) })
        .await
        .expect_err("the queue exists with other arguments");
    let words = ["406", "inequivalent arg 'durable'", "it exists with other arguments"];
    let told = words.iter().all(|words| error.to_string().contains(words));
    // A broker that does not allow transient queues reports that first.
    ensure!(told || error.to_string().contains("541"), "{error}");
    Ok(())
}
