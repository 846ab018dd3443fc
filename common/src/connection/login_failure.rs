//! Finds out why a login failed. amqprs's errors do not say it, so this asks the port itself.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, AlertDescription, CertificateError, ClientConfig, SignatureScheme, client::ResolvesClientCert,
        sign::CertifiedKey,
    },
};

use crate::{Cause, ConnectOptions, Error, Tls, connection::peer::Peer, escaped, options::Mechanism};

const STARTING: &str =
    "it accepts connections and closes them at once; if RabbitMQ is still starting there, try again in a moment";

/// How long a broker may take to object to a certificate.
const OBJECTION: Duration = Duration::from_millis(500);

/// The advice about the port when something else answers.
pub(crate) fn usual_port(options: &ConnectOptions) -> &'static str {
    match options.tls {
        Some(_) => "is that RabbitMQ's port for TLS (usually 5671)",
        None => "is that RabbitMQ's AMQP port (usually 5672)",
    }
}

/// What the broker said, or what its silence means.
pub(crate) async fn diagnose(peer: &Peer<'_>, error: &str) -> Error {
    let address = peer.host.to_string();
    let ConnectOptions { user, virtual_host, mechanism, .. } = peer.options;
    let (user, virtual_host) = (escaped(user), escaped(virtual_host));
    let login = match mechanism {
        Mechanism::Plain => format!("check user `{user}` and its password"),
        Mechanism::External => {
            "check that there is a user by the name in the client certificate, and that RabbitMQ asks \
                                for one (`ssl_options.verify = verify_peer`)"
                .into()
        }
    };
    if let Some(words) = words_of_refusal(error) {
        let reason = match words.contains("vhost") {
            // The code can be about the user, the virtual host or the node. The words say which.
            _ if words.contains("connection limit") => format!(
                "{words}; close other connections (`rabbitmqctl list_connections user vhost name`), or raise the limit \
                 (`rabbitmqctl set_user_limits`, `rabbitmqctl set_vhost_limits`)"
            ),
            true => format!(
                "{words}; check the virtual host `{virtual_host}` (`rabbitmqctl list_vhosts`) and the rights of \
                 `{user}` in it"
            ),
            false => format!("{words}; {login}"),
        };
        return Error::LoginRefused { address, reason };
    }
    if error.contains("is not supported by server") {
        let reason = match mechanism {
            Mechanism::Plain => "it does not accept passwords (`auth_mechanisms` in its configuration)",
            Mechanism::External => {
                "it does not take the user from a certificate: enable its plugin `rabbitmq_auth_mechanism_ssl` and add \
                 EXTERNAL to `auth_mechanisms`"
            }
        };
        return Error::LoginRefused { address, reason: reason.into() };
    }
    let asked = Arc::new(AskedForCertificate::default());
    let greeting = match &peer.tls {
        Some(config) if shows_certificate(peer) => tls_greeting(peer, config.clone()).await,
        Some(config) => {
            let mut config = ClientConfig::clone(config);
            config.client_auth_cert_resolver = asked.clone();
            tls_greeting(peer, Arc::new(config)).await
        }
        None => plain_greeting(peer).await,
    };
    let seen = match greeting.as_deref() {
        // A method frame on channel 0: it speaks AMQP. If the login is wrong, RabbitMQ closes the socket without a
        // word, because amqprs does not announce the capability for a reason.
        Ok([1, 0, 0, ..]) => {
            let reason = format!("it closed the connection during the login; {login}");
            return Error::LoginRefused { address, reason };
        }
        Ok([b'H', b'T', b'T', b'P', ..]) => "a web server answers there".into(),
        // Docker does this for a container whose broker does not listen yet.
        Ok([]) => STARTING.into(),
        // A TLS alert.
        Ok([21, 3, ..]) => return Error::connect(address, "it expects TLS there: use amqps://".into()),
        Ok(_) => format!("what answers there does not speak AMQP 0-9-1 ({error})"),
        Err(failure) => match tls_failure(peer, failure, asked.0.load(Ordering::Relaxed)).await {
            Some(reason) => return Error::Connect { address, reason, source: io_error(greeting) },
            None if peer.tls.is_some() => format!("the TLS handshake failed ({failure})"),
            None => STARTING.into(),
        },
    };
    let reason = format!("{seen}; {}?", usual_port(peer.options));
    Error::Connect { address, reason, source: io_error(greeting) }
}

fn io_error(greeting: io::Result<Vec<u8>>) -> Option<Cause> {
    greeting.err().map(Cause::new)
}

