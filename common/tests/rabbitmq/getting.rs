//! `basic.get`: calls that are dropped half-way, and calls on a channel that has an error at the same time.

use std::time::Duration;

use amqprs::channel::{BasicGetArguments, BasicPublishArguments};
use anyhow::{Result, ensure};
use common::{Error, Settlement};
use tokio::{
    task::yield_now,
    time::{sleep, timeout},
};

use crate::{Fixture, filled, plain, queue, to};

#[tokio::test(flavor = "multi_thread")]
async fn a_get_that_is_dropped_half_way_gives_its_message_back() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", (0..300).map(|number| number.to_string())).await?;
    let mut taken = 0;
    for round in 0..400_u64 {
        let get = channel.get(BasicGetArguments::new("q"));
        if let Ok(delivery) = timeout(Duration::from_micros(round * 7 % 2_000), get).await
            && let Some(delivery) = delivery?
        {
            ensure!(delivery.ack().await? == Settlement::Sent, "the channel was lost");
            taken += 1;
        }
    }
    // The channel is still the same one. A message from a dropped call is in the queue again once it is requeued.
    let all = async {
        while taken < 300 {
            match channel.get(BasicGetArguments::new("q")).await? {
                Some(delivery) => {
                    delivery.ack().await?;
                    taken += 1;
                }
                None => sleep(Duration::from_millis(20)).await,
            }
        }
        Ok::<_, Error>(())
    };
    let finished = timeout(Duration::from_secs(30), all).await;
    ensure!(finished.is_ok(), "only {taken} of 300 messages came");
    finished??;
    Ok(())
}

/// Without acknowledgement a message comes only once. The answer may arrive just before the channel is closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_get_without_acknowledgement_loses_nothing_when_another_message_is_refused() -> Result<()> {
    let fixture = Fixture::with(|options| options.reconnect_interval(Duration::from_millis(20))).await?;
    let channel = fixture.channel().await?;
    filled(&channel, "q", (0..40).map(|number| number.to_string())).await?;
    let get = || channel.get(BasicGetArguments::new("q").no_ack(true).finish());
    let mut bodies = Vec::new();
    for round in 0..20_u32 {
        let refused = async {
            for _ in 0..round * 4 {
                yield_now().await;
            }
            channel.publish(BasicPublishArguments::new("missing", ""), plain(), "x").await
        };
        let (first, refused) = tokio::join!(get(), refused);
        ensure!(matches!(refused, Err(Error::Closed { code: 404, .. })), "{refused:?}");
        bodies.extend(first?.map(|message| message.text()));
        bodies.extend(get().await?.map(|message| message.text()));
    }
    let expected: Vec<_> = (0..40).map(|number| number.to_string()).collect();
    ensure!(bodies == expected, "{bodies:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_without_acknowledgement_and_without_an_answer_says_what_may_be_lost() -> Result<()> {
    let fixture = Fixture::new().await?;
    let proxy = testbed::Proxy::start(fixture.host.broker().port()).await?;
    let url =
        fixture.host.url().replace(&format!(":{}/", fixture.host.broker().port()), &format!(":{}/", proxy.port()));
    let options = url.parse::<common::ConnectOptions>()?.operation_timeout(Duration::from_secs(2));
    let connections = common::ConnectionManager::new(options);
    let channel = connections.channel("test").await?;
    channel.queue_declare(queue("q")).await?;
    channel.publish(to("q"), plain(), "x").await?;
    proxy.stall();
    let get = channel.get(BasicGetArguments::new("q").no_ack(true).finish());
    let error = get.await.expect_err("the answer should be missing");
    ensure!(matches!(error, Error::Timeout { .. }) && error.to_string().contains("it is lost"), "{error}");
    proxy.resume();
    Ok(connections.close_all().await?)
}
