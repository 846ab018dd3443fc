//! A TCP proxy between a program and its broker that does to connections what networks do.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// How long a side that was told of the end may take to hang up itself.
const FAREWELL: Duration = Duration::from_secs(2);

/// Passes bytes between its own port and a target, until told to misbehave. Ends, with all its connections, when
/// dropped.
///
/// ```no_run
/// # async fn example() -> anyhow::Result<()> {
/// use testbed::{Broker, Proxy};
///
/// let broker = Broker::start().await?;
/// let proxy = Proxy::start(broker.port()).await?;
/// let url = format!("amqp://guest:guest@127.0.0.1:{}", proxy.port());
/// // … connect a program to `url` …
/// proxy.reset();
/// # Ok(())
/// # }
/// ```
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    orders: watch::Sender<Orders>,
    /// Bytes that may still pass before the connections are cut; no limit when `i64::MAX`.
    budget: AtomicI64,
    accepted: AtomicUsize,
    open: AtomicUsize,
}

/// What holds for the connections at present.
#[derive(Clone, Copy, Default)]
struct Orders {
    /// Connections that began before these rounds end, in order or with a reset.
    cuts: u64,
    resets: u64,
    stalled: bool,
    delay: Duration,
}

impl Proxy {
    /// Listens on a free port of this machine, for a target port on this machine.
    pub async fn start(target: u16) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen on a free port")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            target: Mutex::new(local(target)),
            orders: watch::Sender::default(),
            budget: AtomicI64::new(i64::MAX),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(Proxy { port, shared, accepting })
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections have come so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// How many connections are open through it.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Ends all connections in order: both sides see the end of the stream (FIN).
    pub fn cut(&self) {
        self.shared.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// Ends all connections with a reset (RST), as a crashed machine does when it is back.
    pub fn reset(&self) {
        self.shared.orders.send_modify(|orders| orders.resets += 1);
    }

    /// Passes nothing any more, not even the end of a stream, and keeps the connections open: only a heartbeat can
    /// tell. New ones are accepted, and stay as silent.
    pub fn stall(&self) {
        self.shared.orders.send_modify(|orders| orders.stalled = true);
    }

    /// Undoes [`stall`](Proxy::stall), and [`cut_after`](Proxy::cut_after) if that many bytes have not come.
    pub fn resume(&self) {
        self.shared.budget.store(i64::MAX, Ordering::Relaxed);
        self.shared.orders.send_modify(|orders| orders.stalled = false);
    }

    /// Lets so many bytes pass, counted over both directions, and then cuts: very likely in the middle of a frame.
    pub fn cut_after(&self, bytes: u32) {
        self.shared.budget.store(i64::from(bytes), Ordering::Relaxed);
    }

    /// Holds back whatever passes by so much, in each direction, as a distant network does.
    pub fn delay(&self, latency: Duration) {
        self.shared.orders.send_modify(|orders| orders.delay = latency);
    }

    /// Connects those who come from now on to another port.
    pub fn retarget(&self, port: u16) {
        *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = local(port);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // This one hung up already, or there are too many open files: others may do better.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let shared = shared.clone();
        // From here on: an order given now is meant for this connection, too.
        let orders = shared.orders.subscribe();
        let began = *orders.borrow();
        tokio::spawn(async move {
            let target = *shared.target.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody there: the client is disconnected, as it would be by the broker's machine.
            let Ok(server) = TcpStream::connect(target).await else { return };
            shared.open.fetch_add(1, Ordering::Relaxed);
            relay(client, server, began, orders, &shared).await;
            shared.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn relay(
    mut client: TcpStream,
    mut server: TcpStream,
    began: Orders,
    mut orders: watch::Receiver<Orders>,
    shared: &Shared,
) {
    // Small frames must not wait for each other.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let ended = orders.clone();
        tokio::select! {
            () = forward(from_client, to_server, ended.clone(), shared) => {}
            () = forward(from_server, to_client, ended, shared) => {}
            _ = orders.wait_for(|now| now.cuts > began.cuts || now.resets > began.resets) => {}
        }
    }
    if orders.borrow().resets > began.resets {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    } else {
        let _ = (client.shutdown().await, server.shutdown().await);
        // Closing a socket with unread bytes would be a reset.
        let _ = tokio::join!(timeout(FAREWELL, drain(&mut client)), timeout(FAREWELL, drain(&mut server)));
    }
}

/// Passes bytes on until either side ends or the budget is used up.
async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut orders: watch::Receiver<Orders>,
    shared: &Shared,
) {
    let mut stalls = orders.clone();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if orders.wait_for(|now| !now.stalled).await.is_err() {
            return;
        }
        // While stalled nothing is read either, so that the sender's buffers fill as they would.
        let length = tokio::select! {
            biased;
            _ = stalls.wait_for(|now| now.stalled) => continue,
            length = from.read(&mut buffer) => length.unwrap_or(0),
        };
        if length == 0 {
            return;
        }
        let delay = orders.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let wanted = i64::try_from(length).unwrap_or(i64::MAX);
        let before = match shared.budget.load(Ordering::Relaxed) {
            i64::MAX => i64::MAX,
            _ => shared.budget.fetch_sub(wanted, Ordering::Relaxed),
        };
        let passing = usize::try_from(before.clamp(0, wanted)).unwrap_or(0);
        if to.write_all(&buffer[..passing]).await.is_err() {
            return;
        }
        if passing < length {
            // The budget was for this once.
            shared.budget.store(i64::MAX, Ordering::Relaxed);
            shared.orders.send_modify(|orders| orders.cuts += 1);
            return;
        }
    }
}

/// Reads what still comes, for nobody.
async fn drain(stream: &mut TcpStream) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
}
