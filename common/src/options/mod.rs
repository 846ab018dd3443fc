//! How to connect: from a URL, or built step by step.

#[cfg(test)]
mod tests;
pub(crate) mod tls;
mod url;

use std::{fmt, ops::RangeInclusive, time::Duration};

use crate::{Error, Result, Tls, escape::shortened, escaped};

/// The longest short string of AMQP: a virtual host, a user.
const LONGEST_NAME: usize = 255;

/// The limits of a deadline or pause. A larger number was probably meant in milliseconds.
const TIMES: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60 * 60);

/// The limits of the connection deadline. RabbitMQ's own documentation gives it in milliseconds.
const CONNECTING: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(2 * 60);

/// The limits that RFC 8305, section 8, allows between two attempts.
const DELAYS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(2);

/// How to connect to a broker, and how long to wait for it.
///
/// The usual way is a URL ([RabbitMQ URI specification](https://www.rabbitmq.com/docs/uri-spec)):
/// `amqp://user:password@host:port/virtual-host?parameter=value`, or `amqps://` for TLS. Everything may be left out but
/// the scheme; user, password and virtual host are percent-decoded. The port is 5672, or 5671 with TLS. Several hosts,
/// `amqp://one:5672,other:5673/`, are tried in that order. A user without a password gets it by
/// [`password`](Self::password), or connecting fails. Parameters:
///
/// | parameter | meaning | default |
/// |---|---|---|
/// | `name` | shown in the management pages and in the broker's log, at most 255 bytes | the program's name |
/// | `heartbeat` | seconds, 2 to 65535; a silent peer is noticed after two intervals | 60 |
/// | `connection_timeout` | seconds (not milliseconds) for name look-up, TCP, TLS and AMQP handshake together, for each host | 10 |
/// | `operation_timeout` | seconds for everything else that waits for the broker | 30 |
/// | `reconnect_interval` | seconds, such as `0.5`: the longest pause between two attempts | 0.5 |
/// | `fail_fast` | `1`: the first connection fails at once; `0`: keeps trying | 1 |
/// | `happy_eyeballs_delay` | seconds, 0.01 to 2, until a host's next address is tried beside the last | 0.25 |
/// | `interleave` | how many addresses of the first family come before families alternate; 0: as they are | 1 |
/// | `auth_mechanism` | `plain`: by user and password; `external`: by the client certificate | `plain` |
///
/// Only with `amqps`, see [`Tls`]:
///
/// | parameter | meaning | default |
/// |---|---|---|
/// | `cafile` | a PEM file with the certificates of the authorities to trust | the system's |
/// | `capath` | a directory of such files | |
/// | `cadata` | such certificates themselves, percent-encoded | |
/// | `certfile` | a PEM file with the client's certificate, followed by those that lead to its authority | none |
/// | `keyfile` | a PEM file with its private key, not encrypted | `certfile` |
/// | `no_verify_ssl` | `1`: any server is accepted as the broker; each connection logs a warning | 0 |
///
/// A time may be 0.01 seconds to an hour, and `connection_timeout` at most two minutes. An unknown parameter, a
/// parameter given twice, a value out of range, and a file that cannot be used are errors.
///
/// ```
/// use common::ConnectOptions;
///
/// let options: ConnectOptions = "amqp://ana:s3cret@rabbit.example:5673/orders?heartbeat=10".parse()?;
/// assert_eq!(options.address(), "rabbit.example:5673");
/// assert_eq!(options.to_string(), "amqp://ana:***@rabbit.example:5673/orders"); // never the password
///
/// let same = ConnectOptions::default()
///     .hosts([("rabbit.example", 5673)])?
///     .credentials("ana", "s3cret")?
///     .virtual_host("orders")?
///     .heartbeat(10)?;
/// assert_eq!(options, same);
/// # Ok::<(), common::Error>(())
/// ```
///
/// How long to wait for what:
///
/// ```
/// use std::time::Duration;
///
/// let options = common::ConnectOptions::default()
///     .connection_timeout(Duration::from_secs(5)) // for each host
///     .happy_eyeballs_delay(Duration::from_millis(250)) // before its next address is tried, too
///     .interleave(1)
///     .operation_timeout(Duration::from_secs(30)) // for each call
///     .reconnect_interval(Duration::from_secs(10)) // at most, between two attempts
///     .fail_fast(false); // also keep trying to connect for the first time
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectOptions {
    /// At least one; tried in this order.
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) mechanism: Mechanism,
    pub(crate) virtual_host: String,
    pub(crate) name: Option<String>,
    pub(crate) heartbeat: u16,
    pub(crate) connection_timeout: Duration,
    pub(crate) operation_timeout: Duration,
    pub(crate) reconnect_interval: Duration,
    pub(crate) fail_fast: bool,
    pub(crate) happy_eyeballs_delay: Duration,
    pub(crate) interleave: u16,
    pub(crate) tls: Option<Tls>,
}

/// One address of the broker, or of one node of its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// A name or an address; an IPv6 address in brackets.
    pub name: String,
    pub port: u16,
}

