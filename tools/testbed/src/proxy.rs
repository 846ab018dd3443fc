//! A TCP proxy between a program and its broker. It makes the faults that networks make.

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

/// How long a side may take to close its connection after the proxy has ended it.
const FAREWELL: Duration = Duration::from_secs(2);

/// Forwards bytes between its own port and a target, until a method makes a fault. Ends, with all its connections, when
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
    /// How many bytes may still pass before the connections are cut. `i64::MAX` means no limit.
    budget: AtomicI64,
    accepted: AtomicUsize,
    open: AtomicUsize,
}

/// What the proxy does with its connections at present.
#[derive(Clone, Copy, Default)]
struct Orders {
    /// How many times all connections were cut or reset. A connection ends when a number grows after the connection began.
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

    /// How many connections it has accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// How many connections through it are open.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Closes all connections cleanly: both sides see the end of the stream (FIN).
    pub fn cut(&self) {
        self.shared.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// Ends all connections with a reset (RST), as a machine does that has crashed and started again.
    pub fn reset(&self) {
        self.shared.orders.send_modify(|orders| orders.resets += 1);
    }

    /// Forwards nothing any more, not even the end of a stream, but keeps the connections open. Only missing heartbeats show
    /// this fault. New connections are accepted, and stay silent, too.
    pub fn stall(&self) {
        self.shared.orders.send_modify(|orders| orders.stalled = true);
    }

    /// Ends [`stall`](Proxy::stall), and also [`cut_after`](Proxy::cut_after) if it has not yet cut.
    pub fn resume(&self) {
        self.shared.budget.store(i64::MAX, Ordering::Relaxed);
        self.shared.orders.send_modify(|orders| orders.stalled = false);
    }

    /// Forwards this number of bytes, both directions together, and then cuts: most likely in the middle of a frame.
    pub fn cut_after(&self, bytes: u32) {
        self.shared.budget.store(i64::from(bytes), Ordering::Relaxed);
    }

    /// Delays everything by this time, in each direction, as a network over a long distance does.
    pub fn delay(&self, latency: Duration) {
        self.shared.orders.send_modify(|orders| orders.delay = latency);
    }

    /// Connects clients that come from now on to another port.
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
            // The client has closed its connection already, or there are too many open files. The next one may succeed.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let shared = shared.clone();
        // Subscribe now: an order that is given from here on must reach this connection, too.
        let orders = shared.orders.subscribe();
        let began = *orders.borrow();
        tokio::spawn(async move {
            let target = *shared.target.lock().unwrap_or_else(PoisonError::into_inner);
            // Nothing listens at the target: the client is disconnected, as the broker's machine would do.
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

/// Forwards bytes until one side ends or the budget is used up.
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
        // While stalled, read nothing, so that the sender's buffers fill as on a real network.
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
            // The budget is used up. It is valid for one cut.
            shared.budget.store(i64::MAX, Ordering::Relaxed);
            shared.orders.send_modify(|orders| orders.cuts += 1);
            return;
        }
    }
}

/// Reads and discards what still comes.
async fn drain(stream: &mut TcpStream) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
}
