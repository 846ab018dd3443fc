use super::*;

fn parse(url: &str) -> ConnectOptions {
    url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
}

#[test]
fn what_a_url_leaves_out_has_a_default() {
    for url in ["amqp://", "amqp://localhost", "amqp://localhost:5672/", "amqp://guest:guest@localhost/%2F"] {
        assert_eq!(parse(url), ConnectOptions::default(), "{url}");
    }
    assert_eq!(parse("amqps://").address(), "localhost:5671");
}

#[test]
fn user_password_and_virtual_host_are_percent_decoded() {
    let options = parse("amqp://an%40:p%2Fw%3A@host/a%20b");
    assert_eq!((&*options.user, &*options.password, &*options.virtual_host), ("an@", "p/w:", "a b"));
    // To a browser these would be steps up.
    for virtual_host in ["..", "a/../b"] {
        assert_eq!(parse(&format!("amqp://host/{virtual_host}")).virtual_host, virtual_host);
    }
}

#[test]
fn a_user_never_gets_the_password_of_another() {
    for url in ["amqp://ana@h", "amqp://ana:@h", "amqp://guest@h"] {
        let options = parse(url);
        let error = options.check_password().expect_err(url).to_string();
        assert!(error.contains("no password for user") && error.contains("--password-file"), "{error}");
        let options = options.password("s3cret").expect("a password");
        assert!(options.check_password().is_ok());
        assert_eq!(options.password, "s3cret");
    }
    assert!(parse("amqp://h").check_password().is_ok());
    assert_eq!(parse("amqp://:p@h"), parse("amqp://guest:p@h"));
}

#[test]
fn control_characters_are_escaped() {
    let options = parse("amqp://a%1bna:p@h/%00%0Avh");
    assert_eq!(options.to_string(), r"amqp://a\u{1b}na:***@h:5672/\u{0}\nvh");
}

#[test]
fn an_ipv6_address_keeps_its_brackets() {
    let options = parse("amqp://[::1]:5673");
    assert_eq!((options.address(), options.hosts[0].bare_name()), ("[::1]:5673".into(), "::1"));
    assert_eq!(
        ConnectOptions::default().hosts([("::1", 5673)]).map(|options| options.address()).ok(),
        Some("[::1]:5673".into())
    );
}

#[test]
fn several_hosts_keep_their_order_and_their_ports() {
    let options = parse("amqp://u:p,w@one:1,[::1]:2,three/vh?heartbeat=9");
    assert_eq!(options.address(), "one:1,[::1]:2,three:5672");
    assert_eq!((&*options.password, &*options.virtual_host, options.heartbeat), ("p,w", "vh", 9));
}

#[test]
fn parameters_are_read() {
    let options = parse(
        "amqp://h?heartbeat=7&connection_timeout=3&operation_timeout=4&reconnect_interval=2.5&fail_fast=0\
         &name=my%20app&happy_eyeballs_delay=0.1&interleave=2",
    );
    assert_eq!((options.heartbeat, options.fail_fast, options.name.as_deref()), (7, false, Some("my app")));
    assert_eq!((options.connection_timeout.as_secs(), options.operation_timeout.as_secs()), (3, 4));
    assert_eq!((options.reconnect_interval.as_millis(), options.happy_eyeballs_delay.as_millis()), (2500, 100));
    assert_eq!(options.interleave, 2);
}

