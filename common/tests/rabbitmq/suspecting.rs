//! When the connection breaks again and again: which consumer is suspected, and which are not.

use std::time::Duration;

use amqprs::channel::BasicConsumeArguments;
use anyhow::{Context, Result, ensure};
use common::{ConnectOptions, ConnectionManager, Error, Event, rpc::RpcClient};
use testbed::{Broker, Proxy};
use tokio::time::{sleep, timeout};

use crate::{Fixture, consume, filled, next, plain, queue, to};

const ROOM: Duration = Duration::from_secs(120);

/// A manager whose connections go through the proxy.
async fn behind(proxy: &Proxy, fixture: &Fixture) -> Result<ConnectionManager> {
    let url =
        fixture.host.url().replace(&format!(":{}/", Broker::shared().await?.port()), &format!(":{}/", proxy.port()));
    ensure!(url != fixture.host.url(), "{url}");
    let options = url.parse::<ConnectOptions>()?.reconnect_interval(Duration::from_millis(200));
    Ok(ConnectionManager::new(options))
}

#[tokio::test]
async fn a_message_that_breaks_the_connection_each_time_ends_its_consumer_and_no_other() -> Result<()> {
    let fixture = Fixture::with(|options| options.reconnect_interval(Duration::from_millis(300))).await?;
    let channel = fixture.channel().await?;
    channel.queue_declare(queue("poisoned")).await?;
    let mut healthy = consume(&channel, "healthy", false).await?;
    // A header that is not UTF-8: amqprs can neither decode nor send one, so it is written by hand.
    poison(&fixture, "poisoned").await?;

    // It may arrive so soon that the first subscription already fails.
    let error = match channel.consume(|_| async { Ok(BasicConsumeArguments::new("poisoned", "")) }).await {
        Err(error) => error,
        Ok(mut poisoned) => {
            let error = timeout(Duration::from_secs(60), poisoned.try_next())
                .await?
                .err()
                .context("it should not be delivered")?;
            ensure!(poisoned.try_next().await?.is_none(), "the stream did not end after its last error");
            error
        }
    };
    ensure!(matches!(&error, Error::Poisoned { queue, losses: 5.. } if queue == "poisoned"), "{error}");

    for number in 0..10 {
        channel.publish_at_least_once(to("healthy"), plain(), number.to_string()).await?;
        next(&mut healthy).await?.ack().await?;
    }
    Ok(())
}

