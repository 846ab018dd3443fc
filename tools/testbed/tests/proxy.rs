//! What the proxy does with its connections, seen from both ends. These tests need no broker.

#![allow(clippy::unwrap_used)] // Clippy knows tests by `#[test]`, not their helpers.

use std::{io::ErrorKind, time::Duration};

use testbed::Proxy;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Long enough for anything that happens on one machine.
const SOON: Duration = Duration::from_secs(10);

/// Long enough to see that nothing happens.
const NEVER: Duration = Duration::from_millis(100);

/// A target behind the proxy.
struct Fixture {
    target: TcpListener,
    proxy: Proxy,
}

impl Fixture {
    async fn new() -> Self {
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(target.local_addr().unwrap().port()).await.unwrap();
        Self { target, proxy }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.proxy.port())).await.unwrap()
    }

    /// Both ends of a connection through the proxy, after it has forwarded something.
    async fn pair(&self) -> (TcpStream, TcpStream) {
        let mut client = self.connect().await;
        let mut server = self.accept().await;
        passes(&mut client, &mut server).await;
        passes(&mut server, &mut client).await;
        (client, server)
    }

    async fn accept(&self) -> TcpStream {
        timeout(SOON, self.target.accept()).await.unwrap().unwrap().0
    }
}

async fn passes(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"hello").await.unwrap();
    let mut read = [0; 5];
    timeout(SOON, to.read_exact(&mut read)).await.unwrap().unwrap();
    assert_eq!(&read, b"hello");
}

/// What is received until the end, and how the connection ends.
async fn rest(stream: &mut TcpStream) -> (usize, Option<ErrorKind>) {
    let mut read = Vec::new();
    let end = timeout(SOON, stream.read_to_end(&mut read)).await.unwrap();
    (read.len(), end.err().map(|error| error.kind()))
}

async fn silent(stream: &mut TcpStream) {
    assert!(timeout(NEVER, stream.read_u8()).await.is_err(), "something came");
}

#[tokio::test]
async fn bytes_pass_both_ways_on_several_connections() {
    let fixture = Fixture::new().await;
    let (mut client, mut server) = fixture.pair().await;
    let (mut other_client, mut other_server) = fixture.pair().await;
    passes(&mut client, &mut server).await;
    passes(&mut other_server, &mut other_client).await;
    assert_eq!((fixture.proxy.accepted(), fixture.proxy.open()), (2, 2));
}

#[tokio::test]
async fn a_megabyte_arrives_as_it_was() {
    let fixture = Fixture::new().await;
    let (mut client, mut server) = fixture.pair().await;
    let sent: Vec<u8> = (0..1_u32 << 20).map(|number| number as u8).collect();
    let sending = tokio::spawn({
        let sent = sent.clone();
        async move { client.write_all(&sent).await }
    });
    let mut received = vec![0; sent.len()];
    timeout(SOON, server.read_exact(&mut received)).await.unwrap().unwrap();
    sending.await.unwrap().unwrap();
    assert!(sent == received);
}

#[tokio::test]
async fn the_end_of_one_side_is_the_end_of_the_other() {
    let fixture = Fixture::new().await;
    for client_ends in [true, false] {
        let (client, server) = fixture.pair().await;
        let (ending, mut other) = if client_ends { (client, server) } else { (server, client) };
        drop(ending);
        assert_eq!(rest(&mut other).await, (0, None));
    }
}

#[tokio::test]
async fn a_cut_is_the_end_of_the_stream_for_both_sides_each_time() {
    let fixture = Fixture::new().await;
    for _ in 0..3 {
        let (mut client, mut server) = fixture.pair().await;
        fixture.proxy.cut();
        assert_eq!(rest(&mut client).await, (0, None));
        assert_eq!(rest(&mut server).await, (0, None));
    }
}