#[test]
fn errors_say_what_is_wrong_without_the_password() {
    for (url, word) in [
        ("localhost:5672", "begin with amqp://"),
        ("", "begin with amqp://"),
        ("amqp:host", "begin with amqp://"),
        ("amqp://u:s3cret@a\tb", "control character"),
        ("http://u:s3cret@host", "begin with amqp://"),
        ("amqp://u:s3cret@host:99999", "port"),
        ("amqp://u:s3cret@host:port", "port"),
        ("amqp://u:s3cret@host:0", "1 to 65535"),
        ("amqp://u:s3cret@[::1", "IPv6"),
        ("amqp://u:s3cret@one,two:x", "port"),
        ("amqp://u:s3cret@one,/", "one of its hosts is empty"),
        ("amqp://u:s3cret@,two/", "empty"),
        ("amqp://,two", "one of its hosts is empty"),
        ("amqp://u:s3cret@one,:5672", "empty host"),
        ("amqp://u:s3cret@/", "empty host"),
        ("amqp://u:s3cret@[fe80::1%25eth0]", "hosts file"),
        ("amqp://u:s3cret@one,[fe80::1%25eth0]:5672", "hosts file"),
        ("amqp://u:s3cret@bücher.example", "begins with `xn--`"),
        ("amqp://u:s3cret@b%C3%BCcher.example", "begins with `xn--`"),
        ("amqp://u:s3cret@a%20b", "neither a name nor an address"),
        ("amqp://u:s3cret%ff@host", "password is not UTF-8"),
        ("amqp://u:s3cret%00@host", "NUL"),
        ("amqp://u:12?s3cret@host", "%3F for `?`"),
        ("amqp://u:12/s3cret@host", "%2F for `/`"),
        ("amqp://u:12#s3cret@host", "%23 for `#`"),
        ("amqp://u:s3cret@h?heartbeat=1", "from 2 to 65535"),
        ("amqp://u:s3cret@h?heartbeat", "from 2 to 65535"),
        ("amqp://u:s3cret@h?heartbeat=65536", "from 2 to 65535"),
        ("amqp://u:s3cret@h?reconnect_interval=NaN", "from 0.01 to 3600"),
        ("amqp://u:s3cret@h?operation_timeout=30000", "seconds (not milliseconds) from 0.01 to 3600"),
        ("amqp://u:s3cret@h?connection_timeout=10000", "seconds (not milliseconds) from 0.01 to 120"),
        ("amqp://u:s3cret@h?connection_timeout=-1", "from 0.01 to 120"),
        ("amqp://u:s3cret@h?connection_timeout=1e300", "from 0.01 to 120"),
        ("amqp://u:s3cret@h?happy_eyeballs_delay=3", "from 0.01 to 2"),
        ("amqp://u:s3cret@h?interleave=-1", "from 0 to 65535"),
        ("amqp://u:s3cret@h?fail_fast=yes", "`fail_fast` cannot be `yes`: allowed is 0 or 1"),
        ("amqp://u:s3cret@h?auth_mechanism=gssapi", "plain or external"),
        ("amqp://u:s3cret@h?auth_mechanism=external", "needs a client certificate"),
        ("amqps://u:s3cret@h?auth_mechanism=external", "needs a client certificate"),
        ("amqp://u:s3cret@h?heart=1", "known are"),
        ("amqp://u:s3cret@h?name=a&name=b", "twice"),
        ("amqp://u:s3cret@h?cafile=ca.pem", "allowed with amqps:// only"),
        ("amqps://u:s3cret@h?cafile=/no/such/file", "`cafile` cannot be `/no/such/file`"),
        ("amqps://u:s3cret@h?cafile=Cargo.toml", "there is no certificate in it"),
        ("amqps://u:s3cret@h?capath=/no/such/directory", "`capath` cannot be `/no/such/directory`"),
        ("amqps://u:s3cret@h?capath=src", "there is no certificate in it"),
        ("amqps://u:s3cret@h?cadata=inline", "`cadata` cannot be used: there is no certificate in it"),
        ("amqps://u:s3cret@h?certfile=/no/such/file", "`certfile` cannot be `/no/such/file`"),
        ("amqps://u:s3cret@h?keyfile=key.pem", "needs `certfile`"),
        ("amqps://u:s3cret@h?no_verify_ssl=true", "0 or 1"),
        ("amqps://u:s3cret@-_-..h", "not a DNS name"),
    ] {
        let error = url.parse::<ConnectOptions>().expect_err(url).to_string();
        assert!(error.contains(word), "{url}: {error}");
        assert!(!error.contains("s3cret"), "{url}: {error}");
    }
}

#[test]
fn a_value_in_an_error_is_short_and_on_one_line() {
    let error =
        format!("amqp://h?heartbeat={}", "%0A1".repeat(500)).parse::<ConnectOptions>().expect_err("a bad value");
    let error = error.to_string();
    assert!(error.len() < 250 && !error.contains('\n') && error.contains("…"), "{error}");
}

#[test]
fn no_output_has_the_password() {
    let options = parse("amqp://u:s3cret@host/vh");
    assert!(!format!("{options} {options:?} {options:#?}").contains("s3cret"));
}

#[test]
fn a_builder_takes_what_a_url_takes() {
    let base = ConnectOptions::default;
    assert!(base().hosts([]).is_err());
    assert!(base().hosts([("a,b", 1)]).is_err());
    assert!(base().hosts([("a@b", 1)]).is_err());
    assert!(base().hosts([("[a]", 1)]).is_err());
    assert!(base().hosts([("a", 0)]).is_err());
    assert!(base().credentials("", "x").is_err());
    assert!(base().credentials("x", "").is_err());
    assert!(base().virtual_host("").is_err());
    assert!(base().virtual_host(&"x".repeat(256)).is_err());
    assert!(base().heartbeat(1).is_err());
    assert!(base().external().is_err());
    let clamped = base().connection_timeout(Duration::MAX).reconnect_interval(Duration::ZERO);
    assert_eq!(clamped.connection_timeout.as_secs(), 120);
    assert_eq!(clamped.reconnect_interval.as_millis(), 10);
    assert_eq!(base().name("é".repeat(200)).name.map(|name| name.len()), Some(254));
}
