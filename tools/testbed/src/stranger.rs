//! Publishes messages that no client library would send, byte by byte. Any program with the right to publish could send them.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::VirtualHost;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const END: u8 = 0xce;

/// How many arrays inside each other fit into one frame of 131,072 bytes, RabbitMQ's default.
pub const MOST_ARRAYS: usize = 26_000;

/// How many tables inside each other fit into one such frame.
pub const MOST_TABLES: usize = 21_800;

/// A message that is sent byte by byte.
#[derive(Default)]
pub struct Letter {
    /// The content of the table of headers. Each header is its name ([`short`]), the letter of its type, and its value.
    pub headers: Vec<u8>,
    /// The property `correlation_id`.
    pub correlation_id: String,
    /// The property `reply_to`.
    pub reply_to: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Letter {
    /// A message with these headers and this body.
    pub fn new(headers: Vec<u8>, body: &str) -> Self {
        Self { headers, body: body.into(), ..Self::default() }
    }

    /// Publishes the message to the default exchange, and returns when the broker has confirmed it.
    ///
    /// # Errors
    /// What the broker says, if it refuses the message.
    pub async fn post(&self, host: &VirtualHost<'_>, queue: &str) -> Result<()> {
        timeout(Duration::from_secs(60), self.send(host, queue)).await.context("the broker is silent")?
    }

    async fn send(&self, host: &VirtualHost<'_>, queue: &str) -> Result<()> {
        let url = host.url();
        let (address, _) = url.split_once('@').and_then(|(_, rest)| rest.split_once('/')).context("no address")?;
        let mut broker = Broker(TcpStream::connect(address).await?);
        broker.0.write_all(b"AMQP\0\0\x09\x01").await?;
        broker.expect(10, 10).await?;
        let login = format!("\0{}\0{}", host.name(), host.password());
        broker.call(0, 10, 11, [long(b""), short("PLAIN"), long(login.as_bytes()), short("en_US")].concat()).await?;
        let tune = broker.expect(10, 30).await?;
        broker.call(0, 10, 31, tune).await?;
        broker.call(0, 10, 40, [short(host.name()), short(""), vec![0]].concat()).await?;
        broker.expect(10, 41).await?;
        broker.call(1, 20, 10, short("")).await?;
        broker.expect(20, 11).await?;
        // confirm.select
        broker.call(1, 85, 10, vec![0]).await?;
        broker.expect(85, 11).await?;
        broker.call(1, 60, 40, [vec![0, 0], short(""), short(queue), vec![0]].concat()).await?;
        broker.frame(HEADER, 1, &self.header()).await?;
        if !self.body.is_empty() {
            broker.frame(BODY, 1, &self.body).await?;
        }
        // basic.ack
        broker.expect(60, 80).await?;
        broker.call(0, 10, 50, [vec![0, 200], short(""), vec![0, 0, 0, 0]].concat()).await?;
        broker.expect(10, 51).await.map(drop)
    }

    fn header(&self) -> Vec<u8> {
        let mut header = vec![0, 60, 0, 0];
        header.extend((self.body.len() as u64).to_be_bytes());
        // Flags: headers, correlation_id, reply_to.
        header.extend([0b0010_0110, 0]);
        header.extend(long(&self.headers));
        header.extend(short(&self.correlation_id));
        header.extend(short(&self.reply_to));
        header
    }
}

/// A short string, for names and for properties that are text.
pub fn short(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

/// Bytes after their length: the value of a long string (`S`), an array (`A`), a table (`F`), or bytes (`x`).
pub fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

/// A header `a`: arrays inside each other.
pub fn arrays(levels: usize) -> Vec<u8> {
    [short("a"), nested(levels, b"A")].concat()
}

/// A header `a`: tables inside each other, each under an empty name.
pub fn tables(levels: usize) -> Vec<u8> {
    // The innermost table is empty. The outermost is the value of the header itself.
    [short("a"), nested(levels, b"\0F")[1..].to_vec()].concat()
}

/// `levels` times the mark, each followed by the length of the rest.
fn nested(levels: usize, mark: &[u8]) -> Vec<u8> {
    let step = mark.len() + 4;
    (0..levels).rev().flat_map(|inside| [mark, &((inside * step) as u32).to_be_bytes()].concat()).collect()
}

struct Broker(TcpStream);

impl Broker {
    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) -> Result<()> {
        let frame = [&[kind], &channel.to_be_bytes()[..], &long(payload), &[END]].concat();
        Ok(self.0.write_all(&frame).await?)
    }

    async fn call(&mut self, channel: u16, class: u16, method: u16, arguments: Vec<u8>) -> Result<()> {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), &arguments].concat();
        self.frame(METHOD, channel, &payload).await
    }

    /// The arguments of the next method, which must be this one.
    async fn expect(&mut self, class: u16, method: u16) -> Result<Vec<u8>> {
        loop {
            let mut start = [0; 7];
            self.0.read_exact(&mut start).await?;
            let size = u32::from_be_bytes([start[3], start[4], start[5], start[6]]);
            let mut payload = vec![0; size as usize + 1];
            self.0.read_exact(&mut payload).await?;
            ensure!(payload.pop() == Some(END), "not a frame");
            if start[0] != METHOD {
                continue;
            }
            let arguments = payload.split_off(4);
            if payload != [class.to_be_bytes(), method.to_be_bytes()].concat() {
                bail!("method {payload:?} instead of {class}.{method}: {}", String::from_utf8_lossy(&arguments));
            }
            return Ok(arguments);
        }
    }
}
