//! The first words of AMQP: is a broker there, and which?

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// What a client says first: the protocol's name and its version 0-9-1.
const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

/// How long a broker may take to answer. A busy machine is slow; a listening port without a broker is silent for good.
const PATIENCE: Duration = Duration::from_secs(5);

/// No broker introduces itself at greater length.
const LONGEST: u32 = 64 * 1024;

/// Says hello to the broker and gives back its version, from the method `connection.start`
/// with which it answers. That alone needs no user, and a listening port (as Docker's, before
/// there is a broker behind it) is no broker yet.
pub(crate) async fn version(host: &str, port: u16) -> Result<String> {
    timeout(PATIENCE, greet(host, port))
        .await
        .with_context(|| format!("{host}:{port} accepts connections but does not speak AMQP"))?
}

/// Who listens at a port of this machine.
#[derive(Debug, PartialEq)]
pub enum Listener {
    /// A RabbitMQ of this version, as `4.3.6`.
    RabbitMq(String),
    /// A program that does not speak AMQP 0-9-1.
    Other,
    /// Nobody.
    None,
}

/// Looks who listens at a port of this machine. Takes up to five seconds where somebody does and says nothing.
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
    // A frame: its type, its channel, the length of what follows.
    let kind = stream.read_u8().await?;
    let channel = stream.read_u16().await?;
    let length = stream.read_u32().await?;
    if kind != 1 || channel != 0 || length > LONGEST {
        bail!("{host}:{port} does not speak AMQP 0-9-1");
    }
    let mut method = vec![0; usize::try_from(length)?];
    stream.read_exact(&mut method).await?;
    server_version(&method).with_context(|| format!("the broker at {host}:{port} does not tell its version"))
}

/// Finds the entry `version` in the server's properties: the length and the name of the key, `S`
/// for a string, its length in four bytes, the string.
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
    fn a_cut_answer_is_no_version() {
        assert_eq!(server_version(b"\x07versionS\x00\x00\x00\x054.3"), None);
        assert_eq!(server_version(b"\x07versionS\x00"), None);
        assert_eq!(server_version(b""), None);
    }
}
