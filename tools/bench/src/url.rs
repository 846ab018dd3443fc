//! Splits a broker's URL into its parts, because amqprs takes them one by one.

use anyhow::{Context, Result, ensure};
use percent_encoding::percent_decode_str;
use url::Url;

/// The address of the broker, and the login.
#[derive(Debug, PartialEq)]
pub struct Address {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: String,
    pub virtual_host: String,
}

impl Address {
    pub fn parse(url: &str) -> Result<Address> {
        // No error may show the URL, because it contains a password.
        let url = Url::parse(url).context("AMQP_URL is not a URL")?;
        ensure!(url.scheme() == "amqp", "the benchmarks run without TLS: AMQP_URL must begin with amqp://");
        let or = |text: &str, usual: &str| match text {
            "" => usual.to_owned(),
            text => percent_decode_str(text).decode_utf8_lossy().into_owned(),
        };
        Ok(Address {
            host: or(url.host_str().unwrap_or_default().trim_matches(['[', ']']), "localhost"),
            port: url.port().unwrap_or(5672),
            user: or(url.username(), "guest"),
            password: or(url.password().unwrap_or_default(), "guest"),
            virtual_host: or(url.path().trim_start_matches('/'), "/"),
        })
    }

    /// The same broker through another port of this machine.
    pub fn through(url: &str, port: u16) -> Result<String> {
        let mut url = Url::parse(url).context("AMQP_URL is not a URL")?;
        let set = url.set_host(Some("127.0.0.1")).is_ok() && url.set_port(Some(port)).is_ok();
        ensure!(set, "AMQP_URL names no host");
        Ok(url.into())
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn a_url_has_parts_and_what_is_missing_is_as_usual() {
        let all = Address::parse("amqp://me:a%2Fb@[::1]:5673/%2Fmine").unwrap();
        assert_eq!((all.host.as_str(), all.port, all.user.as_str()), ("::1", 5673, "me"));
        assert_eq!((all.password.as_str(), all.virtual_host.as_str()), ("a/b", "/mine"));
        let usual = Address::parse("amqp://localhost").unwrap();
        assert_eq!((usual.port, usual.user.as_str(), usual.virtual_host.as_str()), (5672, "guest", "/"));
        assert!(
            Address::parse("amqps://user:secret@localhost").is_err_and(|error| !error.to_string().contains("secret"))
        );
    }
}
