//! How to connect: from a URL, or built step by step.

use std::{fmt, str::FromStr, time::Duration};

use percent_encoding::percent_decode_str;
use url::Url;

use crate::{Error, Result};

const PARAMETERS: &str = "connection_timeout, fail_fast, heartbeat, name, reconnect_interval";

/// How to connect to a broker, and how long to wait for it.
///
/// The usual way is a URL ([RabbitMQ URI specification](https://www.rabbitmq.com/docs/uri-spec)):
/// `amqp://user:password@host:port/virtual-host?parameter=value`. Everything may be left out but the scheme; user,
/// password and virtual host are percent-decoded. Several hosts, `amqp://one:5672,other:5673/`, are tried in that
/// order. Parameters:
///
/// | parameter | meaning | default |
/// |---|---|---|
/// | `name` | shown in the management pages and in the broker's log | the program's name |
/// | `heartbeat` | seconds (at least 2); a silent peer is noticed after two intervals | 60 |
/// | `connection_timeout` | seconds for name look-up, TCP and AMQP handshake together, for each host | 10 |
/// | `reconnect_interval` | seconds, such as `0.5`: the longest pause between two attempts | 0.5 |
/// | `fail_fast` | `1`: the first connection fails at once; `0`: keeps trying | 1 |
///
/// ```
/// use common::ConnectOptions;
///
/// let options: ConnectOptions = "amqp://ana:s3cret@rabbit.example:5673/orders?heartbeat=10".parse()?;
/// assert_eq!(options.address(), "rabbit.example:5673");
/// assert_eq!(options.to_string(), "amqp://ana:***@rabbit.example:5673/orders"); // never the password
/// # Ok::<(), common::Error>(())
/// ```
#[derive(Clone)]
pub struct ConnectOptions {
    /// At least one; tried in this order.
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) virtual_host: String,
    pub(crate) name: Option<String>,
    pub(crate) heartbeat: u16,
    pub(crate) connection_timeout: Duration,
    pub(crate) operation_timeout: Duration,
    pub(crate) reconnect_interval: Duration,
    pub(crate) fail_fast: bool,
}

/// One address of the broker, or of one node of its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// A name or an address; an IPv6 address in brackets.
    pub name: String,
    pub port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

impl Default for ConnectOptions {
    /// `amqp://guest:guest@localhost:5672`
    fn default() -> Self {
        Self {
            hosts: vec![Host { name: "localhost".into(), port: 5672 }],
            user: "guest".into(),
            password: "guest".into(),
            virtual_host: "/".into(),
            name: None,
            heartbeat: 60,
            connection_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(30),
            reconnect_interval: Duration::from_millis(500),
            fail_fast: true,
        }
    }
}

impl ConnectOptions {
    /// `host:port`, or several of them with commas in between, as they appear in messages.
    pub fn address(&self) -> String {
        self.hosts.iter().map(Host::to_string).collect::<Vec<_>>().join(",")
    }

    /// The name under which the broker shows the connection. Default: the program's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The deadline of every operation that waits for the broker, such as a declaration or a confirm.
    /// Default: 30 seconds.
    pub fn operation_timeout(mut self, timeout: Duration) -> Self {
        self.operation_timeout = timeout;
        self
    }

    /// The deadline of one attempt to connect: name look-up, TCP and AMQP handshake. Default: 10 seconds.
    pub fn connection_timeout(mut self, timeout: Duration) -> Self {
        self.connection_timeout = timeout;
        self
    }

    /// The longest pause between two attempts to reconnect, or to set a channel up again. Pauses start at a tenth of a
    /// second and grow up to this, with a part left to chance, so that clients do not return as one. Default: half a
    /// second, so that a program is back within a second of its broker.
    pub fn reconnect_interval(mut self, interval: Duration) -> Self {
        self.reconnect_interval = interval;
        self
    }

    /// Whether the first connection fails at once (`true`, the default) or is tried until it succeeds.
    pub fn fail_fast(mut self, fail_fast: bool) -> Self {
        self.fail_fast = fail_fast;
        self
    }

