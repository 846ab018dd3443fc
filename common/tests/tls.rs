//! TLS with a real RabbitMQ: the server's certificate, the client's certificate, and the errors when one is wrong.

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use amqprs::{
    BasicProperties,
    channel::{BasicConsumeArguments, BasicGetArguments, BasicPublishArguments, QueueDeclareArguments},
};
use anyhow::{Context, Result, ensure};
use common::{ConnectOptions, ConnectionManager, Error, SetupChannel};
use serde_json::json;
use tempfile::TempDir;
use testbed::{Authority, Broker, Identity, ServerTls};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::OnceCell,
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

/// A broker that shows a certificate for `localhost`, and the files that its clients need.
struct TlsBroker {
    broker: Broker,
    authority: Authority,
    files: TempDir,
}

impl TlsBroker {
    async fn start(client_certificates: bool) -> Result<Self> {
        let authority = Authority::new("the test's authority")?;
        let identity = authority.server(&["localhost"])?;
        let tls = ServerTls { identity, authority: authority.certificate().into(), client_certificates };
        let tls_broker = Self { broker: Broker::builder().tls(tls).start().await?, authority, files: TempDir::new()? };
        tls_broker.write("ca.pem", tls_broker.authority.certificate())?;
        tls_broker.write("other-ca.pem", Authority::new("somebody else")?.certificate())?;
        Ok(tls_broker)
    }

    /// The broker that does not ask clients for a certificate.
    async fn open() -> Result<&'static Self> {
        static BROKER: OnceCell<TlsBroker> = OnceCell::const_new();
        BROKER.get_or_try_init(|| Self::start(false)).await
    }

    /// The broker that refuses clients without a certificate.
    async fn guarded() -> Result<&'static Self> {
        static BROKER: OnceCell<TlsBroker> = OnceCell::const_new();
        BROKER.get_or_try_init(|| Self::start(true)).await
    }

    /// Writes a file and returns its path, in the form that a URL contains.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.files.path().join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    fn path(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }
}

async fn connect(url: &str) -> Result<(), Error> {
    let connections = ConnectionManager::new(url.parse()?);
    connections.channel("test").await?;
    connections.close_all().await
}

/// Sends a message and fetches it.
async fn round_trip(url: &str) -> Result<()> {
    let connections = ConnectionManager::new(url.parse()?);
    let channel = connections.channel("test").await?;
    let queue = channel.queue_declare(QueueDeclareArguments::exclusive_server_named()).await?.name;
    channel.publish(BasicPublishArguments::new("", &queue), BasicProperties::default(), "through TLS").await?;
    let message = channel.get(BasicGetArguments::new(&queue)).await?.context("the queue is empty")?;
    ensure!(message.text() == "through TLS");
    message.ack().await?;
    Ok(connections.close_all().await?)
}

