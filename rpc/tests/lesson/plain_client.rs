//! A client that knows only AMQP and not our programs, like a client in another language.

use std::time::Duration;

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicPublishArguments, QueueDeclareArguments},
};
use anyhow::{Context, Result};
use common::{Channel, ConnectionManager, Consumer, Delivery, SetupChannel};
use testbed::{Broker, VirtualHost};
use tokio::time::timeout;

use crate::server;

pub struct PlainClient {
    channel: Channel,
    replies: Consumer,
    pub reply_queue: String,
}

impl PlainClient {
    pub async fn new(host: &VirtualHost<'_>) -> Result<PlainClient> {
        let channel = ConnectionManager::new(host.url().parse()?).channel("plain client").await?;
        let replies = channel.consume(replies).await?;
        let reply_queue = replies.queue();
        Ok(PlainClient { channel, replies, reply_queue })
    }

    /// Sends a correct request. When this returns, the server's queue has it.
    pub async fn ask(&self, id: &str, body: impl Into<Vec<u8>>) -> Result<()> {
        let mut properties = BasicProperties::default();
        properties.with_reply_to(&self.reply_queue).with_correlation_id(id);
        self.send(properties, body).await
    }

    /// Sends a request with these properties. When this returns, the server's queue has it.
    pub async fn send(&self, properties: BasicProperties, body: impl Into<Vec<u8>>) -> Result<()> {
        let to = BasicPublishArguments::new("", "rpc_queue").mandatory(true).finish();
        Ok(self.channel.publish(to, properties, body).await?)
    }

    /// The next reply, to any request.
    pub async fn reply(&mut self) -> Result<Delivery> {
        let reply = timeout(Duration::from_secs(20), self.replies.try_next()).await.context("no reply comes")??;
        reply.context("the replies have ended")
    }

    /// Sends a request, and checks the reply: its `type` (a server without the helper sets none), text, correlation id,
    /// exchange and routing key.
    pub async fn expect<'a>(
        &mut self,
        body: impl Into<Vec<u8>>,
        kind: impl Into<Option<&'a str>>,
        text: &str,
    ) -> Result<()> {
        let id = uuid();
        self.ask(&id, body).await?;
        let reply = self.reply().await?;
        assert_eq!(reply.text(), text);
        assert_eq!(reply.properties.message_type().map(String::as_str), kind.into());
        assert_eq!(reply.properties.correlation_id(), Some(&id));
        assert_eq!(reply.exchange, "");
        assert_eq!(reply.routing_key, self.reply_queue);
        Ok(())
    }
}

async fn replies(channel: SetupChannel) -> common::Result<BasicConsumeArguments> {
    let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?;
    Ok(BasicConsumeArguments::new(&queue.name, "").auto_ack(true).finish())
}

/// Any text that differs from call to call.
fn uuid() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("question {}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[tokio::test]
async fn a_reply_has_the_id_of_its_request_and_comes_through_the_default_exchange() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = server(&host).await?;
    let mut client = PlainClient::new(&host).await?;
    client.expect("30", "result", "832040").await?;
    server.expect(" [.] fib(30)").await?;
    client.expect("0", "result", "0").await?;
    server.expect(" [.] fib(0)").await
}

#[tokio::test]
async fn a_request_that_is_not_a_number_from_0_to_186_gets_an_error_and_the_server_still_works() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = server(&host).await?;
    let mut client = PlainClient::new(&host).await?;
    for question in ["abc", "-1", "187", "100000", "", " ", "3.5", "1e2", "99999999999999999999999999999999", "ü", "\0"]
    {
        client.expect(question, "error", "fib takes a whole number from 0 to 186").await?;
    }
    client.expect([0xff, 0xfe], "error", "fib takes a whole number from 0 to 186").await?;
    client.expect("30", "result", "832040").await?;
    // The server computed nothing for the other requests.
    server.expect(" [.] fib(30)").await
}

#[tokio::test]
async fn a_huge_request_gets_an_error_and_the_server_still_works() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let _server = server(&host).await?;
    let mut client = PlainClient::new(&host).await?;
    let huge = vec![b'9'; 10 << 20];
    client.expect(huge, "error", "fib takes a whole number from 0 to 186").await?;
    client.expect("30", "result", "832040").await
}

#[tokio::test]
async fn a_request_without_reply_to_does_not_stop_the_server() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = server(&host).await?;
    let mut client = PlainClient::new(&host).await?;
    client.send(BasicProperties::default(), "30").await?;
    server.stderr_line_containing("without `reply_to`").await?;
    client.expect("7", "result", "13").await
}

#[tokio::test]
async fn a_request_without_correlation_id_gets_a_reply_without() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let _server = server(&host).await?;
    let mut client = PlainClient::new(&host).await?;
    let properties = BasicProperties::default().with_reply_to(&client.reply_queue).finish();
    client.send(properties, "10").await?;
    let reply = client.reply().await?;
    assert_eq!(reply.text(), "55");
    assert_eq!(reply.properties.correlation_id(), None);
    Ok(())
}

#[tokio::test]
async fn a_client_that_has_gone_does_not_stop_the_server() -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let mut server = server(&host).await?;
    let mut client = PlainClient::new(&host).await?;
    let gone = BasicProperties::default().with_reply_to("no such queue").with_correlation_id("1").finish();
    client.send(gone, "30").await?;
    server.expect(" [.] fib(30)").await?;
    client.expect("7", "result", "13").await?;
    server.expect(" [.] fib(7)").await
}
