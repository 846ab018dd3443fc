//! Messages from other programs, with any content: they do not end a program, lose other messages, or control a terminal.

use std::time::Duration;

use amqprs::{
    BasicProperties, FieldArray, FieldTable, FieldValue,
    channel::{BasicConsumeArguments, BasicGetArguments},
};
use anyhow::{Context, Result, ensure};
use common::{
    ConnectionManager, Error, Message, ProcessOptions, SetupChannel,
    rpc::{RpcClient, RpcServer},
    table,
};
use testbed::{
    Broker,
    stranger::{Letter, MOST_ARRAYS, MOST_TABLES, arrays, long, short, tables},
};
use tokio::time::timeout;

use crate::{Fixture, consume, expect_empty, expect_in, next, plain, queue, to};

const PATIENCE: Duration = Duration::from_secs(60);

/// The nested header, together with a usual one.
fn deep(nested: Vec<u8>) -> Vec<u8> {
    [short("b"), b"t\x01".to_vec(), nested].concat()
}

/// Too deep for every stack except the one that `common` uses, in debug and release builds. RabbitMQ needs seconds for
/// the deepest header that a frame can hold.
fn quite_deep() -> Vec<u8> {
    deep(tables(8_000))
}

fn ensure_shallow(message: &Message, body: &str) -> Result<()> {
    ensure!(message.text() == body, "{message:?}");
    let headers = message.properties.headers().context("the message has no headers")?.as_ref();
    ensure!(headers.len() == 1 && headers.get(&"b".try_into()?) == Some(&FieldValue::t(true)), "{headers:?}");
    Ok(())
}

#[tokio::test]
async fn a_header_nested_as_deep_as_a_frame_allows_is_removed_from_a_delivery() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    for (name, auto_ack) in [("manual", false), ("automatic", true)] {
        let mut consumer = consume(&channel, name, auto_ack).await?;
        for headers in [deep(arrays(MOST_ARRAYS)), deep(tables(MOST_TABLES))] {
            Letter::new(headers, "deep").post(&fixture.host, name).await?;
        }
        channel.publish(to(name), plain(), "next").await?;
        for _ in 0..2 {
            let delivery = next(&mut consumer).await?;
            ensure_shallow(&delivery, "deep")?;
            // Copying and printing it is safe even on the small stack of a test's thread.
            ensure!(format!("{:?}{}", Message::clone(&delivery), delivery.info()).contains("{ b: true }"));
            if !auto_ack {
                delivery.ack().await?;
            }
        }
        ensure!(next(&mut consumer).await?.text() == "next");
    }
    Ok(())
}

#[tokio::test]
async fn a_header_nested_too_deeply_is_removed_from_a_message_that_is_fetched() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    Letter::new(quite_deep(), "deep").post(&fixture.host, "q").await?;
    let message = channel.get(BasicGetArguments::new("q")).await?.context("the queue is empty")?;
    ensure_shallow(&message, "deep")?;
    message.ack().await?;
    expect_empty(&channel, "q").await
}

/// The stack of each thread that could drop these messages is far too small for that.
#[tokio::test]
async fn deep_messages_that_the_program_does_not_read_are_dropped_safely() -> Result<()> {
    for auto_ack in [false, true] {
        let fixture = Fixture::new().await?;
        let channel = fixture.channel().await?;
        channel.queue_declare(queue("q")).await?;
        for _ in 0..3 {
            Letter::new(quite_deep(), "deep").post(&fixture.host, "q").await?;
        }
        channel.publish(to("q"), plain(), "last").await?;
        // One consumer is dropped, one survives a lost connection, and one survives its manager.
        drop(consume(&channel, "q", false).await?);
        let mut lost = consume(&channel, "q", false).await?;
        fixture.host.close_all_connections().await?;
        ensure!(next(&mut lost).await?.text() == "deep");
        drop(lost);
        let unread = consume(&channel, "q", auto_ack).await?;
        let mut heard = consume(&channel, "other", true).await?;
        channel.publish(to("other"), plain(), "by now they have come").await?;
        next(&mut heard).await?;
        fixture.connections.close_all().await?;
        drop(unread);
    }
    Ok(())
}

