//! Messages that the broker or `common` refuses: who gets the error, and what happens to the other messages.

use std::time::{Duration, Instant};

use amqprs::{
    BasicProperties, FieldTable,
    channel::{BasicPublishArguments, ExchangeDeclareArguments, QueueDeclareArguments},
};
use anyhow::{Context, Result, ensure};
use common::{Channel, ConnectOptions, ConnectionManager, Error, rpc::RpcClient, table};
use serde_json::json;
use testbed::Broker;
use tokio::{task::JoinSet, time::timeout};

use crate::{Fixture, expect_empty, expect_in, logs, plain, queue, to};

fn with_headers(bytes: usize) -> Result<BasicProperties> {
    let headers: FieldTable = table([("text", "x".repeat(bytes))])?;
    Ok(BasicProperties::default().with_headers(headers).finish())
}

/// The bytes around the text of such a header: the frame's type, channel, size and end, the class, the weight, the size
/// of the body, the flags, the table's size, and the header's name, type and size.
const AROUND: usize = 8 + 12 + 2 + 4 + 5 + 1 + 4;

/// The bytes of the number that `common` adds to a mandatory message.
const NUMBER: usize = 1 + "x-publish-number".len() + 1 + 8;

async fn headers_are_measured(channel: &Channel, frame_max: usize) -> Result<()> {
    channel.queue_declare(queue("q")).await?;
    let mandatory = to("q").mandatory(true).finish();
    for (to, most) in [(to("q"), frame_max - AROUND), (mandatory, frame_max - AROUND - NUMBER)] {
        channel.publish(to.clone(), with_headers(most)?, "fits").await?;
        expect_in(channel, "q", "fits").await?;
        for bytes in [most + 1, 200_000] {
            let error =
                channel.publish(to.clone(), with_headers(bytes)?, "x").await.err().context("it should be refused")?;
            ensure!(matches!(error, Error::Invalid(_)), "{error}");
            let (size, most) = (format!("{} bytes", frame_max + bytes - most), format!("frames of {frame_max} bytes"));
            ensure!(error.to_string().contains(&size) && error.to_string().contains(&most), "{error}");
        }
        let again = channel.publish_at_least_once(to, with_headers(200_000)?, "x");
        let error = timeout(Duration::from_secs(30), again).await?.err().context("it should be refused")?;
        ensure!(matches!(error, Error::Invalid(_)), "{error}");
    }
    let in_transaction = |transaction: common::Transaction| async move {
        let headers = with_headers(200_000).map_err(Error::other)?;
        transaction.publish(to("q"), headers, "x").await
    };
    let error = channel.transaction(in_transaction).await.err().context("it should be refused")?;
    ensure!(matches!(error, Error::Invalid(_)), "{error}");
    expect_empty(channel, "q").await
}

#[tokio::test]
async fn headers_too_large_for_a_frame_are_refused_and_the_connection_goes_on() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let before = fixture.connection_names().await?;
    headers_are_measured(&channel, 131_072).await?;
    ensure!(fixture.connection_names().await? == before, "the connection changed");
    Ok(())
}

#[tokio::test]
async fn a_small_frame_max_bounds_headers_and_cuts_bodies() -> Result<()> {
    let broker = Broker::builder().configuration("frame_max = 8192").start().await?;
    let connections = ConnectionManager::new(broker.url().parse()?);
    let channel = connections.channel("test").await?;
    headers_are_measured(&channel, 8_192).await?;
    let body = "y".repeat(100_000);
    channel.publish(to("q").mandatory(true).finish(), plain(), body.clone()).await?;
    expect_in(&channel, "q", &body).await?;
    connections.close_all().await?;
    broker.shutdown().await
}

/// RabbitMQ cuts its answer about a missing exchange at 255 bytes. 3.10 may cut inside a letter, and 4.3 then fails (541).
#[tokio::test]
async fn only_an_exchange_name_that_rabbitmq_cannot_repeat_in_an_error_is_refused() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let before = fixture.connection_names().await?;
    for (name, is_cut_badly) in [
        ("щ".repeat(120), true),
        (format!("n{}", "щ".repeat(120)), true),
        ("щ".repeat(100), false),
        ("n".repeat(255), false),
    ] {
        let missing = || BasicPublishArguments::new(&name, "");
        for error in [
            channel.publish(missing(), plain(), "x").await.expect_err("the exchange should be missing"),
            timeout(Duration::from_secs(30), channel.publish_at_least_once(missing(), plain(), "x"))
                .await?
                .expect_err("the exchange should be missing"),
        ] {
            let as_expected = match is_cut_badly {
                true => matches!(error, Error::Invalid(_)),
                false => matches!(error, Error::Closed { code: 404, .. }),
            };
            ensure!(as_expected, "{name}: {error}");
        }
    }
    ensure!(fixture.connection_names().await? == before, "the connection changed");
    Ok(())
}

