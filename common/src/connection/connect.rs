//! From a host's name to an open connection: addresses, TCP, TLS, login.

use std::{io, net::SocketAddr, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use amqprs::{
    connection::{Connection, OpenConnectionArguments},
    security::SecurityCredentials,
    tls::TlsAdaptor,
};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{
    net::{TcpStream, lookup_host},
    task::spawn_blocking,
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::{TlsConnector, rustls::ClientConfig};

use crate::{
    Cause, ConnectOptions, Error, Result,
    connection::{
        login_failure::{diagnose, usual_port},
        peer::Peer,
    },
    encoding::nesting::check_frame_max,
    options::{Host, Mechanism},
};

/// Tries each host in turn until one answers, each within the deadline of the options.
pub(crate) async fn connect(options: &ConnectOptions) -> Result<Connection> {
    options.check_password()?;
    let tls = client_config(options).await?;
    let mut failure = Error::Invalid("there is no host to connect to".into());
    for host in &options.hosts {
        match open(options, host, tls.clone()).await.and_then(|connection| usable(connection, host)) {
            Ok(connection) => return Ok(connection),
            Err(error) => {
                tracing::debug!("{error}");
                // If all hosts fail, report a host that refused the login rather than a host that is not there.
                if !matches!(failure, Error::LoginRefused { .. }) {
                    failure = error;
                }
            }
        }
    }
    Err(failure)
}

async fn client_config(options: &ConnectOptions) -> Result<Option<Arc<ClientConfig>>> {
    let Some(tls) = options.tls.clone() else { return Ok(None) };
    if !tls.verifies() {
        let address = options.address();
        tracing::warn!(
            "no_verify_ssl: any server at {address} is accepted as RabbitMQ, and gets the password; use it \
             for tests only"
        );
    }
    let config = spawn_blocking(move || tls.config()).await;
    let config = config.unwrap_or_else(|_| Err(Error::text("the TLS configuration cannot be made")))?;
    Ok(Some(Arc::new(config)))
}

async fn open(options: &ConnectOptions, host: &Host, tls: Option<Arc<ClientConfig>>) -> Result<Connection> {
    let deadline = Instant::now() + options.connection_timeout;
    let within = format!("within {} s", options.connection_timeout.as_secs_f32());
    let failed = |reason: String| Error::connect(host.to_string(), reason);
    let not_reached = |error: io::Error| Error::Connect {
        address: host.to_string(),
        reason: format!("{error}; is RabbitMQ running there? `cargo broker` starts one, --url names another"),
        source: Some(Cause::new(error)),
    };

    let addresses = match timeout_at(deadline, lookup_host((host.bare_name(), host.port))).await {
        Ok(addresses) => interleaved(addresses.map_err(not_reached)?.collect(), options.interleave.into()),
        Err(_) => return Err(failed(format!("its name was not resolved {within}; is this machine on the network?"))),
    };
    let silence = || failed(format!("no answer {within}; {}, and no firewall in between?", usual_port(options)));
    // The probe finds out whether nothing listens at the port or a broker refused the login. amqprs's errors do not say
    // it.
    let address = match timeout_at(deadline, race(addresses, options.happy_eyeballs_delay)).await {
        Ok(address) => address.map_err(not_reached)?,
        Err(_) => return Err(silence()),
    };
    let peer = Peer { options, host, address, tls };
    match timeout_at(deadline, peer.login()).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(timeout_at(deadline, diagnose(&peer, &error)).await.unwrap_or_else(|_| silence())),
        Err(_) => Err(silence()),
    }
}

impl Peer<'_> {
    async fn login(&self) -> Result<Connection, String> {
        let ConnectOptions { user, password, virtual_host, heartbeat, name, mechanism, .. } = self.options;
        let host = match self.address {
            SocketAddr::V4(address) => address.ip().to_string(),
            SocketAddr::V6(address) if address.scope_id() == 0 => format!("[{}]", address.ip()),
            SocketAddr::V6(address) => format!("[{}%{}]", address.ip(), address.scope_id()),
        };
        let mut arguments = OpenConnectionArguments::new(&host, self.address.port(), user, password);
        arguments.virtual_host(virtual_host).heartbeat(*heartbeat);
        arguments.connection_name(&name.clone().unwrap_or_else(program_name));
        if *mechanism == Mechanism::External {
            arguments.credentials(SecurityCredentials::new_external());
        }
        if let Some(tls) = &self.tls {
            // The certificate must be for the name that was asked for, not for the address.
            let name = self.host.bare_name().to_owned();
            arguments.tls_adaptor(TlsAdaptor::new(TlsConnector::from(tls.clone()), name));
        }
        // amqprs panics when a broker says something unexpected about itself.
        match AssertUnwindSafe(Connection::open(&arguments)).catch_unwind().await {
            Ok(opened) => opened.map_err(|error| error.to_string()),
            Err(_) => Err("it does not answer as a broker does".into()),
        }
    }
}