#[tokio::test]
async fn deep_requests_and_replies_arrive_like_others() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let subscribe = |channel: SetupChannel| async move {
        channel.queue_declare(queue("requests")).await?;
        Ok(BasicConsumeArguments::new("requests", ""))
    };
    let server = RpcServer::new(&channel, subscribe).await?;
    let serving = tokio::spawn(server.serve(|request: Message| async move { Ok::<_, Error>(request.text() + "!") }));
    let mut replies = consume(&channel, "replies", true).await?;
    let request =
        Letter { reply_to: "replies".into(), correlation_id: "7".into(), ..Letter::new(quite_deep(), "deep") };
    request.post(&fixture.host, "requests").await?;
    let reply = next(&mut replies).await?;
    ensure!(reply.text() == "deep!" && reply.properties.correlation_id().is_some_and(|id| id == "7"), "{reply:?}");

    channel.queue_declare(queue("by hand")).await?;
    let mut requests = consume(&channel, "by hand", true).await?;
    let client = RpcClient::new(&channel).await?;
    let call = tokio::spawn(async move { client.call("by hand", "?", PATIENCE).await });
    let request = next(&mut requests).await?;
    let correlation_id = request.properties.correlation_id().cloned().unwrap_or_default();
    let reply = Letter { correlation_id, ..Letter::new(quite_deep(), "deep") };
    reply.post(&fixture.host, request.properties.reply_to().context("the request has no `reply_to`")?).await?;
    ensure_shallow(&call.await??, "deep")?;
    fixture.connections.close_all().await?;
    Ok(serving.await??)
}

/// A program that forwards a received message forwards it without the deep header.
#[tokio::test]
async fn a_deep_header_is_not_sent() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    let nested = |levels: usize| {
        (1..levels).try_fold(FieldArray::new(), |inside, _| FieldArray::try_from(vec![FieldValue::A(inside)]))
    };
    let properties = |levels| -> Result<BasicProperties> {
        Ok(plain().with_headers(table([("a", FieldValue::A(nested(levels)?))])?).finish())
    };
    channel.publish(to("q"), properties(64)?, "as deep as may be").await?;
    let message =
        channel.get(BasicGetArguments::new("q").no_ack(true).finish()).await?.context("the queue is empty")?;
    ensure!(message.properties.headers().context("the message has no headers")?.as_ref().len() == 1, "{message:?}");
    let error = channel.publish(to("q"), properties(65)?, "too deep").await.err().context("it should be refused")?;
    ensure!(matches!(&error, Error::Invalid(text) if text.contains("header `a`")), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_header_with_the_same_name_twice_can_be_sent_on() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let before = fixture.connection_names().await?;
    let twice = || [short("k"), b"t\x01".to_vec(), short("k"), b"S".to_vec(), long(b"other")].concat();
    let in_table = [short("t"), b"F".to_vec(), long(&twice())].concat();
    let in_array = [short("a"), b"A".to_vec(), long(&[b"F".to_vec(), long(&twice())].concat())].concat();
    let mut consumer = consume(&channel, "q", false).await?;
    channel.queue_declare(queue("further")).await?;
    for headers in [twice(), in_table, in_array] {
        Letter::new(headers, "twice").post(&fixture.host, "q").await?;
        let delivery = next(&mut consumer).await?;
        for mandatory in [false, true] {
            let further = to("further").mandatory(mandatory).finish();
            channel.publish(further, delivery.properties.clone(), delivery.body.clone()).await?;
            expect_in(&channel, "further", "twice").await?;
        }
        let properties = delivery.properties.clone();
        let send_on = |transaction: common::Transaction| async move {
            transaction.publish(to("further"), properties, "in a transaction").await
        };
        channel.transaction(send_on).await?;
        expect_in(&channel, "further", "in a transaction").await?;
        delivery.ack().await?;
    }
    // A table that the program itself makes.
    let mut headers = FieldTable::new();
    headers.insert("k".try_into()?, true.into());
    headers.insert("k".try_into()?, "other".into());
    channel.publish(to("further"), plain().with_headers(headers).finish(), "inserted twice").await?;
    expect_in(&channel, "further", "inserted twice").await?;
    ensure!(fixture.connection_names().await? == before, "the connection was lost");
    Ok(())
}

