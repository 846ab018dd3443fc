//! The arguments of declarations, bindings and consumers. RabbitMQ would close the whole connection because of some of
//! them: `common` corrects or refuses these.

use amqprs::{
    FieldArray, FieldTable, FieldValue,
    channel::{
        BasicConsumeArguments, ExchangeBindArguments, ExchangeDeclareArguments, ExchangeUnbindArguments,
        QueueBindArguments, QueueDeclareArguments, QueueUnbindArguments,
    },
};
use anyhow::{Context, Result, ensure};
use common::{Channel, Error, classic_queue, table};

use crate::{Fixture, next, plain, queue, to};

/// Each call that takes a table of arguments, made with this table.
async fn calls(channel: &Channel, table: &FieldTable) -> Vec<(&'static str, common::Result<()>)> {
    let arguments = || table.clone();
    let own = QueueDeclareArguments::durable_client_named("own").arguments(arguments()).finish();
    let made = classic_queue("made").with("table", arguments());
    let exchange = ExchangeDeclareArguments::new("e", "headers").arguments(arguments()).finish();
    let bind = QueueBindArguments::new("q", "amq.headers", "").arguments(arguments()).finish();
    let unbind = QueueUnbindArguments::new("q", "amq.headers", "").arguments(arguments()).finish();
    let exchange_bind = ExchangeBindArguments::new("amq.fanout", "amq.headers", "").arguments(arguments()).finish();
    let exchange_unbind = ExchangeUnbindArguments::new("amq.fanout", "amq.headers", "").arguments(arguments()).finish();
    let consume = channel
        .consume_with(arguments(), |_, table| async move {
            Ok(BasicConsumeArguments::new("q", "").arguments(table).finish())
        })
        .await;
    vec![
        ("declare queue `own`", channel.queue_declare(own).await.map(drop)),
        ("declare queue `made`", channel.queue_declare(made).await.map(drop)),
        ("declare exchange `e`", channel.exchange_declare(exchange).await),
        ("bind queue `q` to exchange `amq.headers`", channel.queue_bind(bind).await),
        ("unbind queue `q` from exchange `amq.headers`", channel.queue_unbind(unbind).await),
        ("bind exchange `amq.fanout` to exchange `amq.headers`", channel.exchange_bind(exchange_bind).await),
        ("unbind exchange `amq.fanout` from exchange `amq.headers`", channel.exchange_unbind(exchange_unbind).await),
        ("consume from queue `q`", consume.map(drop)),
    ]
}

#[tokio::test]
async fn arguments_too_large_for_a_frame_or_nested_too_deeply_are_refused_and_the_connection_still_works() -> Result<()>
{
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    let before = fixture.connection_names().await?;
    let nested = (0..65).try_fold(FieldArray::new(), |inside, _| FieldArray::try_from(vec![FieldValue::A(inside)]))?;
    for (wrong, words) in [
        (table([("text", "x".repeat(200_000))])?, "RabbitMQ takes frames of 131072 bytes"),
        (table([("nested", FieldValue::A(nested))])?, "nested deeper than 64 levels"),
    ] {
        for (doing, outcome) in calls(&channel, &wrong).await {
            let error = outcome.err().with_context(|| format!("{doing}: it was sent"))?;
            ensure!(matches!(error, Error::Invalid(_)) && error.to_string().contains(words), "{doing}: {error}");
            let said = if doing.ends_with("`own`") { "cannot declare" } else { doing };
            ensure!(error.to_string().contains(said), "{doing}: {error}");
        }
    }
    // A table that just fits is accepted. Around the text: the frame, the method, the names, the table, the text's name.
    let around = 8 + 7 + 4 + ("text".len() + 1) + 1 + 4;
    for (bytes, fits) in [(131_072, true), (131_073, false)] {
        let sized = |names: usize| table([("text", "x".repeat(bytes - around - names))]);
        let exchange = ExchangeDeclareArguments::new("e", "fanout").arguments(sized(2 + "efanout".len())?).finish();
        let declared = channel.exchange_declare(exchange).await;
        ensure!(declared.is_ok() == fits, "{bytes}: {declared:?}");
        let own = QueueDeclareArguments::durable_client_named("own").arguments(sized(1 + "own".len())?).finish();
        let declared = channel.queue_declare(own).await;
        ensure!(declared.is_ok() == fits, "{bytes}: {declared:?}");
    }
    ensure!(fixture.connection_names().await? == before, "the connection was lost");
    Ok(())
}

/// amqprs computes a wrong length for such a table.
#[tokio::test]
async fn a_name_that_was_inserted_twice_among_arguments_is_sent_once() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    let before = fixture.connection_names().await?;
    let mut twice = FieldTable::new();
    twice.insert("format".try_into()?, "something longer".into());
    twice.insert("format".try_into()?, "pdf".into());
    for (doing, outcome) in calls(&channel, &twice).await {
        match outcome {
            // amqprs does not give access to that table, so `common` cannot correct it.
            Err(Error::Invalid(text)) if doing.ends_with("`own`") => {
                ensure!(text.contains("cannot declare queue `own`") && text.contains("inserted twice"), "{text}");
            }
            outcome => outcome.with_context(|| doing)?,
        }
    }
    let bind = QueueBindArguments::new("q", "amq.headers", "").arguments(twice).finish();
    channel.queue_bind(bind).await?;
    let pdf = plain().with_headers(table([("format", "pdf")])?).finish();
    channel.publish(amqprs::channel::BasicPublishArguments::new("amq.headers", ""), pdf, "x").await?;
    crate::expect_in(&channel, "q", "x").await?;
    let mut consumer = crate::consume(&channel, "q", true).await?;
    channel.publish(to("q"), plain(), "y").await?;
    ensure!(next(&mut consumer).await?.text() == "y");
    ensure!(fixture.connection_names().await? == before, "the connection was lost");
    Ok(())
}
