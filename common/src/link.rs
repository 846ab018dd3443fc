//! One connection to the broker, from dialling to its loss.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use amqprs::{
    Close,
    callbacks::ConnectionCallback,
    connection::{Connection, OpenConnectionArguments},
};
use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{ConnectOptions, Error, Result, loss::Loss, options::Host};

/// amqprs loses a channel number each time the broker closes a channel, and panics when they run out, usually at 2,047:
/// start afresh well before.
const MOST_CLOSED_CHANNELS: u32 = 1_500;

const RESERVE: u32 = 32;

/// A connection that was up at least once.
pub(crate) struct Link {
    // An option only so that `drop` can take it.
    connection: Option<Connection>,
    pub health: Arc<Health>,
    pub runtime: Handle,
}

/// What a link shares with the channels opened on it; it does not keep the connection alive.
#[derive(Debug, Default)]
pub(crate) struct Health {
    pub loss: Loss,
    /// It is about to be closed by this program.
    pub closing: CancellationToken,
    /// Channels that the broker closed: amqprs never frees their numbers.
    closed_channels: AtomicU32,
    /// Channels that are open, or being opened.
    open_channels: AtomicU32,
    /// The consumer that subscribed last: when the connection then breaks, it is the one to suspect.
    pub last_consumer: AtomicU64,
}

/// One of the connection's channel numbers, given back when dropped.
pub(crate) struct Number(Arc<Health>);

impl Health {
    /// Counts one more channel. amqprs panics when there is no number left for it.
    pub fn take_number(self: &Arc<Self>, connection: &Connection) -> Result<Number> {
        // A number is free a moment after its channel is closed: some are kept in reserve.
        let most = match connection.channel_max() {
            0 => u32::from(u16::MAX),
            most => u32::from(most),
        }
        .saturating_sub(RESERVE)
        .max(1);
        let number = Number(self.clone());
        let open = self.open_channels.fetch_add(1, Ordering::Relaxed) + 1;
        if open > most {
            return Err(Error::Invalid(format!("RabbitMQ allows {most} channels on one connection")));
        }
        if open + self.closed_channels.load(Ordering::Relaxed) > most {
            self.worn_out();
            return Err(Error::Stale);
        }
        Ok(number)
    }

    /// Waits until the connection is lost, or about to be closed.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.closing.cancelled() => {}
            _ = self.loss.wait() => {}
        }
    }

    /// The broker closed a channel, and its number is gone.
    pub fn channel_closed(&self) {
        if self.closed_channels.fetch_add(1, Ordering::Relaxed) >= MOST_CLOSED_CHANNELS {
            self.worn_out();
        }
    }

    /// Ends the connection, so that its owner makes another one.
    fn worn_out(&self) {
        self.loss.signal(Error::lost("RabbitMQ has closed so many channels that their numbers run out"));
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        self.0.open_channels.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Link {
    /// Dials each host in turn until one answers, each within the deadline of the options.
    pub async fn dial(options: &ConnectOptions) -> Result<Self> {
        let mut failure = Error::Invalid("there is no host to connect to".into());
        for host in &options.hosts {
            match timeout(options.connection_timeout, open(options, host)).await {
                Ok(Ok(connection)) => return Self::new(connection).await,
                Ok(Err(error)) => failure = error,
                Err(_) => {
                    let seconds = options.connection_timeout.as_secs_f32();
                    let reason = format!("no answer within {seconds} s; {WRONG_PORT}, and no firewall in between?");
                    failure = Error::Connect { address: host.to_string(), reason };
                }
            }
            tracing::debug!("{failure}");
        }
        Err(failure)
    }

    async fn new(connection: Connection) -> Result<Self> {
        let health = Arc::new(Health::default());
        connection.register_callback(Callback(health.clone())).await?;
        Ok(Self { connection: Some(connection), health, runtime: Handle::current() })
    }

    /// The connection, for opening a channel on it. `None` only while it is being dropped.
    pub fn connection(&self) -> Option<Connection> {
        self.connection.clone()
    }
}

/// Dropping the last clone of an open amqprs connection spawns a task, so it must happen inside a runtime.
impl Drop for Link {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        self.connection.take();
    }
}

const WRONG_PORT: &str = "is that RabbitMQ's AMQP port (usually 5672)";

