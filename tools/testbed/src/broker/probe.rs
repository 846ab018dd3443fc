//! Begins an AMQP connection to find out whether a broker is there, and which version it has.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// What a client sends first: the protocol's name and its version 0-9-1.
const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

/// How long a broker may take to answer. A busy machine is slow, and a listening port without a broker never answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// A broker's first answer is never longer.
const LONGEST: u32 = 64 * 1024;

/// Begins a connection and returns the broker's version, from its first answer, `connection.start`. This needs no user. Only
/// this answer shows that a broker is there: Docker, for instance, listens on the port before the broker does.
pub(crate) async fn version(host: &str, port: u16) -> Result<String> {
    timeout(PATIENCE, greet(host, port))
        .await
        .with_context(|| format!("{host}:{port} accepts connections but does not speak AMQP"))?
}

/// What listens at a port of this machine.
#[derive(Debug, PartialEq)]
pub enum Listener {
    /// A RabbitMQ of this version, such as `4.3.6`.
    RabbitMq(String),
    /// A program that does not speak AMQP 0-9-1.
    Other,
    /// Nothing.
    None,
}

/// Finds out what listens at a port of this machine. Takes up to five seconds if the program there sends nothing.
pub async fn listener(port: u16) -> Listener {
    match version("localhost", port).await {
        Ok(version) => Listener::RabbitMq(version),
        Err(_) if TcpStream::connect(("localhost", port)).await.is_ok() => Listener::Other,
        Err(_) => Listener::None,
    }
}

async fn greet(host: &str, port: u16) -> Result<String> {
    let mut stream =
        TcpStream::connect((host, port)).await.with_context(|| format!("no broker answers at {host}:{port}"))?;
    stream.write_all(PROTOCOL_HEADER).await?;
    // A frame begins with its type, its channel, and the length of its payload.
    let kind = stream.read_u8().await?;
    let channel = stream.read_u16().await?;
    let length = stream.read_u32().await?;
    if kind != 1 || channel != 0 || length > LONGEST {
        bail!("{host}:{port} does not speak AMQP 0-9-1");
    }
    let mut method = vec![0; usize::try_from(length)?];
    stream.read_exact(&mut method).await?;
    server_version(&method).with_context(|| format!("the broker at {host}:{port} does not say its version"))
}

/// Finds the entry `version` in the server's properties. It consists of the length and the name of the key, `S` for a string,
/// the string's length in four bytes, and the string.
fn server_version(method: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"\x07versionS";
    let at = method.windows(KEY.len()).position(|bytes| bytes == KEY)? + KEY.len();
    let length = method.get(at..at + 4)?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    let text = method.get(at + 4..)?.get(..usize::try_from(length).ok()?)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::server_version;

    #[test]
    fn a_broker_tells_its_version() {
        let method =
            b"\x00\x0a\x00\x0a\x00\x09\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x054.3.6\x00";
        assert_eq!(server_version(method).as_deref(), Some("4.3.6"));
    }

    #[test]
    fn a_cut_answer_is_not_a_version() {
        assert_eq!(server_version(b"\x07versionS\x00\x00\x00\x054.3"), None);
        assert_eq!(server_version(b"\x07versionS\x00"), None);
        assert_eq!(server_version(b""), None);
    }
}
