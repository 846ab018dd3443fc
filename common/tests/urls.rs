//! Random URLs: each one gives options or an error, never a panic, and no output contains the password.
//!
//!     PROPTEST_CASES=1000000 cargo test --release -p common --test urls

use std::time::Duration;

use common::{ConnectOptions, Tls};
use proptest::{collection::vec, prelude::*};

/// Parts of URLs in any order, mixed with any other characters.
fn anything_like_a_url() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(
            &[
                "amqp://",
                "amqps://",
                "amqp:",
                "//",
                "/",
                ":",
                "@",
                ",",
                "?",
                "&",
                "=",
                "#",
                "%",
                "%2F",
                "%00",
                "%ff",
                "[::1]",
                "[",
                "]",
                "localhost",
                "5672",
                "99999",
                "0",
                "guest",
                "name",
                "heartbeat=",
                "connection_timeout=",
                "operation_timeout=",
                "reconnect_interval=",
                "fail_fast=",
                "happy_eyeballs_delay=",
                "interleave=",
                "auth_mechanism=",
                "external",
                "cafile=",
                "capath=",
                "cadata=",
                "certfile=",
                "keyfile=",
                "no_verify_ssl=",
                "-1",
                "1e309",
                "NaN",
                "inf",
                "0.5",
                "..",
                "\u{202e}",
                "é",
            ][..]
        )
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn host() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", Just("::1".to_owned()), Just("192.0.2.1".to_owned())]
}

fn tls() -> impl Strategy<Value = Tls> {
    (any::<bool>(), any::<bool>()).prop_map(|(no_verify_ssl, cadata)| {
        let tls = Tls::new().no_verify_ssl(no_verify_ssl);
        if cadata { tls.cadata(CERTIFICATE) } else { tls }
    })
}

fn options() -> impl Strategy<Value = ConnectOptions> {
    let times = |most: u64| (10..most).prop_map(Duration::from_millis);
    let connecting = (
        vec((host(), 1..u16::MAX), 1..4),
        "[^\0]{1,30}",
        "[^\0]{1,30}",
        "(?s).{1,30}",
        prop::option::of("(?s).{0,30}"),
    );
    let numbers = (2..u16::MAX, any::<u16>(), any::<bool>());
    let waiting = (times(120_000), times(3_600_000), times(3_600_000), 10..2000_u64);
    (connecting, numbers, waiting, prop::option::of(tls())).prop_map(
        |((hosts, user, password, virtual_host, name), (heartbeat, interleave, fail_fast), (a, b, c, delay), tls)| {
            let make = || {
                let options = ConnectOptions::default()
                    .hosts(hosts.iter().map(|(name, port)| (&**name, *port)))?
                    .credentials(&user, &password)?
                    .virtual_host(&virtual_host)?
                    .heartbeat(heartbeat)?
                    .interleave(interleave)
                    .fail_fast(fail_fast)
                    .connection_timeout(a)
                    .operation_timeout(b)
                    .reconnect_interval(c)
                    .happy_eyeballs_delay(Duration::from_millis(delay));
                let options = match name {
                    Some(name) => options.name(name),
                    None => options,
                };
                match tls {
                    // Some random hosts are not DNS names.
                    Some(tls) => options.clone().tls(tls).or(Ok(options)),
                    None => Ok(options),
                }
            };
            make().unwrap_or_else(|error: common::Error| panic!("these options should be allowed: {error}"))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_input_panics_and_options_survive_the_round_trip(text in anything_like_a_url()) {
        if let Ok(options) = text.parse::<ConnectOptions>() {
            let again = options.to_url().parse::<ConnectOptions>();
            prop_assert_eq!(again.as_ref().map(ConnectOptions::to_url).ok(), Some(options.to_url()));
            prop_assert_eq!(again.ok(), Some(options));
        }
    }

    #[test]
    fn formatted_options_parse_back(options in options()) {
        let again = options.to_url().parse::<ConnectOptions>();
        prop_assert_eq!(again.as_ref().map(ConnectOptions::to_url).ok(), Some(options.to_url()));
        prop_assert_eq!(again.ok(), Some(options));
    }

    /// The password is percent-encoded or not, and the URL around it is right or wrong.
    #[test]
    fn no_output_contains_the_password(before in "[a-zA-Z0-9%/?:@,]{0,8}", after in anything_like_a_url()) {
        for password in ["s3cret-mark", "%733cret%2Dmark"] {
            let url = format!("amqp://user:{password}{before}@{after}");
            let seen = match url.parse::<ConnectOptions>() {
                Ok(options) => format!("{options} {options:?} {options:#?}"),
                Err(error) => format!("{error} {error:?} {error:#?}"),
            };
            prop_assert!(!seen.contains("s3cret"), "{}: {}", url, seen);
            prop_assert!(!seen.contains("733cret"), "{}: {}", url, seen);
        }
    }
}

/// ISRG Root X2, public since 2020.
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIICGzCCAaGgAwIBAgIQQdKd0XLq7qeAwSxs6S+HUjAKBggqhkjOPQQDAzBPMQsw
CQYDVQQGEwJVUzEpMCcGA1UEChMgSW50ZXJuZXQgU2VjdXJpdHkgUmVzZWFyY2gg
R3JvdXAxFTATBgNVBAMTDElTUkcgUm9vdCBYMjAeFw0yMDA5MDQwMDAwMDBaFw00
MDA5MTcxNjAwMDBaME8xCzAJBgNVBAYTAlVTMSkwJwYDVQQKEyBJbnRlcm5ldCBT
ZWN1cml0eSBSZXNlYXJjaCBHcm91cDEVMBMGA1UEAxMMSVNSRyBSb290IFgyMHYw
EAYHKoZIzj0CAQYFK4EEACIDYgAEzZvVn4CDCuwJSvMWSj5cz3es3mcFDR0HttwW
+1qLFNvicWDEukWVEYmO6gbf9yoWHKS5xcUy4APgHoIYOIvXRdgKam7mAHf7AlF9
ItgKbppbd9/w+kHsOdx1ymgHDB/qo0IwQDAOBgNVHQ8BAf8EBAMCAQYwDwYDVR0T
AQH/BAUwAwEB/zAdBgNVHQ4EFgQUfEKWrt5LSDv6kviejM9ti6lyN5UwCgYIKoZI
zj0EAwMDaAAwZQIwe3lORlCEwkSHRhtFcP9Ymd70/aTSVaYgLXTWNLxBo1BfASdW
tL4ndQavEi51mI38AjEAi/V3bNTIZargCyzuFJ0nN6T5U6VR5CmD1/iQMVtCnwr1
/q4AaOeMSQ+2b1tbFfLn
-----END CERTIFICATE-----
";