/// Refuses negotiated values that amqprs cannot work with.
fn usable(connection: Connection, host: &Host) -> Result<Connection> {
    check_frame_max(connection.frame_max(), host)?;
    check_heartbeat(connection.heartbeat(), host)?;
    Ok(connection)
}

/// The negotiated interval is the smaller one of both sides, or the broker's if ours is 0. With 1 second, amqprs sends
/// heartbeats without a pause.
fn check_heartbeat(seconds: u16, host: &Host) -> Result<()> {
    if seconds >= 2 {
        return Ok(());
    }
    let reason = format!(
        "it asks for a heartbeat every {seconds} s, and the least is 2: set `heartbeat` in rabbitmq.conf to 2 or more (its \
         default is 60)"
    );
    Err(Error::connect(host.to_string(), reason))
}

/// The addresses in the order in which they are tried: first `first` addresses of the first family, then the two
/// families in turn (RFC 8305, section 4). With 0 the order does not change.
fn interleaved(addresses: Vec<SocketAddr>, first: usize) -> Vec<SocketAddr> {
    let Some(family) = addresses.first().map(SocketAddr::is_ipv6).filter(|_| first > 0) else { return addresses };
    let (preferred, others): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|one| one.is_ipv6() == family);
    let (mut preferred, mut others) = (preferred.into_iter(), others.into_iter());
    let mut order: Vec<_> = preferred.by_ref().take(first).collect();
    loop {
        let next = [others.next(), preferred.next()];
        if next == [None, None] {
            return order;
        }
        order.extend(next.into_iter().flatten());
    }
}

/// The first address that accepts a TCP connection. The next one is tried when the last one has failed, or has not
/// answered within `delay`. The earlier attempts continue (RFC 8305, section 5).
async fn race(addresses: Vec<SocketAddr>, delay: Duration) -> io::Result<SocketAddr> {
    let mut waiting = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if let Some(address) = waiting.next() {
            attempts.push(async move { TcpStream::connect(address).await.map(|_| address) });
        }
        tokio::select! {
            attempt = attempts.next() => match attempt {
                Some(Ok(address)) => return Ok(address),
                Some(Err(error)) => failure = error,
                None => return Err(failure),
            },
            () = sleep(delay), if waiting.len() > 0 => {}
        }
    }
}

/// The file name of the running program, by which people recognise it in `rabbitmqctl list_connections`.
fn program_name() -> String {
    let path = std::env::current_exe().ok();
    let name = path.as_deref().and_then(|path| path.file_stem()).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "rust".into())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|one| one.parse().expect("an address")).collect()
    }

    #[test]
    fn families_take_turns_after_the_first_few() {
        let (a, b, c) = ("[::a]:1", "[::b]:1", "[::c]:1");
        let (x, y) = ("0.0.0.1:1", "0.0.0.2:1");
        for (first, order) in [(0, [a, b, c, x, y]), (1, [a, x, b, y, c]), (2, [a, b, x, c, y]), (9, [a, b, c, x, y])] {
            assert_eq!(interleaved(addresses(&[a, b, c, x, y]), first), addresses(&order), "{first}");
        }
        assert_eq!(interleaved(addresses(&[x, a]), 1), addresses(&[x, a]));
        assert_eq!(interleaved(vec![], 1), vec![]);
    }

    // Elsewhere a full queue refuses.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn an_address_that_swallows_everything_delays_only_by_the_delay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let good = listener.local_addr().expect("its address");
        // Its queue is full, so the system answers no one. This simulates a broken network on this machine.
        let full = tokio::net::TcpSocket::new_v4().expect("a socket");
        full.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let full = full.listen(1).expect("a queue of one");
        let hole = full.local_addr().expect("its address");
        let mut guests = Vec::new();
        let filled = loop {
            let guest = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(hole)).await;
            match guest {
                Ok(guest) => guests.push(guest.expect("a place in the queue")),
                Err(_) => break true,
            }
            if guests.len() > 2000 {
                break false;
            }
        };
        assert!(filled, "the queue does not fill");

        let delay = Duration::from_millis(50);
        let began = Instant::now();
        assert_eq!(race(vec![hole, good], delay).await.expect("the good one"), good);
        assert!(began.elapsed() >= delay, "it did not wait for the first");
        assert!(began.elapsed() < Duration::from_secs(1), "it waited for the first for {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn after_a_refusal_the_next_address_is_tried_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let good = listener.local_addr().expect("its address");
        let closed = tokio::net::TcpSocket::new_v4().expect("a socket");
        closed.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let bad = closed.local_addr().expect("its address");
        let began = Instant::now();
        assert_eq!(race(vec![bad, bad, good], Duration::from_secs(60)).await.expect("the good one"), good);
        assert!(began.elapsed() < Duration::from_secs(10), "it waited {:?}", began.elapsed());
        assert_eq!(
            race(vec![bad], Duration::ZERO).await.map_err(|error| error.kind()),
            Err(io::ErrorKind::ConnectionRefused)
        );
        assert_eq!(race(vec![], Duration::ZERO).await.map_err(|error| error.kind()), Err(io::ErrorKind::NotFound));
    }
}
