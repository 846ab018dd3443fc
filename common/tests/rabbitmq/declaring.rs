//! Queues and tables from plain Rust values, and declarations that are refused before they can close the connection.

use amqprs::channel::{
    BasicConsumeArguments, BasicGetArguments, BasicQosArguments, ExchangeDeclareArguments, QueueBindArguments,
    QueueDeclareArguments, QueuePurgeArguments,
};
use anyhow::{Context, Result, ensure};
use common::{
    ConnectionManager, Error, QueueDeclaration, SetupChannel, classic_queue, exclusive_queue, existing_queue,
    quorum_queue, stream_queue, table,
};
use testbed::Broker;

use crate::{Fixture, consume, expect_in, next, plain, prefetch, queue, to};

#[tokio::test]
async fn a_queue_with_arguments_is_of_the_type_that_its_function_says() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    for (name, queue, queue_type) in [
        ("jobs", quorum_queue("jobs"), "quorum"),
        ("newest", classic_queue("newest"), "classic"),
        ("events", stream_queue("events"), "stream"),
    ] {
        channel.queue_declare(queue.with("x-max-length-bytes", 1).with("x-max-length-bytes", 1_000_000_u32)).await?;
        let declared = fixture.host.queue(name).await?;
        ensure!(declared["type"] == queue_type && declared["durable"] == true, "{declared}");
        ensure!(declared["arguments"]["x-max-length-bytes"] == 1_000_000, "{declared}");
        ensure!(declared["arguments"]["x-queue-type"] == queue_type, "{declared}");
        let existing = channel.queue_declare(existing_queue(name)).await?;
        ensure!(existing.name == name, "{existing:?}");
    }
    let own = channel.queue_declare(exclusive_queue().with("x-expires", 60_000)).await?.name;
    let declared = fixture.host.queue(&own).await?;
    ensure!(declared["exclusive"] == true && declared["arguments"]["x-expires"] == 60_000, "{declared}");
    let error = channel.queue_declare(existing_queue("missing")).await.expect_err("the queue should be missing");
    ensure!(matches!(error, Error::Closed { code: 404, .. }), "{error}");
    // Other programs declare a queue without a type: it is the same classic queue.
    channel.queue_declare(QueueDeclareArguments::durable_client_named("old")).await?;
    channel.queue_declare(classic_queue("old")).await?;
    Ok(())
}

#[tokio::test]
async fn messages_in_a_queue_with_arguments_outlive_the_broker() -> Result<()> {
    let broker = Broker::start().await?;
    let connections = ConnectionManager::new(broker.url().parse()?);
    let channel = connections.channel("test").await?;
    channel.queue_declare(quorum_queue("jobs").with("x-delivery-limit", 5)).await?;
    // The message is not marked as persistent: a quorum queue keeps it all the same.
    channel.publish(to("jobs"), plain(), "kept").await?;
    broker.restart().await?;
    let job = loop {
        // Try again until the queue has a leader again.
        if let Ok(Some(job)) = channel.get(BasicGetArguments::new("jobs")).await {
            break job;
        }
    };
    ensure!(job.text() == "kept", "{}", job.text());
    job.ack().await?;
    broker.shutdown().await
}

#[tokio::test]
async fn invalid_declarations_are_refused_and_the_channel_still_works() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let before = fixture.connection_names().await?;
    let long = "n".repeat(256);
    let declarations: [QueueDeclaration; 6] = [
        quorum_queue("q").with("x-queue-type", "classic"),
        quorum_queue("q").auto_delete(true),
        quorum_queue("q").durable(false),
        stream_queue("q").exclusive(true),
        quorum_queue("q").with(&long, 1),
        quorum_queue("q").with("x-max-length", u64::MAX),
    ];
    for declaration in declarations {
        let error = channel.queue_declare(declaration).await.expect_err("the declaration is invalid");
        ensure!(matches!(error, Error::Invalid(_)), "{error}");
    }
    ensure!(table([(&long, true)]).is_err(), "a name that AMQP does not allow");
    for arguments in [BasicQosArguments::new(1, 10, false), BasicQosArguments::new(0, 10, true)] {
        let error = prefetch(&channel, arguments).await.expect_err("RabbitMQ does not support that");
        ensure!(matches!(error, Error::Invalid(_)), "{error}");
    }
    let error =
        channel.exchange_declare(ExchangeDeclareArguments::new("e", "")).await.expect_err("the type is missing");
    ensure!(matches!(error, Error::Invalid(_)), "{error}");
    let wrong = |_| async {
        let arguments = table([("x-stream-offset", "yesterday")])?;
        Ok(BasicConsumeArguments::new("q", "").arguments(arguments).finish())
    };
    let error = channel.consume(wrong).await.err().context("the offset should be wrong")?;
    ensure!(matches!(error, Error::Invalid(_)), "{error}");
    channel.queue_declare(queue("q")).await?;
    ensure!(fixture.connection_names().await? == before, "the connection was lost");
    Ok(())
}

