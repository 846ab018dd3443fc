//! Consumers: prefetch, cancelling, requeuing, and streams.

use std::time::Duration;

use amqprs::channel::{BasicConsumeArguments, BasicQosArguments, QueueDeclareArguments, QueueDeleteArguments};
use anyhow::{Context, Result, ensure};
use common::{Error, SetupChannel};
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::{Fixture, consume, expect_empty, expect_in, filled, next, plain, prefetch, queue, to};

#[tokio::test]
async fn deliveries_come_in_order_and_next_may_be_dropped_while_it_waits() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let mut consumer = consume(&channel, "q", false).await?;
    ensure!(consumer.queue() == "q", "{}", consumer.queue());
    for number in 0..200 {
        let _ = timeout(Duration::from_micros(number % 7), consumer.next()).await.map_err(|_| ());
        channel.publish(to("q"), plain(), number.to_string()).await?;
        let delivery = next(&mut consumer).await?;
        ensure!(delivery.text() == number.to_string(), "{} instead of {number}", delivery.text());
        delivery.ack().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_consumer_is_a_stream() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", (0..3).map(|number| number.to_string())).await?;
    let bodies: Vec<_> = consume(&channel, "q", true)
        .await?
        .take(3)
        .map(|delivery| delivery.map(|delivery| delivery.text()))
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<Result<_, _>>()?;
    ensure!(bodies == ["0", "1", "2"], "{bodies:?}");
    Ok(())
}

#[tokio::test]
async fn without_a_qos_of_its_own_a_consumer_is_handed_a_hundred() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", (0..150).map(|number| number.to_string())).await?;
    let mut consumer = consume(&channel, "q", false).await?;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(next(&mut consumer).await?);
    }
    // If the broker wanted to send a 101st, it would send it before it answers this call.
    let ready = channel.queue_declare(queue("q")).await?.messages;
    ensure!(ready == 50, "{ready} are left in the queue");
    ensure!(timeout(Duration::from_millis(50), consumer.next()).await.is_err(), "a 101st came");
    for delivery in held {
        delivery.ack().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_prefetch_that_rabbitmq_does_not_support_is_refused_and_the_channel_still_works() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    for (arguments, word) in
        [(BasicQosArguments::new(1, 1, false), "prefetch_size"), (BasicQosArguments::new(0, 1, true), "global")]
    {
        let error = prefetch(&channel, arguments).await.expect_err(word);
        ensure!(matches!(error, Error::Invalid(_)) && error.to_string().contains(word), "{error}");
    }
    prefetch(&channel, BasicQosArguments::new(0, 1, false)).await?;
    Ok(())
}

#[tokio::test]
async fn a_dropped_consumer_gives_back_what_it_had_not_read_and_keeps_what_it_had() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", (0..5).map(|number| number.to_string())).await?;
    let mut consumer = consume(&channel, "q", false).await?;
    let in_hand = next(&mut consumer).await?;
    drop(consumer);

    let mut second = consume(&channel, "q", false).await?;
    for number in 1..5 {
        let delivery = next(&mut second).await?;
        ensure!(delivery.text() == number.to_string() && delivery.redelivered, "{delivery:?}");
        delivery.ack().await?;
    }
    ensure!(
        in_hand.ack().await? == common::Settlement::Sent,
        "the delivery that the program holds can no longer be settled"
    );
    drop(second);
    fixture.connections.close_all().await?;
    let again = common::ConnectionManager::new(fixture.host.url().parse()?);
    expect_empty(&again.channel("look").await?, "q").await
}

#[tokio::test]
async fn a_consumer_dropped_while_it_starts_leaves_nothing_behind() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    for round in 0..100_u64 {
        let _ = timeout(Duration::from_micros(round * 50), consume(&channel, "q", false)).await;
    }
    channel.publish(to("q"), plain(), "for the last one").await?;
    let mut consumer = consume(&channel, "q", false).await?;
    let delivery = next(&mut consumer).await?;
    delivery.ack().await?;
    timeout(Duration::from_secs(10), async {
        while channel.queue_declare(queue("q")).await?.consumers > 1 {}
        Ok::<_, Error>(())
    })
    .await
    .context("consumers were left")??;
    Ok(())
}