/// It is not the first in the queue. The messages before it are delivered with it, and cannot be acknowledged in time.
#[tokio::test]
async fn a_message_that_breaks_the_connection_is_found_behind_good_ones_which_are_not_lost() -> Result<()> {
    let fixture = Fixture::with(|options| options.reconnect_interval(Duration::from_millis(300))).await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", ["one".to_owned(), "two".to_owned(), "three".to_owned()]).await?;
    poison(&fixture, "q").await?;
    let mut seen = std::collections::HashSet::new();
    let mut consumer = match timeout(ROOM, consume(&channel, "q", false)).await? {
        Ok(consumer) => consumer,
        Err(error) => anyhow::bail!("the good ones were not delivered: {error}"),
    };
    let error = timeout(ROOM, async {
        loop {
            match consumer.try_next().await {
                Ok(Some(delivery)) => {
                    seen.insert(delivery.text());
                    let _ = delivery.ack().await;
                }
                Ok(None) => return None,
                Err(error) => return Some(error),
            }
        }
    })
    .await?
    .context("the stream ended without an error")?;
    ensure!(matches!(error, Error::Poisoned { .. }), "{error}");
    ensure!(seen.len() == 3, "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn a_message_that_breaks_the_connection_is_found_behind_a_slow_link() -> Result<()> {
    let fixture = Fixture::new().await?;
    fixture.channel().await?.queue_declare(queue("q")).await?;
    poison(&fixture, "q").await?;
    let proxy = Proxy::start(fixture.host.broker().port()).await?;
    proxy.delay(Duration::from_millis(300));
    let connections = behind(&proxy, &fixture).await?;
    let channel = connections.channel("test").await?;
    let error = match timeout(ROOM, channel.consume(|_| async { Ok(BasicConsumeArguments::new("q", "")) })).await? {
        Err(error) => error,
        Ok(mut consumer) => timeout(ROOM, consumer.try_next()).await?.err().context("it should not be delivered")?,
    };
    ensure!(matches!(error, Error::Poisoned { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_network_that_breaks_25_times_soon_after_each_recovery_ends_no_consumer() -> Result<()> {
    let fixture = Fixture::new().await?;
    let own = fixture.channel().await?;
    let proxy = Proxy::start(fixture.host.broker().port()).await?;
    let connections = behind(&proxy, &fixture).await?;
    let channel = connections.channel("test").await?;
    let mut idle = consume(&channel, "idle", false).await?;
    // The consumer does not read these messages, so no settled delivery shows that it does not cause the losses.
    filled(&own, "unread", (0..3).map(|number| number.to_string())).await?;
    let mut unread = consume(&channel, "unread", false).await?;
    let client = RpcClient::new(&channel).await?;
    let mut events = connections.events();
    for _ in 0..25 {
        proxy.reset();
        timeout(ROOM, async { while !matches!(events.next().await, None | Some(Event::Lost(_))) {} }).await?;
        timeout(ROOM, async { while !matches!(events.next().await, None | Some(Event::Recovered)) {} }).await?;
        // This is the situation to test: the connection lasts for a short time. The test waits for nothing here.
        sleep(Duration::from_millis(150)).await;
    }
    own.publish(to("idle"), plain(), "x").await?;
    ensure!(next(&mut idle).await?.text() == "x");
    for _ in 0..3 {
        next(&mut unread).await?.ack().await?;
    }
    let answer = client.call("nobody", "x", Duration::from_secs(30)).await;
    ensure!(matches!(answer, Err(Error::Unroutable(_))), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn a_link_cut_after_every_5_kb_delivers_all_messages() -> Result<()> {
    let fixture = Fixture::new().await?;
    let own = fixture.channel().await?;
    const MESSAGES: usize = 500;
    filled(&own, "q", (0..MESSAGES).map(|number| number.to_string())).await?;
    let proxy = Proxy::start(fixture.host.broker().port()).await?;
    let connections = behind(&proxy, &fixture).await?;
    let channel = connections.channel("test").await?;
    let mut consumer = consume(&channel, "q", false).await?;
    let client = RpcClient::new(&channel).await?;
    let mut cuts = connections.events();
    let cutting = async {
        proxy.cut_after(5_000);
        while let Some(event) = cuts.next().await {
            if matches!(event, Event::Recovered) {
                proxy.cut_after(5_000);
            }
        }
    };
    let reading = async {
        let mut seen = std::collections::HashSet::new();
        while seen.len() < MESSAGES {
            let delivery = consumer.try_next().await?.context("the stream has ended")?;
            seen.insert(delivery.text());
            delivery.ack().await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::select! {
        () = cutting => anyhow::bail!("the manager is closed"),
        outcome = timeout(ROOM, reading) => outcome??,
    }
    proxy.resume();
    ensure!(proxy.accepted() > 5, "the link was not cut often enough");
    // The RPC client still works, too. The last cut may end its first call.
    timeout(ROOM, async {
        loop {
            match client.call("nobody", "x", Duration::from_secs(60)).await {
                Err(Error::Unroutable(_)) => return Ok(()),
                Err(Error::Lost { .. } | Error::Unconfirmed { .. }) => {}
                other => anyhow::bail!("unexpected: {other:?}"),
            }
        }
    })
    .await??;
    Ok(())
}

/// After the trial of a suspected consumer the whole prefetch counts again, also if many deliveries are settled at once.
#[tokio::test]
async fn after_a_trial_a_consumer_gets_its_whole_prefetch_again() -> Result<()> {
    let fixture = Fixture::new().await?;
    filled(&fixture.channel().await?, "q", (0..50).map(|number| number.to_string())).await?;
    let proxy = Proxy::start(fixture.host.broker().port()).await?;
    let connections = behind(&proxy, &fixture).await?;
    let channel = connections.channel("test").await?;
    let mut consumer = consume(&channel, "q", false).await?;
    for _ in 0..3 {
        let held = next(&mut consumer).await?;
        proxy.reset();
        drop(next(&mut consumer).await?.reject(true).await);
        drop(held);
    }
    let mut held = Vec::new();
    while held.len() < 50 {
        held.push(timeout(ROOM, consumer.try_next()).await??.context("the stream has ended")?);
    }
    held.pop().context("no delivery is held")?.ack_multiple().await?;
    Ok(())
}

/// Publishes a message with a header that is not UTF-8, over a separate connection.
async fn poison(fixture: &Fixture, queue: &str) -> Result<()> {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };
    fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        frame
    }
    fn short(text: &str) -> Vec<u8> {
        [&[text.len() as u8], text.as_bytes()].concat()
    }
    fn long(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
    }
    async fn answer(stream: &mut TcpStream) -> Result<Vec<u8>> {
        let mut head = [0; 7];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; length + 1];
        stream.read_exact(&mut payload).await?;
        Ok(payload)
    }
    let mut stream = TcpStream::connect(("127.0.0.1", fixture.host.broker().port())).await?;
    let (user, password) = (fixture.host.name(), fixture.host.password());
    stream.write_all(b"AMQP\0\0\x09\x01").await?;
    answer(&mut stream).await?;
    let response = format!("\0{user}\0{password}");
    // connection.start-ok, tune-ok, open; channel.open, confirm.select.
    let start_ok =
        [&[0, 10, 0, 11][..], &long(b""), &short("PLAIN"), &long(response.as_bytes()), &short("en_US")].concat();
    stream.write_all(&frame(1, 0, &start_ok)).await?;
    let tune = answer(&mut stream).await?;
    stream.write_all(&frame(1, 0, &[&[0, 10, 0, 31][..], &tune[4..12]].concat())).await?;
    stream.write_all(&frame(1, 0, &[&[0, 10, 0, 40][..], &short(user), &[0, 0]].concat())).await?;
    answer(&mut stream).await?;
    stream.write_all(&frame(1, 1, &[0, 20, 0, 10, 0])).await?;
    answer(&mut stream).await?;
    stream.write_all(&frame(1, 1, &[0, 85, 0, 10, 0])).await?;
    answer(&mut stream).await?;
    // basic.publish; a content header with the property `headers` only; the body.
    let publish = [&[0, 60, 0, 40, 0, 0][..], &short(""), &short(queue), &[0]].concat();
    stream.write_all(&frame(1, 1, &publish)).await?;
    let table = [&short("key")[..], b"S", &long(&[0xff, 0xfe])].concat();
    let header = [&[0, 60, 0, 0][..], &1_u64.to_be_bytes(), &[0x20, 0], &long(&table)].concat();
    stream.write_all(&frame(2, 1, &header)).await?;
    stream.write_all(&frame(3, 1, b"x")).await?;
    // basic.ack
    let confirm = answer(&mut stream).await?;
    ensure!(confirm.starts_with(&[0, 60, 0, 80]), "expected a confirm, got {confirm:?}");
    Ok(())
}