    fn parameter(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "name" if value.len() <= 255 => self.name = Some(value.into()),
            "name" => return Err(invalid_parameter(key, value, "at most 255 bytes")),
            // amqprs floods the broker at 1 and takes 0 for "the server's value".
            "heartbeat" => self.heartbeat = number(key, value, 2..=u64::from(u16::MAX))? as u16,
            "connection_timeout" => self.connection_timeout = Duration::from_secs(number(key, value, 1..=3600)?),
            "reconnect_interval" => {
                let seconds = value.parse().ok().filter(|seconds| (0.01..=3600.0).contains(seconds));
                let allowed = || invalid_parameter(key, value, "seconds from 0.01 to 3600");
                self.reconnect_interval = Duration::from_secs_f64(seconds.ok_or_else(allowed)?);
            }
            "fail_fast" => self.fail_fast = number(key, value, 0..=1)? == 1,
            _ => {
                return Err(Error::Invalid(format!(
                    "the URL has an unknown parameter `{key}`; known are {PARAMETERS}"
                )));
            }
        }
        Ok(())
    }
}

fn number(key: &str, value: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64> {
    value.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        invalid_parameter(key, value, &format!("a whole number from {} to {}", range.start(), range.end()))
    })
}

fn invalid_parameter(key: &str, value: &str, allowed: &str) -> Error {
    Error::Invalid(format!("the URL's parameter `{key}` cannot be `{value}`: allowed is {allowed}"))
}

impl FromStr for ConnectOptions {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // The URL itself is in no message: it may hold a password.
        let malformed = |reason: &str| {
            Error::Invalid(format!(
                "the URL of RabbitMQ is malformed: {reason}; it looks like amqp://user:password@localhost:5672/virtual-host"
            ))
        };
        let (text, more_hosts) = split_hosts(text);
        let parse = |text: &str| {
            Url::parse(text).map_err(|error| match error {
                url::ParseError::RelativeUrlWithoutBase => malformed("it must begin with amqp://"),
                error => malformed(&error.to_string()),
            })
        };
        let url = parse(&text)?;
        match url.scheme() {
            "amqp" => {}
            "amqps" => return Err(malformed("TLS (amqps) is not supported yet")),
            _ => return Err(malformed("it must begin with amqp://")),
        }
        let decode = |text: &str, what: &str| {
            let text = percent_decode_str(text).decode_utf8();
            text.map(String::from).map_err(|_| malformed(&format!("the {what} is not UTF-8")))
        };

        let mut options = Self::default();
        options.hosts.clear();
        for url in
            std::iter::once(Ok(url.clone())).chain(more_hosts.iter().map(|host| parse(&format!("amqp://{host}"))))
        {
            let url = url?;
            let name = url.host_str().filter(|name| !name.is_empty()).unwrap_or("localhost");
            options.hosts.push(Host { name: decode(name, "host")?, port: url.port().unwrap_or(5672) });
        }
        if !url.username().is_empty() {
            options.user = decode(url.username(), "user")?;
        }
        if let Some(password) = url.password() {
            options.password = decode(password, "password")?;
        }
        // Both `amqp://host` and `amqp://host/` mean the default virtual host, as in pika and aio-pika.
        if let Some(path) = url.path().strip_prefix('/').filter(|path| !path.is_empty()) {
            options.virtual_host = decode(path, "virtual host")?;
        }
        if options.virtual_host.len() > 255 {
            return Err(malformed("the virtual host is longer than 255 bytes"));
        }
        let mut seen = Vec::new();
        for (key, value) in url.query_pairs() {
            if seen.contains(&key) {
                return Err(Error::Invalid(format!("the URL has the parameter `{key}` twice")));
            }
            options.parameter(&key, &value)?;
            seen.push(key);
        }
        Ok(options)
    }
}