#[tokio::test]
async fn an_expiration_that_is_not_a_number_is_refused() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    for expiration in ["soon", "-1", "", "1.5", "7 "] {
        let properties = BasicProperties::default().with_expiration(expiration).finish();
        let error = channel.publish(to("q"), properties, "x").await.expect_err(expiration);
        ensure!(matches!(error, Error::Invalid(_)), "{error}");
    }
    for expiration in ["0", "1000", "4294967295"] {
        channel.publish(to("q"), BasicProperties::default().with_expiration(expiration).finish(), "x").await?;
    }
    Ok(())
}

/// RabbitMQ handles a channel's messages in order, and ignores those that follow the refused one.
#[tokio::test]
async fn among_messages_on_their_way_the_refused_one_gets_the_error_and_those_behind_it_have_not_arrived() -> Result<()>
{
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let user = fixture.host.name();
    let topics = json!({"exchange": "topics", "write": "^allowed", "read": ".*"});
    channel.exchange_declare(ExchangeDeclareArguments::new("topics", "topic")).await?;
    fixture.host.put(&format!("/api/topic-permissions/{{vhost}}/{user}"), topics).await?;
    channel.exchange_declare(ExchangeDeclareArguments::new("inside", "fanout").internal(true).finish()).await?;
    channel.queue_declare(queue("q")).await?;
    let foreign = BasicProperties::default().with_user_id("somebody").finish();
    for (round, (exchange, key, properties, code, words)) in [
        ("missing", "", plain(), 404, "no exchange 'missing'"),
        ("inside", "", plain(), 403, "internal exchange 'inside'"),
        ("topics", "forbidden", plain(), 403, "topic 'forbidden' in exchange 'topics'"),
        ("", "q", foreign, 406, "user_id property set to 'somebody'"),
    ]
    .into_iter()
    .enumerate()
    {
        let to_topic = BasicPublishArguments::new("topics", "allowed");
        let mut before = Vec::new();
        let mut behind = Vec::new();
        for number in 0..50 {
            before.push(channel.publish_with_deferred_confirm(to("q"), plain(), format!("before {number}")).await?);
            before.push(channel.publish_with_deferred_confirm(to_topic.clone(), plain(), "x").await?);
        }
        let refused = channel
            .publish_with_deferred_confirm(BasicPublishArguments::new(exchange, key), properties, "refused")
            .await?;
        for number in 0..50 {
            // The channel may already be closed. Then the message is sent on the next one.
            behind.push(channel.publish_with_deferred_confirm(to("q"), plain(), format!("behind {number}")).await?);
        }
        for confirm in before {
            let outcome = confirm.await;
            ensure!(matches!(outcome, Ok(()) | Err(Error::Unconfirmed { .. })), "round {round}, before: {outcome:?}");
        }
        match refused.await {
            Err(Error::Closed { code: said, text, .. }) => {
                ensure!(said == code && text.contains(words), "{said} {text}")
            }
            outcome => anyhow::bail!("round {round}, the refused one: {outcome:?}"),
        }
        let mut arrived = 50;
        for confirm in behind {
            match confirm.await {
                Ok(()) => arrived += 1,
                Err(Error::Ignored { reason }) => ensure!(reason.contains(words), "{reason}"),
                outcome => anyhow::bail!("round {round}, behind it: {outcome:?}"),
            }
        }
        let purged = channel.queue_purge(amqprs::channel::QueuePurgeArguments::new("q")).await?;
        ensure!(purged == arrived, "round {round}: {purged} arrived, and {arrived} should have");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_refused_message_the_others_arrive_and_its_publisher_gets_the_error() -> Result<()> {
    const TASKS: u32 = 49;
    const EACH: u32 = 40;
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(common::quorum_queue("q")).await?;
    let mut steady = JoinSet::new();
    for task in 0..TASKS {
        let channel = channel.clone();
        steady.spawn(async move {
            for number in 0..EACH {
                channel.publish_at_least_once(to("q"), plain(), format!("{task} {number}")).await?;
            }
            Ok::<_, Error>(())
        });
    }
    let since = Instant::now();
    for _ in 0..3 {
        let missing = BasicPublishArguments::new("missing", "q");
        let guilty = timeout(Duration::from_secs(30), channel.publish_at_least_once(missing, plain(), "x")).await?;
        ensure!(matches!(guilty, Err(Error::Closed { code: 404, .. })), "{guilty:?}");
    }
    println!("the guilty one was told three times in {:?}", since.elapsed());
    for outcome in steady.join_all().await {
        outcome?;
    }
    let arrived = channel.queue_declare(common::quorum_queue("q")).await?.messages;
    println!("{arrived} messages arrived, of {} sent", TASKS * EACH);
    // Each refusal may duplicate the messages that were on their way.
    ensure!((TASKS * EACH..=TASKS * EACH + 3 * TASKS).contains(&arrived), "{arrived} arrived");
    Ok(())
}

/// The user has no right to write to an exchange with a long name. RabbitMQ 4.3 has to cut the name in its answer, and
/// ends the connection instead.
#[tokio::test]
async fn a_message_that_ends_the_connection_each_time_is_not_sent_for_ever() -> Result<()> {
    let fixture = Fixture::new().await?;
    if fixture.host.broker().skip_below("4.3").await? {
        return Ok(());
    }
    let rights = json!({"configure": ".*", "write": "^(q|amq\\.default)$", "read": ".*"});
    fixture.host.put(&format!("/api/permissions/{{vhost}}/{}", fixture.host.name()), rights).await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    let name = "щ".repeat(100);
    let evil = channel.publish_at_least_once(BasicPublishArguments::new(&name, ""), plain(), "x");
    let error = timeout(Duration::from_secs(60), evil).await?.expect_err("it should be refused");
    println!("{error}");
    ensure!(error.to_string().contains("541 INTERNAL_ERROR"), "{error}");
    channel.publish_at_least_once(to("q"), plain(), "y").await?;
    expect_in(&channel, "q", "y").await
}

/// Each closed channel uses up a channel number, and the connection has to be replaced after 1,500 of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_exchange_without_a_waiting_publisher_is_logged_once_and_slows_down_only_its_own_channel()
-> Result<()> {
    logs::keep();
    let fixture = Fixture::new().await?;
    let host = fixture.host.name().to_owned();
    let before = {
        fixture.channel().await?;
        fixture.connection_names().await?
    };
    let client = RpcClient::new(&fixture.connections.channel("client").await?).await?;
    let without = fixture.connections.channel_without_confirms("without").await?;
    let dropped = fixture.connections.channel("dropped").await?;
    let mut storms = JoinSet::new();
    for (channel, exchange) in
        [(without, format!("misspelt-without-{host}")), (dropped, format!("misspelt-dropped-{host}"))]
    {
        storms.spawn(async move {
            for _ in 0..2_000 {
                let confirm = channel
                    .publish_with_deferred_confirm(BasicPublishArguments::new(&exchange, ""), plain(), "x")
                    .await?;
                // The test does not wait for it.
                drop(confirm);
                tokio::task::yield_now().await;
            }
            Ok::<_, Error>(())
        });
    }
    for exchange in [format!("misspelt-without-{host}"), format!("misspelt-dropped-{host}")] {
        let line = logs::wait_for(&["404 NOT_FOUND", &exchange], Duration::from_secs(30)).await?;
        ensure!(line.contains("WARN"), "{line}");
    }
    // Meanwhile another channel works.
    let since = Instant::now();
    let mut calls = 0;
    while since.elapsed() < Duration::from_secs(4) {
        let answer = client.call("nobody", "x", Duration::from_secs(20)).await;
        ensure!(matches!(answer, Err(Error::Unroutable(_))), "{answer:?}");
        calls += 1;
    }
    println!("{calls} calls beside them");
    ensure!(fixture.connection_names().await? == before, "the connection changed");
    for exchange in [format!("misspelt-without-{host}"), format!("misspelt-dropped-{host}")] {
        let lines = logs::with(&[&exchange]);
        ensure!(lines.len() == 1, "{lines:?}");
    }
    Ok(())
}

/// Messages that are never confirmed must not block other publishers for ever.
#[tokio::test]
async fn messages_that_are_never_confirmed_do_not_block_the_channel_for_ever() -> Result<()> {
    let fixture = Fixture::with(|options: ConnectOptions| options.operation_timeout(Duration::from_secs(2))).await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(QueueDeclareArguments::durable_client_named("stuck")).await?;
    channel.queue_declare(queue("q")).await?;
    let stop = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{}\">>, queue, <<\"stuck\">>)), \
         sys:suspend(amqqueue:get_pid(Q)).",
        fixture.host.name()
    );
    fixture.host.broker().rabbitmqctl(&["eval", &stop]).await?;
    let mut confirms = Vec::new();
    for _ in 0..16 {
        confirms.push(channel.publish_with_deferred_confirm(to("stuck"), plain(), vec![0; (1 << 20) - 1_024]).await?);
    }
    let other = || channel.publish(to("q"), plain(), "x");
    let error = other().await.expect_err("the limit of unconfirmed bytes is reached");
    ensure!(matches!(error, Error::Timeout { .. }), "{error}");
    for confirm in confirms {
        let outcome = confirm.await;
        ensure!(matches!(outcome, Err(Error::Unconfirmed { .. })), "{outcome:?}");
    }
    timeout(Duration::from_secs(30), async { while other().await.is_err() {} }).await?;
    Ok(())
}
