//! Makes options from a URL, and a URL from options.

use std::{fmt::Write as _, str::FromStr, time::Duration};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

use super::{CONNECTING, ConnectOptions, DELAYS, Host, LONGEST_NAME, Mechanism, TIMES, check_password, check_user};
use crate::{Error, Result, Tls, escape::shortened};

const PARAMETERS: &str = "auth_mechanism, connection_timeout, fail_fast, happy_eyeballs_delay, heartbeat, interleave, \
                          name, operation_timeout, reconnect_interval; with amqps also cadata, cafile, capath, certfile, \
                          keyfile, no_verify_ssl";

impl FromStr for ConnectOptions {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Parts { url, more_hosts, virtual_host } = split(text)?;
        let url = parse(&url)?;
        let (tls, usual_port) = match url.scheme() {
            "amqp" => (None, 5672),
            "amqps" => (Some(Tls::new()), 5671),
            _ => return Err(malformed("it must begin with amqp:// or amqps://")),
        };
        if !url.has_authority() {
            return Err(malformed("it must begin with amqp:// or amqps://"));
        }

        if !more_hosts.is_empty() && url.host_str().is_none_or(str::is_empty) {
            return Err(malformed(EMPTY_HOST));
        }
        let mut options = Self { hosts: vec![host(&url, usual_port)?], tls, ..Self::default() };
        for more in more_hosts {
            if more.is_empty() {
                return Err(malformed(EMPTY_HOST));
            }
            options.hosts.push(host(&parse(&format!("amqp://{more}"))?, usual_port)?);
        }
        if !url.username().is_empty() {
            options.user = decode(url.username(), "user")?;
            check_user(&options.user)?;
            // Never the default password, because it belongs to another user.
            options.password.clear();
        }
        if let Some(password) = url.password() {
            options.password = decode(password, "password")?;
            check_password(&options.password)?;
        }
        // Both `amqp://host` and `amqp://host/` mean the default virtual host, as in pika and aio-pika.
        if !virtual_host.is_empty() {
            options.virtual_host = decode(virtual_host, "virtual host")?;
        }
        if options.virtual_host.len() > LONGEST_NAME {
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
        // Each parameter is valid. Now check them together.
        match options.tls.clone() {
            Some(tls) => options.tls(tls),
            None => {
                options.check_mechanism()?;
                Ok(options)
            }
        }
    }
}

impl ConnectOptions {
    fn parameter(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "name" if value.len() <= LONGEST_NAME => self.name = Some(value.into()),
            "name" => return Err(invalid(key, value, "at most 255 bytes")),
            "heartbeat" => self.heartbeat = number(key, value, 2)?,
            "connection_timeout" => self.connection_timeout = seconds(key, value, CONNECTING)?,
            "operation_timeout" => self.operation_timeout = seconds(key, value, TIMES)?,
            "reconnect_interval" => self.reconnect_interval = seconds(key, value, TIMES)?,
            "fail_fast" => self.fail_fast = flag(key, value)?,
            "happy_eyeballs_delay" => self.happy_eyeballs_delay = seconds(key, value, DELAYS)?,
            "interleave" => self.interleave = number(key, value, 0)?,
            "auth_mechanism" => {
                self.mechanism = match &*value.to_ascii_lowercase() {
                    "plain" => Mechanism::Plain,
                    "external" => Mechanism::External,
                    _ => return Err(invalid(key, value, "plain or external")),
                }
            }
            "cafile" | "capath" | "cadata" | "certfile" | "keyfile" | "no_verify_ssl" => {
                let Some(tls) = self.tls.take() else {
                    return Err(Error::Invalid(format!(
                        "the URL's parameter `{key}` is about TLS: allowed with amqps:// only"
                    )));
                };
                self.tls = Some(match key {
                    "cafile" => tls.cafile(value),
                    "capath" => tls.capath(value),
                    "cadata" => tls.cadata(value),
                    "certfile" => tls.certfile(value),
                    "keyfile" => tls.keyfile(value),
                    _ => tls.no_verify_ssl(flag(key, value)?),
                });
            }
            _ => {
                // Part of a password with an unencoded `?` would be read as a parameter.
                let known = key.len() <= 30 && key.chars().all(|one| one.is_ascii_lowercase() || one == '_');
                let name = if known { format!(" `{key}`") } else { String::new() };
                return Err(Error::Invalid(format!("the URL has an unknown parameter{name}; known are {PARAMETERS}")));
            }
        }
        Ok(())
    }

    /// The options as one URL that [parses](str::parse) to the same options. **It contains the password**, so do not
    /// log it.
    ///
    /// ```
    /// use common::ConnectOptions;
    ///
    /// let options = ConnectOptions::default().credentials("ana", "p/w")?.heartbeat(10)?;
    /// assert_eq!(options.to_url(), "amqp://ana:p%2Fw@localhost:5672/%2F?heartbeat=10");
    /// # Ok::<(), common::Error>(())
    /// ```
    pub fn to_url(&self) -> String {
        let usual = Self::default();
        let scheme = if self.tls.is_some() { "amqps" } else { "amqp" };
        let (user, password) = (encode(&self.user), encode(&self.password));
        let virtual_host = encode(&self.virtual_host);
        let mut url = format!("{scheme}://{user}:{password}@{}/{virtual_host}", self.address());
        let mut separator = '?';
        let mut put = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                // Writing to a string cannot fail.
                let _ = write!(url, "{separator}{key}={}", encode(&value));
                separator = '&';
            }
        };
        let unusual = |own: Duration, usual: Duration| (own != usual).then(|| own.as_secs_f64().to_string());
        put("name", self.name.clone());
        put("heartbeat", (self.heartbeat != usual.heartbeat).then(|| self.heartbeat.to_string()));
        put("connection_timeout", unusual(self.connection_timeout, usual.connection_timeout));
        put("operation_timeout", unusual(self.operation_timeout, usual.operation_timeout));
        put("reconnect_interval", unusual(self.reconnect_interval, usual.reconnect_interval));
        put("fail_fast", (!self.fail_fast).then(|| "0".into()));
        put("happy_eyeballs_delay", unusual(self.happy_eyeballs_delay, usual.happy_eyeballs_delay));
        put("interleave", (self.interleave != usual.interleave).then(|| self.interleave.to_string()));
        put("auth_mechanism", (self.mechanism == Mechanism::External).then(|| "external".into()));
        for (key, value) in self.tls.iter().flat_map(Tls::parameters) {
            put(key, Some(value));
        }
        url
    }
}