/// The error of a call that is refused. The connection may be closing because of an earlier refusal: then try again.
async fn refusal<T>(call: impl AsyncFn() -> common::Result<T>) -> Result<Error> {
    let mut attempts = 0..5;
    loop {
        match call().await {
            Err(Error::Lost { .. }) if attempts.next().is_some() => {}
            outcome => return outcome.err().context("it was not refused"),
        }
    }
}

/// RabbitMQ closes the whole connection because of some of these. The caller still gets the error of its own call.
#[tokio::test]
async fn a_refusal_that_closes_the_connection_names_what_was_asked_for() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(stream_queue("events")).await?;
    let error = refusal(async || channel.get(BasicGetArguments::new("events")).await).await?;
    ensure!(
        matches!(error, Error::Closed { code: 540, .. }) && error.to_string().contains("consume from it"),
        "{error}"
    );
    let error = refusal(async || channel.queue_purge(QueuePurgeArguments::new("events")).await).await?;
    ensure!(matches!(error, Error::Closed { code: 540, .. }), "{error}");
    for (prefetch, code) in [(0, 406), (10, 540)] {
        let auto_ack = move |channel: SetupChannel| async move {
            channel.basic_qos(BasicQosArguments::new(0, prefetch, false)).await?;
            Ok(BasicConsumeArguments::new("events", "").auto_ack(true).finish())
        };
        let error = refusal(async || channel.consume(auto_ack).await).await?;
        let refused = matches!(error, Error::Closed { code: refused, .. } if refused == code);
        ensure!(refused && error.to_string().contains("leave `auto_ack` off"), "{error}");
    }
    // 503 in RabbitMQ 3, 406 in RabbitMQ 4.
    let error = refusal(async || channel.exchange_declare(ExchangeDeclareArguments::new("e", "fancy")).await).await?;
    let told = error.to_string().contains("cannot declare exchange `e`: ");
    ensure!(told && error.to_string().contains("unknown exchange type 'fancy'"), "{error}");
    Ok(())
}

#[tokio::test]
async fn tables_bind_by_headers_name_an_alternate_exchange_and_choose_where_a_stream_begins() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("pdf")).await?;
    channel.queue_declare(queue("rest")).await?;
    channel.exchange_declare(ExchangeDeclareArguments::new("others", "fanout")).await?;
    channel.queue_bind(QueueBindArguments::new("rest", "others", "")).await?;
    let alternate = table([("alternate-exchange", "others")])?;
    channel
        .exchange_declare(ExchangeDeclareArguments::new("documents", "headers").arguments(alternate).finish())
        .await?;
    let all = table([("x-match", "all".into()), ("format", "pdf".into()), ("pages", common::TableValue::from(3))])?;
    channel.queue_bind(QueueBindArguments::new("pdf", "documents", "").arguments(all).finish()).await?;
    for (pages, expected) in [(3, "pdf"), (4, "rest")] {
        let headers = table([("format", common::TableValue::from("pdf")), ("pages", pages.into())])?;
        let properties = plain().with_headers(headers).finish();
        channel.publish(amqprs::channel::BasicPublishArguments::new("documents", ""), properties, "x").await?;
        expect_in(&channel, expected, "x").await?;
    }

    channel.queue_declare(stream_queue("events")).await?;
    for event in ["first", "second"] {
        channel.publish(to("events"), plain(), event).await?;
    }
    let from_the_start = |channel: SetupChannel| async move {
        channel.basic_qos(BasicQosArguments::new(0, 10, false)).await?;
        let offset = table([("x-stream-offset", 0)])?;
        Ok(BasicConsumeArguments::new("events", "").arguments(offset).finish())
    };
    for _ in 0..2 {
        let mut events = channel.consume(from_the_start).await?;
        for expected in ["first", "second"] {
            let event = next(&mut events).await?;
            ensure!(event.text() == expected, "{}", event.text());
            event.ack().await?;
        }
    }
    Ok(())
}

/// RabbitMQ 4.3 can be configured to refuse queues that are neither durable nor exclusive. Later versions refuse them.
#[tokio::test]
async fn a_queue_neither_durable_nor_exclusive_is_refused_in_one_sentence_where_it_is_denied() -> Result<()> {
    let deny = "deprecated_features.permit.transient_nonexcl_queues = false";
    let shared = Broker::shared().await?;
    if shared.skip_below("4.3").await? {
        return Ok(());
    }
    let broker = Broker::builder().configuration(deny).start().await?;
    let connections = ConnectionManager::new(broker.url().parse()?);
    let channel = connections.channel("test").await?;
    for transient in [classic_queue("q").durable(false).auto_delete(true), QueueDeclareArguments::new("q").into()] {
        let error = channel.queue_declare(transient).await.expect_err("denied").to_string();
        let expected = "cannot declare queue `q`: 541 INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated; \
                        this RabbitMQ refuses queues that are neither durable nor exclusive: declare it `durable`";
        ensure!(error == expected, "{error}");
    }
    let mut consumer = consume(&channel, "durable", true).await?;
    channel.publish(to("durable"), plain(), "x").await?;
    next(&mut consumer).await?;
    drop(consumer);
    broker.shutdown().await
}
