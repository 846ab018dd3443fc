//! x
use crate::{Bench, plain, table};
use amqprs::channel::BasicPublishArguments;
use anyhow::Result;

#[tokio::test]
async fn experiment() -> Result<()> {
    let bench = Bench::new().await?;
    let channel = bench.channel().await?;
    for name in ["щ".to_owned(), "щ".repeat(60), "щ".repeat(100), "щ".repeat(120), "n".repeat(240), "щ".repeat(120)]
    {
        let error = channel.publish(BasicPublishArguments::new(&name, ""), plain(), "x").await;
        println!("{} {error:?}", name.len());
    }
    let mut p = plain();
    p.with_headers(table(&[("x", "y".repeat(200_000).into())])?);
    println!("{:?}", channel.publish(BasicPublishArguments::new("", "q"), p, "x").await);
    let mut p = plain();
    p.with_expiration("bla");
    println!("{:?}", channel.publish(BasicPublishArguments::new("", "q"), p, "x").await);
    let mut p = plain();
    p.with_expiration("-1");
    println!("{:?}", channel.publish(BasicPublishArguments::new("", "q"), p, "x").await);
    let mut p = plain();
    p.with_expiration("99999999999");
    println!("{:?}", channel.publish(BasicPublishArguments::new("", "q"), p, "x").await);
    let mut p = plain();
    p.with_user_id("somebody");
    println!("{:?}", channel.publish(BasicPublishArguments::new("", "q"), p, "x").await);
    let mut p = plain();
    p.with_headers(table(&[("BCC", "x".into())])?);
    println!("{:?}", channel.publish(BasicPublishArguments::new("", "q"), p, "x").await);
    println!("{:?}", channel.publish(BasicPublishArguments::new("", "q"), plain(), vec![0; 17 << 20]).await);
    println!("{:?}", channel.publish(BasicPublishArguments::new("", "q"), plain(), vec![0; 129 << 20]).await);
    println!("{:?}", channel.publish(BasicPublishArguments::new("amq.rabbitmq.trace", "q"), plain(), "").await);
    channel
        .exchange_declare(amqprs::channel::ExchangeDeclareArguments::new("int", "fanout").internal(true).finish())
        .await?;
    println!("{:?}", channel.publish(BasicPublishArguments::new("int", "q"), plain(), "").await);
    println!("{:?}", channel.publish(BasicPublishArguments::new("a'b\nc\u{1b}", "q"), plain(), "").await);
    println!("{:?}", channel.publish(BasicPublishArguments::new(" int ", "q"), plain(), "").await);
    println!("{:?}", channel.publish(BasicPublishArguments::new("щ\u{1b}", "q"), plain(), "").await);
    Ok(())
}