#[tokio::test]
async fn a_cut_is_not_a_reset_even_if_a_client_is_still_sending() {
    let fixture = Fixture::new().await;
    let (mut client, mut server) = fixture.pair().await;
    // More than all buffers on the way can hold, so that bytes are unread when the cut comes.
    let (mut receiving, mut sending) = client.split();
    let flood = vec![0; 16 << 20];
    let both = async {
        tokio::join!(
            async {
                let _ = sending.write_all(&flood).await;
            },
            async {
                // The server has not read everything, so the end must come before all bytes have passed.
                timeout(SOON, server.read_exact(&mut vec![0; 1 << 20])).await.unwrap().unwrap();
                fixture.proxy.cut();
            }
        );
    };
    let end = async { receiving.read_u8().await.unwrap_err().kind() };
    let ((), end) = timeout(SOON, async { tokio::join!(both, end) }).await.unwrap();
    assert_eq!(end, ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_reset_is_a_reset_for_both_sides_each_time() {
    let fixture = Fixture::new().await;
    for _ in 0..3 {
        let (mut client, mut server) = fixture.pair().await;
        fixture.proxy.reset();
        assert_eq!(rest(&mut client).await, (0, Some(ErrorKind::ConnectionReset)));
        assert_eq!(rest(&mut server).await, (0, Some(ErrorKind::ConnectionReset)));
    }
}

#[tokio::test]
async fn clients_that_come_after_a_cut_or_a_reset_are_served() {
    let fixture = Fixture::new().await;
    fixture.proxy.cut();
    fixture.pair().await;
    fixture.proxy.reset();
    fixture.pair().await;
}

#[tokio::test]
async fn a_stalled_proxy_passes_nothing_and_loses_nothing() {
    let fixture = Fixture::new().await;
    let (mut client, mut server) = fixture.pair().await;
    for _ in 0..2 {
        fixture.proxy.stall();
        client.write_all(b"late").await.unwrap();
        server.write_all(b"late").await.unwrap();
        silent(&mut client).await;
        silent(&mut server).await;
        fixture.proxy.resume();
        for stream in [&mut client, &mut server] {
            let mut read = [0; 4];
            timeout(SOON, stream.read_exact(&mut read)).await.unwrap().unwrap();
            assert_eq!(&read, b"late");
        }
    }
}

#[tokio::test]
async fn not_even_the_end_of_a_stream_passes_a_stalled_proxy() {
    let fixture = Fixture::new().await;
    let (client, mut server) = fixture.pair().await;
    fixture.proxy.stall();
    drop(client);
    silent(&mut server).await;
    fixture.proxy.resume();
    assert_eq!(rest(&mut server).await, (0, None));
}

#[tokio::test]
async fn a_new_connection_through_a_stalled_proxy_is_as_silent() {
    let fixture = Fixture::new().await;
    fixture.proxy.stall();
    let mut client = fixture.connect().await;
    let mut server = fixture.accept().await;
    client.write_all(b"x").await.unwrap();
    silent(&mut server).await;
    fixture.proxy.resume();
    assert_eq!(timeout(SOON, server.read_u8()).await.unwrap().unwrap(), b'x');
}

#[tokio::test]
async fn a_stalled_connection_can_be_cut_and_reset() {
    let fixture = Fixture::new().await;
    for reset in [false, true] {
        let (mut client, _server) = fixture.pair().await;
        fixture.proxy.stall();
        if reset {
            fixture.proxy.reset()
        } else {
            fixture.proxy.cut()
        }
        assert_eq!(rest(&mut client).await, (0, reset.then_some(ErrorKind::ConnectionReset)));
        fixture.proxy.resume();
    }
}

#[tokio::test]
async fn after_so_many_bytes_comes_the_cut_once() {
    let fixture = Fixture::new().await;
    for _ in 0..2 {
        let (mut client, mut server) = fixture.pair().await;
        fixture.proxy.cut_after(7);
        // Both directions are counted together.
        passes(&mut client, &mut server).await;
        server.write_all(b"hello").await.unwrap();
        assert_eq!(rest(&mut client).await, (2, None));
        assert_eq!(rest(&mut server).await, (0, None));
        // It cuts only once.
        fixture.pair().await;
    }
}

#[tokio::test]
async fn a_cut_that_has_not_come_can_be_called_off() {
    let fixture = Fixture::new().await;
    let (mut client, mut server) = fixture.pair().await;
    fixture.proxy.cut_after(1);
    fixture.proxy.resume();
    passes(&mut client, &mut server).await;
    passes(&mut server, &mut client).await;
}

#[tokio::test]
async fn new_connections_go_to_the_new_target() {
    let (fixture, other) = (Fixture::new().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (mut client, mut server) = fixture.pair().await;
    fixture.proxy.retarget(other.local_addr().unwrap().port());
    passes(&mut client, &mut server).await;
    let mut client = fixture.connect().await;
    let (mut server, _) = timeout(SOON, other.accept()).await.unwrap().unwrap();
    passes(&mut client, &mut server).await;
}

#[tokio::test]
async fn a_connection_without_a_target_ends() {
    let Fixture { target, proxy } = Fixture::new().await;
    drop(target);
    let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
    assert_eq!(rest(&mut client).await, (0, None));
    assert_eq!((proxy.accepted(), proxy.open()), (1, 0));
}

#[tokio::test]
async fn everything_ends_with_the_proxy() {
    let fixture = Fixture::new().await;
    let (mut client, mut server) = fixture.pair().await;
    let port = fixture.proxy.port();
    drop(fixture);
    assert_eq!(rest(&mut client).await, (0, None));
    assert_eq!(rest(&mut server).await, (0, None));
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}
