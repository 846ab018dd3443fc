//! Acknowledgement: only once, only in time, and decided by a handler's outcome.

use amqprs::channel::{BasicConsumeArguments, BasicGetArguments};
use anyhow::{Context, Result, ensure};
use common::{Channel, Delivery, Error, Message, Outcome, ProcessOptions, Settlement};

use crate::{Fixture, consume, expect_empty, expect_in, filled, logs, next, plain, queue, to};

async fn got(channel: &Channel) -> Result<Delivery> {
    channel.get(BasicGetArguments::new("q")).await?.context("the queue is empty")
}

#[tokio::test]
async fn ack_forgets_nack_and_reject_requeue_or_drop() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", ["x".to_owned()]).await?;

    got(&channel).await?.nack(true).await?;
    let again = got(&channel).await?;
    ensure!(again.redelivered, "it is not marked as redelivered");
    again.reject(true).await?;
    got(&channel).await?.ack().await?;
    expect_empty(&channel, "q").await?;

    filled(&channel, "q", ["y".to_owned(), "z".to_owned()]).await?;
    got(&channel).await?.nack(false).await?;
    got(&channel).await?.reject(false).await?;
    expect_empty(&channel, "q").await
}

#[tokio::test]
async fn ack_multiple_settles_the_earlier_ones_and_settling_one_of_them_is_a_local_error() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", (0..4).map(|number| number.to_string())).await?;
    let mut consumer = consume(&channel, "q", false).await?;
    let first = next(&mut consumer).await?;
    let second = next(&mut consumer).await?;
    let third = next(&mut consumer).await?;
    let fourth = next(&mut consumer).await?;
    third.ack_multiple().await?;
    for earlier in [first, second] {
        let error = earlier.ack().await.expect_err("it was settled before");
        ensure!(matches!(error, Error::Invalid(_)), "{error}");
    }
    // The channel still works.
    ensure!(fourth.ack().await? == Settlement::Sent);
    filled(&channel, "q", ["more".to_owned()]).await?;
    next(&mut consumer).await?.ack().await?;
    Ok(())
}

#[tokio::test]
async fn only_a_delivery_that_nothing_has_settled_is_warned_of_when_it_is_dropped() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", (0..3).map(|number| number.to_string())).await?;
    let mut consumer = consume(&channel, "q", false).await?;
    let earlier = next(&mut consumer).await?;
    next(&mut consumer).await?.ack_multiple().await?;
    let settled = logs::during(|| drop(earlier));
    ensure!(settled.is_empty(), "{settled}");
    let last = next(&mut consumer).await?;
    let unsettled = logs::during(|| drop(last));
    ensure!(unsettled.contains("delivery 3 was dropped unsettled"), "{unsettled}");
    Ok(())
}

#[tokio::test]
async fn settling_after_the_loss_of_the_connection_is_too_late_but_not_an_error() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", ["x".to_owned()]).await?;
    let mut consumer = consume(&channel, "q", false).await?;
    for _ in 0..3 {
        let delivery = next(&mut consumer).await?;
        fixture.host.close_all_connections().await?;
        // The next delivery comes over the new connection, which proves that the loss is known.
        let again = next(&mut consumer).await?;
        ensure!(again.redelivered && again.text() == "x", "{again:?}");
        ensure!(delivery.ack().await? == Settlement::TooLate, "it was acknowledged over a lost connection");
        again.nack(true).await?;
    }
    next(&mut consumer).await?.ack().await?;
    Ok(())
}

#[tokio::test]
async fn a_delivery_dropped_unsettled_comes_back_when_its_consumer_ends() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", ["forgotten".to_owned()]).await?;
    let mut consumer = consume(&channel, "q", false).await?;
    drop(next(&mut consumer).await?);
    expect_empty(&channel, "q").await?;
    drop(consumer);
    let mut second = consume(&channel, "q", false).await?;
    let delivery = next(&mut second).await?;
    ensure!(delivery.redelivered && delivery.text() == "forgotten", "{delivery:?}");
    delivery.ack().await?;
    Ok(())
}

#[tokio::test]
async fn the_handlers_value_decides() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", ["x".to_owned()]).await?;
    let usual = ProcessOptions::default();

    got(&channel).await?.process(usual, async |_| Ok::<_, Error>(Outcome::Requeue)).await?;
    got(&channel).await?.process(usual, async |_| Ok::<_, Error>(())).await?;
    expect_empty(&channel, "q").await?;

    channel.publish(to("q"), plain(), "x").await?;
    got(&channel).await?.process(usual, async |_| Ok::<_, Error>(Outcome::Reject)).await?;
    expect_empty(&channel, "q").await
}

#[tokio::test]
async fn a_failed_handler_rejects_requeues_or_requeues_once() -> Result<()> {
    async fn failing(_: Message) -> Result<(), Error> {
        Err(Error::other("no"))
    }
    async fn panicking(_: Message) -> Result<(), Error> {
        panic!("the test panics on purpose")
    }
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let requeue = ProcessOptions { requeue: true, ..ProcessOptions::default() };
    let once = ProcessOptions { requeue: true, reject_on_redelivered: true };

    filled(&channel, "q", ["x".to_owned()]).await?;
    got(&channel).await?.process(requeue, failing).await?;
    got(&channel).await?.process(requeue, panicking).await?;
    expect_in(&channel, "q", "x").await?;

    channel.publish(to("q"), plain(), "y").await?;
    got(&channel).await?.process(once, panicking).await?;
    got(&channel).await?.process(once, failing).await?;
    expect_empty(&channel, "q").await?;

    channel.publish(to("q"), plain(), "z").await?;
    got(&channel).await?.process(ProcessOptions::default(), failing).await?;
    expect_empty(&channel, "q").await
}

#[tokio::test]
async fn a_body_is_read_as_text_or_json() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", [r#"{"x": 6}"#.to_owned()]).await?;
    channel.publish(to("q"), plain(), vec![b'a', 0xff, b'b']).await?;

    let json = got(&channel).await?;
    ensure!(json.json::<serde_json::Value>()?["x"] == 6, "{json:?}");
    ensure!(json.json::<Vec<u8>>().is_err(), "an object is not a list");
    json.ack().await?;
    let text = got(&channel).await?;
    ensure!(text.text() == "a\u{fffd}b", "{text:?}");
    text.ack().await?;
    Ok(())
}

#[tokio::test]
async fn a_message_over_the_size_limit_is_dead_lettered_and_the_next_one_comes() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("too large")).await?;
    let dead_letters = queue("q").with("x-dead-letter-exchange", "").with("x-dead-letter-routing-key", "too large");
    channel.queue_declare(dead_letters).await?;
    let subscribe = |_| async { Ok(BasicConsumeArguments::new("q", "")) };
    let mut messages = channel.consume(subscribe).await?.max_body_size(4);
    for body in ["12345", "1234"] {
        channel.publish(to("q"), plain(), body).await?;
    }
    let message = next(&mut messages).await?;
    ensure!(message.text() == "1234", "{}", message.text());
    message.ack().await?;
    let mut rejected = consume(&channel, "too large", true).await?;
    ensure!(next(&mut rejected).await?.text() == "12345");
    expect_empty(&channel, "q").await
}