/// Connecting fails in time, and the error contains all of these words.
async fn fails(url: &str, words: &[&str]) -> Result<()> {
    let began = Instant::now();
    let error = connect(url).await.err().with_context(|| format!("{url} connects"))?.to_string();
    println!("{url}\n    {error}");
    for word in words {
        ensure!(error.contains(word), "{url}: no {word:?} in: {error}");
    }
    ensure!(!error.contains('\n'), "more than one line: {error}");
    ensure!(began.elapsed() < Duration::from_secs(11), "{url} took {:?}", began.elapsed());
    Ok(())
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn the_authority_comes_from_a_file_a_directory_or_the_url_itself() -> Result<()> {
    let tls_broker = TlsBroker::open().await?;
    let host = tls_broker.broker.virtual_host().await?;
    let url = host.tls_url()?;
    let directory = TempDir::new()?;
    fs::write(directory.path().join("2c543cd1.0"), tls_broker.authority.certificate())?;
    fs::write(directory.path().join("README"), "no certificate")?;
    for parameter in [
        format!("cafile={}", tls_broker.path("ca.pem")),
        format!("capath={}", directory.path().display()),
        format!("cadata={}", encoded(tls_broker.authority.certificate())),
        format!("cafile={}&cadata={}", tls_broker.path("other-ca.pem"), encoded(tls_broker.authority.certificate())),
        "no_verify_ssl=1".into(),
    ] {
        round_trip(&format!("{url}?{parameter}")).await.with_context(|| parameter.clone())?;
    }
    Ok(())
}

#[tokio::test]
async fn a_name_in_the_url_is_the_connections_name() -> Result<()> {
    let tls_broker = TlsBroker::open().await?;
    let host = tls_broker.broker.virtual_host().await?;
    let url = format!("{}?cafile={}&name=the%20till", host.tls_url()?, tls_broker.path("ca.pem"));
    let connections = ConnectionManager::new(url.parse()?);
    connections.channel("test").await?;
    let listed = tls_broker.broker.rabbitmqctl(&["-q", "list_connections", "user", "ssl", "client_properties"]).await?;
    let own = listed.lines().find(|line| line.starts_with(host.name())).context("no connection")?;
    ensure!(own.contains("true") && own.contains("the till"), "{own}");
    Ok(connections.close_all().await?)
}

#[tokio::test]
async fn a_consumer_over_tls_continues_after_a_lost_connection() -> Result<()> {
    let tls_broker = TlsBroker::open().await?;
    let host = tls_broker.broker.virtual_host().await?;
    let url = format!("{}?cafile={}", host.tls_url()?, tls_broker.path("ca.pem"));
    let connections = ConnectionManager::new(url.parse()?);
    let channel = connections.channel("test").await?;
    let subscribe = |channel: SetupChannel| async move {
        channel.queue_declare(QueueDeclareArguments::durable_client_named("q")).await?;
        Ok(BasicConsumeArguments::new("q", ""))
    };
    let mut messages = channel.consume(subscribe).await?;
    host.close_all_connections().await?;
    channel.publish_at_least_once(BasicPublishArguments::new("", "q"), BasicProperties::default(), "again").await?;
    let message = messages.try_next().await?.context("the stream ended")?;
    ensure!(message.text() == "again");
    message.ack().await?;
    Ok(connections.close_all().await?)
}

#[tokio::test]
async fn files_are_read_again_for_each_connection() -> Result<()> {
    let tls_broker = TlsBroker::open().await?;
    let host = tls_broker.broker.virtual_host().await?;
    let file = tls_broker.write("renewed.pem", &fs::read_to_string(tls_broker.path("other-ca.pem"))?)?;
    let url = format!("{}?cafile={}&fail_fast=0", host.tls_url()?, file.display());
    let connections = ConnectionManager::new(url.parse()?);
    let waiting = tokio::spawn({
        let connections = connections.clone();
        async move { connections.channel("test").await.map(drop) }
    });
    let once = url.replace("&fail_fast=0", "");
    fails(&once, &["cafile"]).await?;
    fs::copy(tls_broker.path("ca.pem"), &file)?;
    waiting.await??;
    Ok(connections.close_all().await?)
}

#[tokio::test]
async fn each_wrong_certificate_of_the_broker_is_an_error_that_says_what_to_do() -> Result<()> {
    let tls_broker = TlsBroker::open().await?;
    let host = tls_broker.broker.virtual_host().await?;
    let url = host.tls_url()?;
    let ca = tls_broker.path("ca.pem");
    let by_address = url.replace("@localhost:", "@127.0.0.1:");
    fails(&format!("{url}?cafile={}", tls_broker.path("other-ca.pem")), &["not trusted here", "`cafile`"]).await?;
    // Without a parameter, the certificates that this system trusts are used.
    fails(&url, &["`cafile`"]).await?;
    fails(&format!("{by_address}?cafile={ca}"), &["is for `localhost` and not for `127.0.0.1`"]).await?;

    // The same broker, behind certificates that are not its own.
    let localhost = ["localhost", "127.0.0.1"];
    let expired = front(&tls_broker.authority.expired_server(&localhost)?, tls_broker.broker.port()).await?;
    let its_own = Identity::self_signed_server(&localhost)?;
    let own_file = tls_broker.write("self-signed.pem", &its_own.certificate)?;
    let self_signed = front(&its_own, tls_broker.broker.port()).await?;
    let good = front(&tls_broker.authority.server(&localhost)?, tls_broker.broker.port()).await?;
    let at = |port: u16| format!("amqps://{}:{}@localhost:{port}/{}", host.name(), host.password(), host.name());
    fails(&format!("{}?cafile={ca}", at(expired)), &["has expired", "renewed"]).await?;
    fails(&format!("{}?cafile={ca}", at(self_signed)), &["signed by itself", "`cafile`"]).await?;
    round_trip(&format!("{}?cafile={}", at(self_signed), own_file.display())).await?;
    round_trip(&format!("{}?cafile={ca}", at(good))).await?;
    Ok(())
}

#[tokio::test]
async fn an_error_says_which_side_uses_tls_and_which_does_not() -> Result<()> {
    let tls_broker = TlsBroker::open().await?;
    let host = tls_broker.broker.virtual_host().await?;
    let (plain, tls) = (tls_broker.broker.port(), tls_broker.broker.tls_port().context("no port for TLS")?);
    let management =
        tls_broker.broker.management_url().and_then(|url| url.rsplit_once(':')).context("no management page")?.1;
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let silent = silent.local_addr()?.port();
    let ca = tls_broker.path("ca.pem");
    let marked = host.password();
    let amqps = |port: &str| format!("amqps://u:{marked}@localhost:{port}?cafile={ca}");
    fails(&amqps(&plain.to_string()), &["speaks there without TLS", "use amqp://", "5671"]).await?;
    fails(&format!("amqp://u:{marked}@localhost:{tls}"), &["expects TLS", "use amqps://"]).await?;
    fails(&amqps(management), &["does not speak TLS", "5671"]).await?;
    fails(&format!("{}&connection_timeout=0.5", amqps(&silent.to_string())), &["no answer within 0.5 s", "5671"])
        .await?;
    // The right port and the wrong user give the same error as without TLS.
    fails(&amqps(&tls.to_string()), &["refused the connection", "check user `u` and its password"]).await
}

#[tokio::test]
async fn a_broker_that_wants_a_certificate_gets_one_or_says_so() -> Result<()> {
    let tls_broker = TlsBroker::guarded().await?;
    let host = tls_broker.broker.virtual_host().await?;
    let url = format!("{}?cafile={}", host.tls_url()?, tls_broker.path("ca.pem"));
    let files = |identity: &Identity, name: &str| -> Result<String> {
        let certificate = tls_broker.write(&format!("{name}.pem"), &identity.certificate)?;
        let key = tls_broker.write(&format!("{name}.key"), &identity.key)?;
        Ok(format!("certfile={}&keyfile={}", certificate.display(), key.display()))
    };
    fails(&url, &["client certificate", "`certfile` and `keyfile`"]).await?;
    let foreign = files(&Authority::new("somebody else")?.client("till")?, "foreign")?;
    fails(&format!("{url}&{foreign}"), &["does not accept the client's certificate"]).await?;

    let till = tls_broker.authority.client("till")?;
    let good = files(&till, "till")?;
    round_trip(&format!("{url}&{good}")).await?;
    let both = tls_broker.write("both.pem", &format!("{}{}", till.certificate, till.key))?;
    round_trip(&format!("{url}&certfile={}", both.display())).await?;

    // EXTERNAL: the user is the certificate's common name. The user and password in the URL are not used.
    let external = format!("{url}&{good}&auth_mechanism=external").replace(host.password(), "unused");
    fails(&external, &["refused the connection", "a user by the name in the client certificate"]).await?;
    host.put("/api/users/till", json!({"password_hash": "", "tags": ""})).await?;
    host.put("/api/permissions/{vhost}/till", json!({"configure": ".*", "write": ".*", "read": ".*"})).await?;
    round_trip(&external).await
}

#[tokio::test]
async fn a_broker_without_a_cipher_suite_in_common_is_not_taken_for_one_that_wants_a_certificate() -> Result<()> {
    let authority = Authority::new("the test's authority")?;
    let tls = ServerTls {
        identity: authority.server(&["localhost"])?,
        authority: authority.certificate().into(),
        client_certificates: false,
    };
    // This broker allows key exchange only by RSA, which rustls does not support.
    let old = "ssl_options.versions.1 = tlsv1.2\nssl_options.ciphers.1 = AES256-GCM-SHA384";
    let broker = Broker::builder().tls(tls).configuration(old).start().await?;
    let port = broker.tls_port().context("no port for TLS")?;
    let url = format!("amqps://guest:guest@localhost:{port}?cadata={}", encoded(authority.certificate()));
    fails(&url, &["cipher suite in common", "ssl_options.ciphers"]).await
}

#[tokio::test]
async fn where_the_broker_is_not_set_up_for_external_the_error_says_what_to_enable() -> Result<()> {
    let tls_broker = TlsBroker::open().await?;
    let client = tls_broker.authority.client("till")?;
    let both = tls_broker.write("unwanted.pem", &format!("{}{}", client.certificate, client.key))?;
    let host = tls_broker.broker.virtual_host().await?;
    let parameters =
        format!("cafile={}&certfile={}&auth_mechanism=external", tls_broker.path("ca.pem"), both.display());
    // This broker does not ask for the certificate.
    let url = format!("{}?{parameters}", host.tls_url()?);
    fails(&url, &["refused", "a user by the name in the client certificate", "verify_peer"]).await?;
    // This broker does not offer EXTERNAL, because its port without TLS never does.
    let behind_tls = front(&tls_broker.authority.server(&["localhost"])?, tls_broker.broker.port()).await?;
    let url = format!("amqps://localhost:{behind_tls}/{}?{parameters}", host.name());
    fails(&url, &["refused", "rabbitmq_auth_mechanism_ssl", "auth_mechanisms"]).await
}

#[test]
fn a_wrong_file_is_an_error_before_the_client_connects() -> Result<()> {
    let directory = TempDir::new()?;
    let authority = Authority::new("the test's authority")?;
    let (one, other) = (authority.client("one")?, authority.client("other")?);
    let write = |name: &str, text: &str| -> Result<String> {
        let path = directory.path().join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let certificate = write("one.pem", &one.certificate)?;
    let other_key = write("other.key", &other.key)?;
    let encrypted = write("encrypted.key", &one.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))?;
    let broken = write("broken.pem", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n")?;
    let nonsense = write("nonsense.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")?;
    let bad_key = write("bad.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")?;
    let folder = directory.path().display().to_string();
    for (parameters, words) in [
        (format!("certfile={certificate}&keyfile={other_key}"), ["`keyfile`", "not the key of the certificate"]),
        (format!("certfile={certificate}&keyfile={encrypted}"), ["is encrypted", "openssl pkey"]),
        (format!("certfile={certificate}&keyfile={bad_key}"), ["`keyfile`", "RSA, ECDSA or Ed25519"]),
        (format!("certfile={certificate}&keyfile={certificate}"), ["`keyfile`", "there is no private key in it"]),
        (format!("certfile={certificate}"), ["`certfile`", "`keyfile` is missing"]),
        (format!("certfile={other_key}"), ["`certfile`", "there is no certificate in it"]),
        (format!("certfile={nonsense}&keyfile={other_key}"), ["`certfile`", "broken"]),
        (format!("cafile={broken}"), ["`cafile`", "broken PEM"]),
        (format!("cafile={nonsense}"), ["`cafile`", "broken"]),
        (format!("cafile={folder}"), ["`cafile`", "a PEM file that this program may read"]),
        (format!("cafile={folder}/missing.pem"), ["missing.pem", "a PEM file that this program may read"]),
        (
            format!("cadata={}", encoded("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")),
            ["`cadata`", "PEM"],
        ),
    ] {
        let error =
            format!("amqps://u:s3cret@h?{parameters}").parse::<ConnectOptions>().expect_err(&parameters).to_string();
        println!("{error}");
        ensure!(words.iter().all(|word| error.contains(word)), "{parameters}: {error}");
        ensure!(!error.contains("s3cret") && !error.contains("AAAA") && !error.contains('\n'), "{error}");
    }
    Ok(())
}

/// Opens a port that forwards to the broker's port, with TLS and this certificate.
async fn front(identity: &Identity, broker: u16) -> Result<u16> {
    let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        let mut visitors = JoinSet::new();
        while let Ok((visitor, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            visitors.spawn(async move {
                let mut visitor = acceptor.accept(visitor).await?;
                let mut broker = TcpStream::connect(("127.0.0.1", broker)).await?;
                tokio::io::copy_bidirectional(&mut visitor, &mut broker).await
            });
        }
    });
    Ok(port)
}