/// A URL with its first host only, and the others: the URL standard knows just one.
fn split_hosts(text: &str) -> (String, Vec<&str>) {
    let start = text.find("://").map_or(0, |colon| colon + 3);
    let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |length| start + length);
    // The last @ ends the user information, where a comma is no separator.
    let start = text[start..end].rfind('@').map_or(start, |at| start + at + 1);
    let mut hosts = text[start..end].split(',');
    let first = hosts.next().unwrap_or_default();
    (format!("{}{first}{}", &text[..start], &text[end..]), hosts.collect())
}

/// The URL without parameters, and with `***` for the password.
impl fmt::Display for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let virtual_host = if self.virtual_host == "/" { "" } else { &self.virtual_host };
        let separator = if virtual_host.is_empty() { "" } else { "/" };
        write!(f, "amqp://{}:***@{}{separator}{virtual_host}", self.user, self.address())
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConnectOptions").field(&self.to_string()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> ConnectOptions {
        url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn what_a_url_leaves_out_has_a_default() {
        for url in ["amqp://", "amqp://localhost", "amqp://localhost:5672/", "amqp://guest:guest@localhost/%2F"] {
            let options = parse(url);
            assert_eq!(options.address(), "localhost:5672", "{url}");
            assert_eq!((&*options.user, &*options.password, &*options.virtual_host), ("guest", "guest", "/"), "{url}");
        }
    }

    #[test]
    fn user_password_and_virtual_host_are_percent_decoded() {
        let options = parse("amqp://an%40:p%2Fw%3A@host/a%20b");
        assert_eq!((&*options.user, &*options.password, &*options.virtual_host), ("an@", "p/w:", "a b"));
    }

    #[test]
    fn an_ipv6_address_keeps_its_brackets() {
        assert_eq!(parse("amqp://[::1]:5673").address(), "[::1]:5673");
    }

    #[test]
    fn several_hosts_keep_their_order_and_their_ports() {
        let options = parse("amqp://u:p,w@one:1,[::1]:2,three/vh?heartbeat=9");
        assert_eq!(options.address(), "one:1,[::1]:2,three:5672");
        assert_eq!((&*options.password, &*options.virtual_host, options.heartbeat), ("p,w", "vh", 9));
    }

    #[test]
    fn parameters_are_read() {
        let options =
            parse("amqp://h?heartbeat=7&connection_timeout=3&reconnect_interval=2.5&fail_fast=0&name=my%20app");
        assert_eq!((options.heartbeat, options.fail_fast, options.name.as_deref()), (7, false, Some("my app")));
        assert_eq!((options.connection_timeout.as_secs(), options.reconnect_interval.as_millis()), (3, 2500));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for (url, word) in [
            ("localhost:5672", "begin with amqp://"),
            ("", "begin with amqp://"),
            ("http://u:s3cret@host", "begin with amqp://"),
            ("amqps://u:s3cret@host", "TLS"),
            ("amqp://u:s3cret@host:99999", "port"),
            ("amqp://u:s3cret@host:port", "port"),
            ("amqp://u:s3cret@[::1", "IPv6"),
            ("amqp://u:s3cret@one,two:x", "port"),
            ("amqp://u:s3cret%ff@host", "password is not UTF-8"),
            ("amqp://u:s3cret@h?heartbeat=1", "from 2 to 65535"),
            ("amqp://u:s3cret@h?heartbeat", "from 2 to 65535"),
            ("amqp://u:s3cret@h?reconnect_interval=NaN", "from 0.01 to 3600"),
            ("amqp://u:s3cret@h?heart=1", "known are"),
            ("amqp://u:s3cret@h?name=a&name=b", "twice"),
        ] {
            let error = url.parse::<ConnectOptions>().expect_err(url).to_string();
            assert!(error.contains(word), "{url}: {error}");
            assert!(!error.contains("s3cret"), "{url}: {error}");
        }
    }

    #[test]
    fn no_output_has_the_password() {
        let options = parse("amqp://u:s3cret@host/vh");
        assert!(!format!("{options} {options:?} {options:#?}").contains("s3cret"));
    }
}
