//! Consumers that the broker cancels.

use std::time::Duration;

use amqprs::channel::{BasicConsumeArguments, BasicQosArguments, QueueDeleteArguments};
use anyhow::{Result, ensure};
use common::SetupChannel;
use tokio::time::{sleep, timeout};

use crate::{Fixture, next, plain, queue, to};

const ROOM: Duration = Duration::from_secs(120);

/// After its queue is deleted, the consumer declares it again and receives from it.
#[tokio::test]
async fn a_consumer_whose_queue_is_deleted_declares_a_new_one() -> Result<()> {
    let fixture = Fixture::new().await?;
    let channel = fixture.channel().await?;
    let subscribe = |channel: SetupChannel| async move {
        channel.queue_declare(queue("q")).await?;
        channel.basic_qos(BasicQosArguments::new(0, 10, false)).await?;
        Ok(BasicConsumeArguments::new("q", ""))
    };
    let mut consumer = channel.consume(subscribe).await?;
    for round in 0..3 {
        channel.publish_at_least_once(to("q").mandatory(true).finish(), plain(), round.to_string()).await?;
        let in_hand = next(&mut consumer).await?;
        channel.queue_delete(QueueDeleteArguments::new("q")).await?;
        let _ = in_hand.ack().await?;
        timeout(ROOM, async {
            while channel.publish(to("q").mandatory(true).finish(), plain(), "there again").await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await?;
        let delivery = next(&mut consumer).await?;
        ensure!(delivery.text() == "there again");
        delivery.ack().await?;
    }
    Ok(())
}