#[tokio::test]
async fn headers_of_every_type_are_shown_on_one_line() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let mut consumer = consume(&channel, "q", true).await?;
    let fields = [
        short("array"),
        b"A\0\0\0\0".to_vec(),
        short("bytes"),
        b"x".to_vec(),
        long(b"\0\xff\"a"),
        short("decimal"),
        b"D\x02\0\0\x04\xd2".to_vec(),
        short("double"),
        b"d".to_vec(),
        (-1.5_f64).to_be_bytes().to_vec(),
        short("float"),
        b"f".to_vec(),
        2_f32.to_be_bytes().to_vec(),
        short("inner"),
        b"F".to_vec(),
        long(&[short("x"), b"V".to_vec(), short("\u{1b}"), b"A".to_vec(), long(b"t\0")].concat()),
        short("long"),
        b"l".to_vec(),
        i64::MIN.to_be_bytes().to_vec(),
        short("text"),
        b"S".to_vec(),
        long("ü \"quoted\" \u{1b}[31m\r\nforged".as_bytes()),
        short("time"),
        b"T".to_vec(),
        1_700_000_000_u64.to_be_bytes().to_vec(),
        short("void"),
        b"V".to_vec(),
    ];
    Letter::new(fields.concat(), "b").post(&fixture.host, "q").await?;
    Letter::new(Vec::new(), "none").post(&fixture.host, "q").await?;
    let info = next(&mut consumer).await?.info().to_string();
    let shown = info.lines().find(|line| line.starts_with("headers: ")).context("the message has no headers")?;
    let expected = r#"headers: { array: [ ], bytes: b"\x00\xff\"a", decimal: Decimal(2, 1234), double: -1.5, float: 2.0, inner: { \u{1b}: [ false ], x: () }, long: -9223372036854775808, text: "ü \"quoted\" \u{1b}[31m\r\nforged", time: Timestamp(1700000000), void: () }"#;
    ensure!(shown == expected, "{shown}");
    ensure!(next(&mut consumer).await?.info().to_string().contains("headers: { }\n"));
    Ok(())
}

/// The program still reads the messages delivered before it. The messages behind it, on this connection, are lost only
/// with automatic acknowledgement.
#[tokio::test]
async fn a_header_that_cannot_be_decoded_is_named_as_a_possible_cause() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("q")).await?;
    let not_text = [short("h"), b"S".to_vec(), long(b"\xff\xfe")].concat();
    Letter::new(not_text, "bad").post(&fixture.host, "q").await?;
    let mut events = fixture.connections.events();
    let error = channel.get(BasicGetArguments::new("q")).await.err().context("it should not be decoded")?.to_string();
    for part in ["a message came that cannot be decoded", "first message of queue `q`", "may not be UTF-8"] {
        ensure!(error.contains(part), "{error}");
    }
    let lost = async {
        while let Some(event) = events.next().await {
            if let common::Event::Lost(reason) = event {
                return Some(reason.to_string());
            }
        }
        None
    };
    let reason = timeout(PATIENCE, lost).await?.context("the connection was not lost")?;
    ensure!(reason.contains("a message came that cannot be decoded"), "{reason}");
    Ok(())
}

#[tokio::test]
async fn errors_show_names_and_texts_of_others_escaped() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let name = "\u{1b}[31m\nforged\u{202e}";
    let missing = channel.get(BasicGetArguments::new(name)).await.err().context("the queue should be missing")?;
    let returned = channel.publish(to(name).mandatory(true).finish(), plain(), "x").await;
    let returned = returned.err().context("the message should be unroutable")?;
    let refused = channel.publish(amqprs::channel::BasicPublishArguments::new(name, name), plain(), "x").await;
    let refused = refused.err().context("the exchange should be missing")?;
    for error in [missing, returned, refused, Error::other(name), Error::Remote(common::RemoteError::new(name, name))] {
        for shown in [error.to_string(), format!("{error:?}")] {
            ensure!(!shown.contains(['\u{1b}', '\n', '\u{202e}']), "{shown:?}");
            ensure!(shown.contains(r"\u{1b}[31m\nforged\u{202e}"), "{shown}");
        }
    }
    Ok(())
}

/// The handler gets the original text.
#[tokio::test]
async fn a_body_is_shown_on_one_line_and_read_as_it_came() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let mut consumer = consume(&channel, "q", false).await?;
    channel.publish(to("q"), plain(), "one\n\ttwo \u{1b}[2J हिन्दी 👩‍🚀").await?;
    let delivery = next(&mut consumer).await?;
    ensure!(delivery.display().to_string() == r"one\n\ttwo \u{1b}[2J हिन्दी 👩‍🚀", "{}", delivery.display());
    let seen = |message: Message| async move { Err::<(), _>(message.text()) };
    delivery.process(ProcessOptions::default(), seen).await?;
    expect_empty(&channel, "q").await
}

/// The stack that reads a frame's headers has a fixed size, so the frames must have a limit.
#[tokio::test]
async fn a_broker_that_allows_frames_of_any_size_is_refused_in_one_sentence() -> Result<()> {
    let broker = Broker::builder().configuration("frame_max = 0").start().await?;
    let host = broker.virtual_host().await?;
    let connections = ConnectionManager::new(host.url().parse()?);
    let error = connections.channel("test").await.err().context("it should be refused")?.to_string();
    for part in ["it allows frames of any size", "set `frame_max` in rabbitmq.conf to 1048576 or less"] {
        ensure!(error.contains(part), "{error}");
    }
    Ok(())
}