/// Programs once took an empty host for `localhost`. Then `localhost` would get the password.
const EMPTY_HOST: &str = "one of its hosts is empty; write a name or an address between commas";

/// No message contains the URL itself, because it may contain a password.
fn malformed(reason: &str) -> Error {
    Error::Invalid(format!(
        "the URL of RabbitMQ is malformed: {reason}; it looks like amqp://user:password@localhost:5672/virtual-host"
    ))
}

fn parse(text: &str) -> Result<Url> {
    Url::parse(text).map_err(|error| match error {
        url::ParseError::RelativeUrlWithoutBase => malformed("it must begin with amqp:// or amqps://"),
        url::ParseError::InvalidIpv6Address if text.contains('%') => malformed(
            "an IPv6 address with a zone (`%eth0`) cannot stand in it; give the address a name in this machine's hosts file, \
             and use that",
        ),
        error => malformed(&error.to_string()),
    })
}

fn host(url: &Url, usual_port: u16) -> Result<Host> {
    let name = url.host_str().filter(|name| !name.is_empty()).unwrap_or("localhost");
    Host::new(&decode(name, "host")?, url.port().unwrap_or(usual_port))
}

fn decode(text: &str, what: &str) -> Result<String> {
    let text = percent_decode_str(text).decode_utf8();
    text.map(String::from).map_err(|_| malformed(&format!("the {what} is not UTF-8")))
}

fn encode(text: &str) -> impl std::fmt::Display {
    const UNRESERVED: &percent_encoding::AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, UNRESERVED)
}

/// The parts of a URL that the URL standard does not know, or changes.
struct Parts<'a> {
    /// With the first host only, and without a path.
    url: String,
    more_hosts: Vec<&'a str>,
    /// As it is written, because the URL standard takes `.` and `..` for steps in a path.
    virtual_host: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>> {
    let text = text.trim();
    if text.contains(char::is_control) {
        return Err(malformed("there is a control character in it"));
    }
    let start = text.find("://").map_or(0, |colon| colon + 3);
    let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |length| start + length);
    // A password with one of these characters would become part of the address, which is shown.
    if text[end..].contains(['@', '#']) {
        return Err(malformed(
            "there is an `@` or `#` behind the host; what belongs to the password or another part is written %2F for `/`, \
             %3F for `?`, %23 for `#`, %40 for `@`",
        ));
    }
    let query = text[end..].find('?').map_or(text.len(), |length| end + length);
    let virtual_host = text[end..query].strip_prefix('/').unwrap_or_default();
    // The last @ ends the user information, where a comma is not a separator.
    let start = text[start..end].rfind('@').map_or(start, |at| start + at + 1);
    let mut hosts = text[start..end].split(',');
    let first = hosts.next().unwrap_or_default();
    let url = format!("{}{first}{}", &text[..start], &text[query..]);
    Ok(Parts { url, more_hosts: hosts.collect(), virtual_host })
}

fn number(key: &str, value: &str, least: u16) -> Result<u16> {
    let number = value.parse().ok().filter(|number| *number >= least);
    number.ok_or_else(|| invalid(key, value, &format!("a whole number from {least} to {}", u16::MAX)))
}

fn flag(key: &str, value: &str) -> Result<bool> {
    match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(invalid(key, value, "0 or 1")),
    }
}

fn seconds(key: &str, value: &str, allowed: std::ops::RangeInclusive<Duration>) -> Result<Duration> {
    let time = value.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|time| allowed.contains(time)).ok_or_else(|| {
        let (least, most) = (allowed.start().as_secs_f64(), allowed.end().as_secs_f64());
        invalid(key, value, &format!("seconds (not milliseconds) from {least} to {most}"))
    })
}

fn invalid(key: &str, value: &str, allowed: &str) -> Error {
    Error::Invalid(format!("the URL's parameter `{key}` cannot be `{}`: allowed is {allowed}", shortened(value)))
}
