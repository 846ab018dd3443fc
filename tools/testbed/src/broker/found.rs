//! The RabbitMQ that `AMQP_URL` names. We did not start it, and do not control it.

use std::fmt;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use url::Url;

use super::{Broker, Machinery, probe};

struct Found;

// We cannot stop it or start it.
#[async_trait]
impl Machinery for Found {}

/// A host and a port. An IPv6 address is without the brackets that it has in a URL.
#[derive(Debug, PartialEq)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

/// The broker at the first of the hosts in `url` that answers. Fails at once if no host answers.
pub(super) async fn broker(url: &str) -> Result<Broker> {
    let (url, Address { host, port }) = answering(url).await?;
    Ok(Broker { machinery: Box::new(Found), url, host, port, tls_port: None, management: None })
}

/// The first of the hosts in `url` at which a RabbitMQ answers: the URL with only this host, and its address.
pub(super) async fn answering(url: &str) -> Result<(String, Address)> {
    let mut last = None;
    for url in one_host_each(url) {
        // No error may show the URL: there is a password in it.
        let one = Url::parse(&url).context("AMQP_URL is not a URL")?;
        let address = address(&one);
        match one.scheme() {
            "amqp" => match probe::version(&address.host, address.port).await {
                Ok(_) => return Ok((url, address)),
                Err(error) => last = Some(error),
            },
            // We do not speak TLS, so we cannot check this one.
            "amqps" => return Ok((url, address)),
            _ => bail!("AMQP_URL does not begin with amqp:// or amqps://"),
        }
    }
    last.context("AMQP_URL names no host").and_then(Err)
}

/// The address in a URL, with the protocol's defaults for what is missing.
fn address(url: &Url) -> Address {
    let host = url.host_str().filter(|host| !host.is_empty()).unwrap_or("localhost");
    // `[::1]` needs its brackets in a URL only.
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Address { host, port: url.port().unwrap_or(if url.scheme() == "amqps" { 5671 } else { 5672 }) }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Splits a URL with several hosts, `amqp://user:password@one,other:5673/`, into one URL for each host.
fn one_host_each(url: &str) -> Vec<String> {
    let authority = url.find("://").map_or(0, |at| at + 3);
    let end = url[authority..].find(['/', '?', '#']).map_or(url.len(), |at| authority + at);
    let hosts = url[authority..end].rfind('@').map_or(authority, |at| authority + at + 1);
    url[hosts..end].split(',').map(|host| format!("{}{host}{}", &url[..hosts], &url[end..])).collect()
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::{Address, address, broker, one_host_each};

    #[test]
    fn each_host_is_an_address_of_its_own() {
        let at = |host: &str, port| Address { host: host.to_owned(), port };
        let url = "amqp://user:a,b@one,[::1]:5673/vhost?heartbeat=5";
        let all = one_host_each(url);
        assert_eq!(all, ["amqp://user:a,b@one/vhost?heartbeat=5", "amqp://user:a,b@[::1]:5673/vhost?heartbeat=5"]);
        let all: Vec<Url> = all.iter().map(|one| Url::parse(one).unwrap()).collect();
        assert_eq!(address(&all[0]), at("one", 5672));
        assert_eq!(address(&all[1]), at("::1", 5673));
        assert_eq!(address(&Url::parse("amqps://far").unwrap()), at("far", 5671));
        assert_eq!(address(&Url::parse("amqp://").unwrap()), at("localhost", 5672));
    }

    #[tokio::test]
    async fn no_error_shows_the_password() {
        // Nothing listens at port 1.
        for url in ["amqp://user:secret@localhost:1", "amqp://user:secret@localhost:port", "user:secret@localhost"] {
            let error = format!("{:#}", broker(url).await.err().unwrap());
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