/// How the client logs in ([access control](https://www.rabbitmq.com/docs/access-control#mechanisms)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mechanism {
    Plain,
    External,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

impl Host {
    fn new(name: &str, port: u16) -> Result<Self> {
        let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        // Other characters would change the meaning of a URL, or of a line of the log.
        let fits = match inner.contains(':') {
            true => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            false => inner.chars().all(|one| one.is_alphanumeric() || "-._".contains(one)),
        };
        if !inner.is_ascii() {
            return Err(Error::Invalid(format!(
                "the host `{}` has characters outside ASCII: write it in its ASCII form, which begins with `xn--`",
                shortened(name)
            )));
        }
        if inner.is_empty() || inner.len() > LONGEST_NAME || !fits || (name != inner && !inner.contains(':')) {
            let name = shortened(name);
            return Err(Error::Invalid(format!("the host `{name}` is neither a name nor an address")));
        }
        if port == 0 {
            return Err(Error::Invalid(format!("the port of host `{name}` cannot be 0: allowed is 1 to 65535")));
        }
        let name = if inner.contains(':') { format!("[{inner}]") } else { inner.to_owned() };
        Ok(Self { name, port })
    }

    /// The host without the brackets that only a URL needs.
    pub fn bare_name(&self) -> &str {
        self.name.trim_start_matches('[').trim_end_matches(']')
    }
}

impl Default for ConnectOptions {
    /// `amqp://guest:guest@localhost:5672`
    fn default() -> Self {
        Self {
            hosts: vec![Host { name: "localhost".into(), port: 5672 }],
            user: "guest".into(),
            password: "guest".into(),
            mechanism: Mechanism::Plain,
            virtual_host: "/".into(),
            name: None,
            heartbeat: 60,
            connection_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(30),
            reconnect_interval: Duration::from_millis(500),
            fail_fast: true,
            happy_eyeballs_delay: Duration::from_millis(250),
            interleave: 1,
            tls: None,
        }
    }
}

impl ConnectOptions {
    /// `host:port`, or several of them with commas between them, as messages show them.
    pub fn address(&self) -> String {
        self.hosts.iter().map(Host::to_string).collect::<Vec<_>>().join(",")
    }