async fn open(options: &ConnectOptions, host: &Host) -> Result<Connection> {
    let reachable = reachable_address(host).await.map_err(|error| Error::Connect {
        address: host.to_string(),
        reason: format!("{error}; is RabbitMQ running there? `cargo broker` starts one, --url names another"),
    })?;
    let mut arguments = OpenConnectionArguments::new(&reachable.name, reachable.port, &options.user, &options.password);
    arguments.virtual_host(&options.virtual_host).heartbeat(options.heartbeat);
    arguments.connection_name(&options.name.clone().unwrap_or_else(program_name));
    match Connection::open(&arguments).await {
        Ok(connection) => Ok(connection),
        Err(error) => Err(handshake_error(options, host, &reachable, &error.to_string()).await),
    }
}

/// The first of the host's addresses that takes a TCP connection, in the form amqprs wants.
///
/// The probe tells a port nobody listens on from a broker that turns us away: amqprs's errors do not.
async fn reachable_address(host: &Host) -> io::Result<Host> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host(host.to_string()).await? {
        match TcpStream::connect(address).await {
            Ok(_) => {
                let ip = address.ip();
                let name = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
                return Ok(Host { name, port: address.port() });
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What the broker said, or what its silence means.
async fn handshake_error(options: &ConnectOptions, host: &Host, reachable: &Host, error: &str) -> Error {
    let address = host.to_string();
    let ConnectOptions { user, virtual_host, .. } = options;
    if let Some(words) = broker_words(error) {
        let check = if words.contains("vhost") {
            format!(
                "check the virtual host `{virtual_host}` (`rabbitmqctl list_vhosts`) and the rights of `{user}` in it"
            )
        } else {
            format!("check user `{user}` and its password")
        };
        return Error::Refused { address, reason: format!("{words}; {check}") };
    }
    let seen = match greeting(reachable).await.unwrap_or_default().as_slice() {
        // A method frame on channel 0: it speaks AMQP. To wrong credentials RabbitMQ says nothing, it closes the socket,
        // because amqprs does not announce the capability to be told.
        [1, 0, 0, ..] => {
            let reason = format!("it closed the connection during the login; check user `{user}` and its password");
            return Error::Refused { address, reason };
        }
        [b'H', b'T', b'T', b'P', ..] => "a web server answers there",
        // As Docker does for a container whose broker does not listen yet.
        [] => {
            "it accepts connections and closes them at once; if RabbitMQ is still starting there, try again in a moment"
        }
        // A TLS alert.
        [21, 3, ..] => "it expects TLS there",
        _ => &format!("what answers there does not speak AMQP 0-9-1 ({error})"),
    };
    Error::Connect { address, reason: format!("{seen}; {WRONG_PORT}?") }
}

/// The first bytes that a port answers to AMQP's protocol header (AMQP 0-9-1, section 4.2.2).
async fn greeting(host: &Host) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(host.to_string()).await?;
    stream.write_all(b"AMQP\0\0\x09\x01").await?;
    let mut first = vec![0; 8];
    let length = stream.read(&mut first).await?;
    first.truncate(length);
    Ok(first)
}

/// The code and text of a `connection.close` that amqprs shows as a debug print of the frame.
fn broker_words(error: &str) -> Option<String> {
    let after = |marker: &str| error.split_once(marker).map(|(_, rest)| rest);
    let code: String = after("reply_code: ")?.chars().take_while(char::is_ascii_digit).collect();
    let text = after("reply_text: ")?.split_once('"')?.1.split_once('"')?.0;
    Some(format!("{code} {text}"))
}

/// The file name of the running program: what a reader of `rabbitmqctl list_connections` recognises.
fn program_name() -> String {
    let path = std::env::current_exe().ok();
    let name = path.as_deref().and_then(|path| path.file_stem()).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "rust".into())
}

/// Hears of the connection's end. Its drop is the one signal that comes in every case (amqprs-notes.md, 3).
struct Callback(Arc<Health>);

impl Drop for Callback {
    fn drop(&mut self) {
        self.0.loss.signal(Error::lost("the network connection broke, or RabbitMQ stopped"));
    }
}

#[async_trait]
impl ConnectionCallback for Callback {
    async fn close(&mut self, _: &Connection, close: Close) -> Result<(), amqprs::error::Error> {
        let code = close.reply_code();
        let reason = format!("RabbitMQ closed it: {code} {}", close.reply_text());
        self.0.loss.signal(Error::Lost { code: Some(code), reason });
        Ok(())
    }

    // RabbitMQ sends these only to clients that announce the capability; amqprs does not.
    async fn blocked(&mut self, _: &Connection, _: String) {}
    async fn unblocked(&mut self, _: &Connection) {}
    async fn secret_updated(&mut self, _: &Connection) {}
}
