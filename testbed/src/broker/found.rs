//! The RabbitMQ that `AMQP_URL` names: somebody else's.

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use url::Url;

use super::{Broker, Machinery, probe};

struct Found;

// Nothing can be done to it.
#[async_trait]
impl Machinery for Found {}

/// Looks which of the hosts in `url` answers, to use that one, and to say at once when none does.
pub(super) async fn broker(url: String) -> Result<Broker> {
    let mut last = None;
    for url in one_host_each(&url) {
        // No error may show the URL: there is a password in it.
        let one = Url::parse(&url).context("AMQP_URL is not a URL")?;
        let (host, port) = address(&one);
        let broker =
            Broker { machinery: Box::new(Found), url, host: host.to_owned(), port, tls_port: None, management: None };
        match one.scheme() {
            "amqp" => match probe::version(host, port).await {
                Ok(_) => return Ok(broker),
                Err(error) => last = Some(error),
            },
            // Behind TLS we cannot look.
            "amqps" => return Ok(broker),
            _ => bail!("AMQP_URL is no URL that begins with amqp:// or amqps://"),
        }
    }
    Err(last.context("AMQP_URL names no host")?.context("AMQP_URL is set, but it cannot be used"))
}

/// The address in a URL, with what the protocol says where it says nothing.
fn address(url: &Url) -> (&str, u16) {
    let host = url.host_str().filter(|host| !host.is_empty()).unwrap_or("localhost");
    // `[::1]` needs its brackets in a URL only.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (host, url.port().unwrap_or(if url.scheme() == "amqps" { 5671 } else { 5672 }))
}

/// A URL with several hosts, `amqp://user:password@one,other:5673/`, as one for each.
fn one_host_each(url: &str) -> Vec<String> {
    let authority = url.find("://").map_or(0, |at| at + 3);
    let end = url[authority..].find(['/', '?', '#']).map_or(url.len(), |at| authority + at);
    let hosts = url[authority..end].rfind('@').map_or(authority, |at| authority + at + 1);
    url[hosts..end].split(',').map(|host| format!("{}{host}{}", &url[..hosts], &url[end..])).collect()
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::{address, broker, one_host_each};

    #[test]
    fn each_host_is_an_address_of_its_own() {
        let url = "amqp://user:a,b@one,[::1]:5673/vhost?heartbeat=5";
        let all = one_host_each(url);
        assert_eq!(all, ["amqp://user:a,b@one/vhost?heartbeat=5", "amqp://user:a,b@[::1]:5673/vhost?heartbeat=5"]);
        let all: Vec<Url> = all.iter().map(|one| Url::parse(one).unwrap()).collect();
        assert_eq!(address(&all[0]), ("one", 5672));
        assert_eq!(address(&all[1]), ("::1", 5673));
        assert_eq!(address(&Url::parse("amqps://far").unwrap()), ("far", 5671));
        assert_eq!(address(&Url::parse("amqp://").unwrap()), ("localhost", 5672));
    }

    #[tokio::test]
    async fn no_error_shows_the_password() {
        // Port 1 is nobody's.
        for url in ["amqp://user:secret@localhost:1", "amqp://user:secret@localhost:port", "user:secret@localhost"] {
            let error = format!("{:#}", broker(url.to_owned()).await.err().unwrap());
            assert!(!error.contains("secret"), "{error}");
            assert!(error.starts_with("AMQP_URL is"), "{error}");
        }
    }
}