    /// The broker's hosts and ports, tried in this order. Default: `localhost`, 5672.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is none, or when one is neither a name nor an address.
    pub fn hosts<'a>(mut self, hosts: impl IntoIterator<Item = (&'a str, u16)>) -> Result<Self> {
        self.hosts = hosts.into_iter().map(|(name, port)| Host::new(name, port)).collect::<Result<_>>()?;
        if self.hosts.is_empty() {
            return Err(Error::Invalid("there is no host to connect to".into()));
        }
        self.check_server_names()?;
        Ok(self)
    }

    /// The user and its password. Default: `guest` and `guest`, which RabbitMQ accepts only from its own machine.
    ///
    /// # Errors
    /// [`Error::Invalid`] when one is empty or has a NUL character, or the user more than 255 bytes.
    pub fn credentials(mut self, user: &str, password: &str) -> Result<Self> {
        check_user(user)?;
        self.user = user.into();
        self.password(password)
    }

    /// Only the password, for instance if it comes from a file and the rest from a URL.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is empty or has a NUL character.
    pub fn password(mut self, password: &str) -> Result<Self> {
        check_password(password)?;
        self.password = password.into();
        Ok(self)
    }

    /// Logs in with the client certificate instead of a password. RabbitMQ takes the user from the certificate, which
    /// [`tls`](Self::tls) has to name. The broker needs its plugin `rabbitmq_auth_mechanism_ssl`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no client certificate.
    pub fn external(mut self) -> Result<Self> {
        self.mechanism = Mechanism::External;
        self.check_mechanism()?;
        Ok(self)
    }

    /// The virtual host. Default: `/`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is empty or has more than 255 bytes.
    pub fn virtual_host(mut self, virtual_host: &str) -> Result<Self> {
        if !(1..=LONGEST_NAME).contains(&virtual_host.len()) {
            return Err(Error::Invalid(format!("a virtual host has 1 to {LONGEST_NAME} bytes")));
        }
        self.virtual_host = virtual_host.into();
        Ok(self)
    }

    /// Connects with TLS. Default: without.
    ///
    /// # Errors
    /// [`Error::Invalid`] when one of its files cannot be used, or a host's name cannot be in a certificate.
    pub fn tls(mut self, tls: Tls) -> Result<Self> {
        tls.check()?;
        self.tls = Some(tls);
        self.check_server_names()?;
        self.check_mechanism()?;
        Ok(self)
    }

    /// The name under which the broker shows the connection, cut after 255 bytes. Default: the program's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        let mut name = name.into();
        while name.len() > LONGEST_NAME {
            name.pop();
        }
        self.name = Some(name);
        self
    }

    /// Seconds between two heartbeats. A silent peer is noticed after two intervals. Default: 60.
    ///
    /// # Errors
    /// [`Error::Invalid`] below 2: with 1 amqprs floods the broker, and with 0 it takes the server's value.
    pub fn heartbeat(mut self, seconds: u16) -> Result<Self> {
        if seconds < 2 {
            return Err(Error::Invalid(format!("the heartbeat cannot be {seconds} s: allowed is 2 to 65535")));
        }
        self.heartbeat = seconds;
        Ok(self)
    }

    /// The deadline of every operation that waits for the broker, such as a declaration or a confirm. Default: 30
    /// seconds. It can be 10 milliseconds to an hour; other values become the nearest of these.
    pub fn operation_timeout(mut self, timeout: Duration) -> Self {
        self.operation_timeout = timeout.clamp(*TIMES.start(), *TIMES.end());
        self
    }

    /// The deadline of one attempt to connect to one host: name look-up, TCP, TLS and AMQP handshake. Default: 10
    /// seconds. It can be 10 milliseconds to two minutes; other values become the nearest of these.
    pub fn connection_timeout(mut self, timeout: Duration) -> Self {
        self.connection_timeout = timeout.clamp(*CONNECTING.start(), *CONNECTING.end());
        self
    }

    /// The longest pause between two attempts to reconnect, or to set a channel up again. Pauses start at a tenth of a
    /// second and grow up to this. A part of each pause is random, so that clients do not all reconnect at the same
    /// moment. Default: half a second, so that a program is connected again within a second of its broker.
    pub fn reconnect_interval(mut self, interval: Duration) -> Self {
        self.reconnect_interval = interval.clamp(*TIMES.start(), *TIMES.end());
        self
    }

    /// Whether the first connection fails at once (`true`, the default) or is tried until it succeeds.
    pub fn fail_fast(mut self, fail_fast: bool) -> Self {
        self.fail_fast = fail_fast;
        self
    }

    /// For a host with several addresses: how long one may take until the next is tried as well. The first that answers
    /// is used ([RFC 8305](https://www.rfc-editor.org/rfc/rfc8305), "Happy Eyeballs"). Default: 250 milliseconds, as
    /// the RFC recommends. It can be 10 milliseconds to 2 seconds; other values become the nearest of these.
    pub fn happy_eyeballs_delay(mut self, delay: Duration) -> Self {
        self.happy_eyeballs_delay = delay.clamp(*DELAYS.start(), *DELAYS.end());
        self
    }

    /// For a host with IPv6 and IPv4 addresses: how many addresses of the first family are tried before the two
    /// families take turns (RFC 8305, section 4). Default: 1. With 0 the addresses stay in the system's order.
    pub fn interleave(mut self, first: u16) -> Self {
        self.interleave = first;
        self
    }

    /// The longest time that all hosts together may take.
    pub(crate) fn time_to_connect(&self) -> Duration {
        self.connection_timeout * u32::try_from(self.hosts.len()).unwrap_or(u32::MAX)
    }

    fn check_server_names(&self) -> Result<()> {
        if self.tls.is_some() {
            for host in &self.hosts {
                Tls::server_name(host.bare_name())?;
            }
        }
        Ok(())
    }

    /// Checks that there is a password, if one is needed.
    pub(crate) fn check_password(&self) -> Result<()> {
        if self.mechanism == Mechanism::Plain && self.password.is_empty() {
            return Err(Error::Invalid(format!(
                "there is no password for user `{}`: write it in the URL, as in amqp://user:password@host, or name a file \
                 with it (--password-file)",
                shortened(&self.user)
            )));
        }
        Ok(())
    }

    fn check_mechanism(&self) -> Result<()> {
        let certificate = self.tls.as_ref().is_some_and(Tls::has_client_certificate);
        if self.mechanism == Mechanism::External && !certificate {
            return Err(Error::Invalid(
                "auth_mechanism=external needs a client certificate: amqps:// and the parameter `certfile`".into(),
            ));
        }
        Ok(())
    }
}

fn check_user(user: &str) -> Result<()> {
    // SASL PLAIN separates its fields by NUL (RFC 4616).
    if user.is_empty() || user.len() > LONGEST_NAME || user.contains('\0') {
        return Err(Error::Invalid(format!("a user has 1 to {LONGEST_NAME} bytes, and none of them is NUL")));
    }
    Ok(())
}

fn check_password(password: &str) -> Result<()> {
    if password.is_empty() || password.contains('\0') {
        return Err(Error::Invalid("a password cannot be empty, and has no NUL character".into()));
    }
    Ok(())
}

/// The URL without parameters, and with `***` for the password.
impl fmt::Display for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "amqps" } else { "amqp" };
        let virtual_host = if self.virtual_host == "/" { "" } else { &self.virtual_host };
        let separator = if virtual_host.is_empty() { "" } else { "/" };
        let (user, virtual_host) = (escaped(&self.user), escaped(virtual_host));
        write!(f, "{scheme}://{user}:***@{}{separator}{virtual_host}", self.address())
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConnectOptions").field(&self.to_string()).finish()
    }
}