#[tokio::test]
async fn a_subscription_that_fails_the_first_time_fails_to_its_caller() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let missing = |_: SetupChannel| async { Ok(BasicConsumeArguments::new("missing", "")) };
    let error = channel.consume(missing).await.err().context("the queue should be missing")?;
    ensure!(error.to_string().contains("cannot consume from queue `missing`: 404 NOT_FOUND"), "{error}");

    let panicking = |_: SetupChannel| async { panic!("the test panics on purpose") };
    ensure!(channel.consume(panicking).await.is_err(), "a panic is an error");

    let _first = consume(&channel, "q", false).await?;
    let exclusive = |_: SetupChannel| async { Ok(BasicConsumeArguments::new("q", "").exclusive(true).finish()) };
    let error = channel.consume(exclusive).await.err().context("the queue should be in use")?;
    ensure!(error.to_string().contains("403 ACCESS_REFUSED"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_consumer_has_the_tag_it_asks_for() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", ["x".to_owned()]).await?;
    let mut consumer = channel.consume(|_| async { Ok(BasicConsumeArguments::new("q", "mine")) }).await?;
    let delivery = next(&mut consumer).await?;
    ensure!(delivery.consumer_tag == "mine", "{delivery:?}");
    delivery.ack().await?;
    Ok(())
}

#[tokio::test]
async fn an_empty_queue_name_is_the_queue_declared_last() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let subscribe = |channel: SetupChannel| async move {
        channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;
        Ok(BasicConsumeArguments::new("", "").auto_ack(true).finish())
    };
    let mut consumer = channel.consume(subscribe).await?;
    let name = consumer.queue();
    ensure!(name.starts_with("amq.gen-"), "{name}");
    channel.publish(to(&name), plain(), "x").await?;
    ensure!(next(&mut consumer).await?.text() == "x");
    Ok(())
}

#[tokio::test]
async fn when_its_queue_is_deleted_a_consumer_declares_it_again_and_goes_on() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let mut consumer = consume(&channel, "q", false).await?;
    for round in 0..3 {
        channel.queue_delete(QueueDeleteArguments::new("q")).await?;
        // The queue is missing until the consumer has noticed. The test does not read from it meanwhile.
        timeout(Duration::from_secs(10), async {
            while !matches!(channel.publish(to("q").mandatory(true).finish(), plain(), round.to_string()).await, Ok(()))
            {
            }
        })
        .await?;
        let delivery = next(&mut consumer).await?;
        ensure!(delivery.text() == round.to_string());
        delivery.ack().await?;
    }
    Ok(())
}

#[tokio::test]
async fn close_all_ends_the_stream_without_an_error() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "auto", (0..10).map(|number| number.to_string())).await?;
    let mut manual = consume(&channel, "q", false).await?;
    let mut auto = consume(&channel, "auto", true).await?;
    let first = next(&mut auto).await?;
    ensure!(first.text() == "0");
    fixture.connections.close_all().await?;
    ensure!(manual.try_next().await?.is_none() && manual.try_next().await?.is_none(), "the stream has not ended");
    // With automatic acknowledgement the queue no longer has the other nine, so the stream must still return them.
    let mut rest = 0;
    while auto.try_next().await?.is_some() {
        rest += 1;
    }
    ensure!(rest == 9, "only {rest} of 9 could still be read");
    Ok(())
}

#[tokio::test]
async fn one_broken_consumer_does_not_delay_the_others() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let broken = |channel: SetupChannel| async move {
        channel.queue_declare(queue("shaky")).await?;
        channel.basic_qos(BasicQosArguments::new(0, 1, false)).await?;
        Ok(BasicConsumeArguments::new("shaky", ""))
    };
    let mut shaky = channel.consume(broken).await?;
    let mut steady = consume(&channel, "steady", false).await?;
    // From here on its setup fails: the queue exists with other arguments.
    channel.queue_delete(QueueDeleteArguments::new("shaky")).await?;
    channel.queue_declare(QueueDeclareArguments::new("shaky").exclusive(true).finish()).await?;
    for number in 0..50 {
        channel.publish(to("steady"), plain(), number.to_string()).await?;
        next(&mut steady).await?.ack().await?;
    }
    // When its setup succeeds again, it receives messages again.
    channel.queue_delete(QueueDeleteArguments::new("shaky")).await?;
    timeout(Duration::from_secs(20), async {
        while channel.publish(to("shaky").mandatory(true).finish(), plain(), "back").await.is_err() {}
    })
    .await?;
    let delivery = next(&mut shaky).await?;
    ensure!(delivery.text() == "back");
    delivery.ack().await?;
    expect_empty(&channel, "steady").await
}

#[tokio::test]
async fn get_returns_one_message_or_none() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", ["one".to_owned(), "two".to_owned()]).await?;
    expect_in(&channel, "q", "one").await?;
    let auto = amqprs::channel::BasicGetArguments::new("q").no_ack(true).finish();
    let message = channel.get(auto).await?.context("the queue is empty")?;
    ensure!(message.text() == "two");
    ensure!(matches!(message.ack().await, Err(Error::Invalid(_))), "there is nothing to settle");
    expect_empty(&channel, "q").await?;
    let error = channel
        .get(amqprs::channel::BasicGetArguments::new("missing"))
        .await
        .err()
        .context("the queue should be missing")?;
    ensure!(error.to_string().contains("cannot get a message from queue `missing`: 404"), "{error}");
    expect_empty(&channel, "q").await
}