/// The first bytes that a port answers to AMQP's protocol header (AMQP 0-9-1, section 4.2.2).
async fn greeting(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<Vec<u8>> {
    stream.write_all(b"AMQP\0\0\x09\x01").await?;
    stream.flush().await?;
    let mut first = vec![0; 8];
    let length = stream.read(&mut first).await?;
    first.truncate(length);
    Ok(first)
}

async fn plain_greeting(peer: &Peer<'_>) -> io::Result<Vec<u8>> {
    greeting(TcpStream::connect(peer.address).await?).await
}

async fn tls_greeting(peer: &Peer<'_>, config: Arc<ClientConfig>) -> io::Result<Vec<u8>> {
    let name = Tls::server_name(peer.host.bare_name()).map_err(io::Error::other)?;
    let stream = TcpStream::connect(peer.address).await?;
    let mut stream = TlsConnector::from(config).connect(name, stream).await?;
    // In TLS 1.3 the broker refuses our certificate after the handshake. If we sent something meanwhile, the system
    // would discard the refusal. A broker that accepts the certificate sends nothing before we do.
    match timeout(OBJECTION, stream.read_u8()).await {
        Ok(objection) => Ok(vec![objection?]),
        Err(_) => greeting(stream).await,
    }
}

fn shows_certificate(peer: &Peer<'_>) -> bool {
    peer.options.tls.as_ref().is_some_and(Tls::has_client_certificate)
}

/// A client without a certificate that notices whether the broker asks for one.
#[derive(Debug, Default)]
struct AskedForCertificate(AtomicBool);

impl ResolvesClientCert for AskedForCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// What is wrong with a TLS handshake, and what to do. `asked`: the broker has asked for a certificate, and we have
/// none.
async fn tls_failure(peer: &Peer<'_>, failure: &io::Error, asked: bool) -> Option<String> {
    peer.tls.as_ref()?;
    let shows_certificate = shows_certificate(peer);
    let Some(error) = failure.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) else {
        let broken_off = matches!(failure.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof);
        let likely = match shows_certificate {
            true => "perhaps it does not accept the client's certificate",
            false if !asked => "perhaps it has no protocol version or cipher suite in common with this program",
            false => "perhaps it asks for a client certificate (the parameters `certfile` and `keyfile`)",
        };
        return broken_off.then(|| format!("it broke off the TLS handshake ({failure}); its log says why; {likely}"));
    };
    Some(match error {
        rustls::Error::InvalidCertificate(error) => bad_certificate(peer, error),
        rustls::Error::InvalidMessage(_) => match plain_greeting(peer).await.as_deref() {
            Ok([1, 0, 0, ..]) => {
                "RabbitMQ speaks there without TLS: use amqp://, or its port for TLS (usually 5671)".into()
            }
            _ => format!("what answers there does not speak TLS; {}?", usual_port(peer.options)),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure if asked => {
                "it asks for a client certificate: name one with the parameters `certfile` and `keyfile`".into()
            }
            AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity
            | AlertDescription::ProtocolVersion => format!(
                "it has no protocol version or cipher suite in common with this program ({alert:?}): this one speaks TLS 1.3, \
                 and TLS 1.2 with ECDHE key exchange (`ssl_options.versions` and `ssl_options.ciphers` in rabbitmq.conf)"
            ),
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::UnsupportedCertificate
                if shows_certificate =>
            {
                format!(
                    "it does not accept the client's certificate ({alert:?}): has it expired, or is it from an authority that RabbitMQ does not trust?"
                )
            }
            alert => format!("it refused the TLS handshake ({alert:?}); its log says why"),
        },
        error => format!("the TLS handshake failed ({error})"),
    })
}

fn bad_certificate(peer: &Peer<'_>, error: &CertificateError) -> String {
    let host = peer.host.bare_name();
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired: it has to be renewed there (or is the clock of this machine wrong?)".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: is the clock of this machine right?".into()
        }
        CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
            let names: Vec<_> = presented.iter().map(|name| bare(name)).collect();
            let names = names.join(", ");
            format!("its certificate is for {names} and not for `{host}`: connect by a name that it is for")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("its certificate is not for `{host}`: connect by the name that it is for")
        }
        CertificateError::UnknownIssuer => {
            "its certificate is signed by itself or by an authority that is not trusted here: name that authority's \
             certificate with the parameter `cafile`"
                .into()
        }
        CertificateError::Other(error) if error.to_string().contains("CaUsedAsEndEntity") => {
            "its certificate is that of an authority, and none for a server: it needs one for a server, signed by that \
             authority"
                .into()
        }
        error => format!("its certificate cannot be accepted ({error})"),
    }
}

/// `DnsName("localhost")` as `localhost`.
fn bare(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    format!("`{}`", inner.trim_matches('"'))
}

/// The code and text of a `connection.close`, which amqprs shows as a debug print of the frame.
fn words_of_refusal(error: &str) -> Option<String> {
    let after = |marker: &str| error.split_once(marker).map(|(_, rest)| rest);
    let code: String = after("reply_code: ")?.chars().take_while(char::is_ascii_digit).collect();
    let text = after("reply_text: ")?.split_once('"')?.1.split_once('"')?.0;
    Some(format!("{code} {text}"))
}
