//! What the server sends to the broker, and in which order: a proxy between the two records it.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use testbed::{Broker, Program};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{AWAITING, RPC_SERVER, json::example, plain_client::PlainClient};

/// The methods that passed, in order.
type Log = Arc<Mutex<Vec<&'static str>>>;

/// The methods of the class `basic` that matter here (AMQP 0-9-1, section 1.8): class, method.
const PUBLISH: [u8; 4] = [0, 60, 0, 40];
const DELIVER: [u8; 4] = [0, 60, 0, 60];
const ACK: [u8; 4] = [0, 60, 0, 80];

#[tokio::test]
async fn a_request_is_acknowledged_after_its_reply_is_confirmed() -> Result<()> {
    replies_first(Program::new(RPC_SERVER), Some("result")).await?;
    replies_first(example("plain_rpc_server").await?, None).await
}

async fn replies_first(server: Program, kind: Option<&str>) -> Result<()> {
    let host = Broker::shared().await?.virtual_host().await?;
    let (log, port) = proxy(host.broker().port()).await?;
    let url = host.url().replace(&format!("localhost:{}/", host.broker().port()), &format!("127.0.0.1:{port}/"));
    let mut server = server.url(&url).spawn()?;
    server.expect(AWAITING).await?;
    let mut client = PlainClient::new(&host).await?;
    // The second request is delivered after the first is acknowledged. So the first four events are complete.
    client.expect("10", kind, "55").await?;
    client.expect("11", kind, "89").await?;
    let seen = log.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let first: Vec<_> = seen.iter().take(4).copied().collect();
    assert_eq!(first, ["request delivered", "reply published", "reply confirmed", "request acknowledged"], "{seen:?}");
    Ok(())
}

/// Listens on a port and passes everything on to the broker's port.
async fn proxy(broker: u16) -> Result<(Log, u16)> {
    let log = Log::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let shared = log.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(("localhost", broker)).await else { return };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let names = |publish, ack| [(PUBLISH, publish), (DELIVER, "request delivered"), (ACK, ack)];
            let said = names("reply published", "request acknowledged");
            let heard = names("", "reply confirmed");
            // "AMQP0091" comes before the client's first frame.
            tokio::spawn(pass(8, from_client, to_server, said, shared.clone()));
            tokio::spawn(pass(0, from_server, to_client, heard, shared.clone()));
        }
    });
    Ok((log, port))
}

/// Passes on frame by frame, and records the frames that have a name.
async fn pass(
    mut before: u64,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    names: [([u8; 4], &'static str); 3],
    log: Log,
) -> Result<()> {
    while before > 0 {
        before -= 1;
        to.write_u8(from.read_u8().await?).await?;
    }
    loop {
        // Type, channel and length; the payload; an end mark.
        let mut frame = vec![0; 7];
        from.read_exact(&mut frame).await?;
        let length = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]);
        ensure!(length < 1 << 20, "this is no frame");
        frame.resize(7 + usize::try_from(length)? + 1, 0);
        from.read_exact(&mut frame[7..]).await?;
        let is_method = frame[0] == 1;
        if let Some((_, name)) = names.iter().find(|(method, _)| is_method && frame[7..].starts_with(method)) {
            log.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        }
        to.write_all(&frame).await?;
    }
}
