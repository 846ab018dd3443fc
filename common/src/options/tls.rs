//! TLS with [rustls](https://docs.rs/rustls): which brokers to trust, and which certificate this client shows.

use std::{
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::rustls::{
    self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use crate::{Error, Result, escape::shortened};

/// A larger file cannot be a certificate or a key.
const LARGEST_FILE: u64 = 8 * 1024 * 1024;

/// How to connect with TLS: what a URL says with `amqps://` and its parameters
/// ([RabbitMQ's guide](https://www.rabbitmq.com/docs/ssl)).
///
/// TLS 1.2 and 1.3. The broker has to show a certificate for the host in the URL. It must be signed by an authority in
/// `cafile`, `capath` or `cadata`, or, without these three, by one that this system trusts (`SSL_CERT_FILE` and
/// `SSL_CERT_DIR` name others). Files are read when the options are made, so that a wrong file is an error at once.
/// They are read again for each connection, so that a renewed certificate needs no restart.
///
/// ```no_run
/// use common::{ConnectOptions, Tls};
///
/// let options = ConnectOptions::default()
///     .hosts([("rabbit.example", 5671)])?
///     .tls(Tls::new().cafile("ca.pem").certfile("client.pem").keyfile("client.key"))?
///     .external()?; // log in with the certificate instead of a password
/// # Ok::<(), common::Error>(())
/// ```
///
/// Other ways to say what to trust:
///
/// ```
/// use common::Tls;
///
/// let directory = Tls::new().capath("/etc/rabbitmq/trusted");
/// let in_memory = Tls::new().cadata("-----BEGIN CERTIFICATE-----…");
/// let tests_only = Tls::new().no_verify_ssl(true);
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tls {
    cafile: Option<PathBuf>,
    capath: Option<PathBuf>,
    cadata: Option<String>,
    certfile: Option<PathBuf>,
    keyfile: Option<PathBuf>,
    no_verify_ssl: bool,
}

impl Tls {
    /// Trusts the authorities that the system trusts, and shows no certificate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the authorities whose certificates are in this PEM file, and not the system's.
    pub fn cafile(mut self, file: impl Into<PathBuf>) -> Self {
        self.cafile = Some(file.into());
        self
    }

    /// Trusts the authorities whose certificates are in the PEM files of this directory, and not the system's.
    pub fn capath(mut self, directory: impl Into<PathBuf>) -> Self {
        self.capath = Some(directory.into());
        self
    }

    /// Trusts the authorities with these certificates, in PEM format, and not the system's.
    pub fn cadata(mut self, pem: impl Into<String>) -> Self {
        self.cadata = Some(pem.into());
        self
    }

    /// The certificate to show to the broker, followed by those that lead to its authority: a PEM file.
    pub fn certfile(mut self, file: impl Into<PathBuf>) -> Self {
        self.certfile = Some(file.into());
        self
    }

    /// The certificate's private key: a PEM file, not encrypted. Default: the key is in the certificate's file, too.
    pub fn keyfile(mut self, file: impl Into<PathBuf>) -> Self {
        self.keyfile = Some(file.into());
        self
    }

    /// With `true`, any certificate is accepted: **any server is accepted as the broker, and gets the password.** Each
    /// connection logs a warning.
    pub fn no_verify_ssl(mut self, believe_anybody: bool) -> Self {
        self.no_verify_ssl = believe_anybody;
        self
    }

    pub(crate) fn has_client_certificate(&self) -> bool {
        self.certfile.is_some()
    }

    pub(crate) fn verifies(&self) -> bool {
        !self.no_verify_ssl
    }

    /// The URL parameters for these settings.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = (&'static str, String)> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        [
            ("cafile", path(&self.cafile)),
            ("capath", path(&self.capath)),
            ("cadata", self.cadata.clone()),
            ("certfile", path(&self.certfile)),
            ("keyfile", path(&self.keyfile)),
            ("no_verify_ssl", self.no_verify_ssl.then(|| "1".into())),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
    }

    /// The name that the broker's certificate must contain.
    pub(crate) fn server_name(host: &str) -> Result<ServerName<'static>> {
        ServerName::try_from(host.to_owned()).map_err(|_| {
            Error::Invalid(format!(
                "a certificate cannot be for the host `{}`, because it is not a DNS name",
                shortened(host)
            ))
        })
    }

    /// Checks that all files can be used. Does not read the system's own certificates yet.
    pub(crate) fn check(&self) -> Result<()> {
        let roots = self.given_roots()?.unwrap_or_else(RootCertStore::empty);
        self.config_with(roots).map(drop)
    }

    /// Reads all files. It blocks for a few milliseconds.
    pub(crate) fn config(&self) -> Result<ClientConfig> {
        let roots = match self.given_roots()? {
            Some(roots) => roots,
            None if self.no_verify_ssl => RootCertStore::empty(),
            None => system_roots()?,
        };
        self.config_with(roots)
    }

    fn config_with(&self, roots: RootCertStore) -> Result<ClientConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| Error::text(format!("TLS cannot be used: {error}")))?;
        let builder = match self.no_verify_ssl {
            true => builder.dangerous().with_custom_certificate_verifier(Arc::new(BelieveAnybody(provider))),
            false => builder.with_root_certificates(roots),
        };
        let Some(certfile) = &self.certfile else {
            return match &self.keyfile {
                Some(_) => Err(Error::Invalid("the parameter `keyfile` needs `certfile` beside it".into())),
                None => Ok(builder.with_no_client_auth()),
            };
        };
        let certificates = certificates("certfile", certfile)?;
        let (key, keyfile) = match &self.keyfile {
            Some(file) => ("keyfile", file),
            None => ("certfile", certfile),
        };
        builder.with_client_auth_cert(certificates, private_key(key, keyfile)?).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                let reason = format!("it is not the key of the certificate in `{}`", certfile.display());
                unusable(key, keyfile, &reason, "the private key that the certificate was made for")
            }
            rustls::Error::InvalidCertificate(error) => {
                unusable("certfile", certfile, &format!("its certificate is broken ({error})"), "a PEM file")
            }
            error => unusable(key, keyfile, &format!("rustls cannot use its key ({error})"), KEYS),
        })
    }

    /// The authorities named by the user, if there are any.
    fn given_roots(&self) -> Result<Option<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        if let Some(file) = &self.cafile {
            for certificate in certificates("cafile", file)? {
                roots.add(certificate).map_err(|error| not_a_root("cafile", file, &error))?;
            }
        }
        if let Some(directory) = &self.capath {
            for (file, certificate) in directory_certificates(directory)? {
                roots.add(certificate).map_err(|error| not_a_root("capath", &file, &error))?;
            }
        }
        if let Some(pem) = &self.cadata {
            // The value can be a page long, so messages do not contain it.
            let unusable = |reason: &str| {
                Error::Invalid(format!(
                    "the parameter `cadata` cannot be used: {reason}; allowed are certificates in PEM format, \
                     percent-encoded (`+` is %2B)"
                ))
            };
            let certificates = read_certificates(pem.as_bytes()).map_err(|reason| unusable(&reason))?;
            for certificate in certificates {
                roots.add(certificate).map_err(|error| unusable(&error.to_string()))?;
            }
        }
        Ok((!roots.is_empty()).then_some(roots))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.parameters().map(|(key, value)| (key, shortened(&value)))).finish()
    }
}

const KEYS: &str = "an RSA, ECDSA or Ed25519 key in PEM format";

fn unusable(key: &str, path: &Path, reason: &str, allowed: &str) -> Error {
    let path = path.to_string_lossy();
    Error::Invalid(format!("the parameter `{key}` cannot be `{}`: {reason}; allowed is {allowed}", path.escape_debug()))
}

fn not_a_root(key: &str, file: &Path, error: &rustls::Error) -> Error {
    unusable(key, file, &format!("a certificate in it is broken ({error})"), "the certificates of authorities")
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>> {
    let read = || {
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LARGEST_FILE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large"));
        }
        Ok(bytes)
    };
    read().map_err(|error| unusable(key, path, &error.to_string(), "a PEM file that this program may read"))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    read_certificates(&read(key, path)?).map_err(|reason| unusable(key, path, &reason, "certificates in PEM format"))
}

fn read_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("broken PEM ({error})"))?;
    if certificates.is_empty() { Err("there is no certificate in it".into()) } else { Ok(certificates) }
}

/// The certificates in the files of a directory. Other files are skipped, as OpenSSL does.
fn directory_certificates(directory: &Path) -> Result<Vec<(PathBuf, CertificateDer<'static>)>> {
    let allowed = "a directory with certificates in PEM format";
    let unreadable = |error: io::Error| unusable("capath", directory, &error.to_string(), allowed);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_file() {
            let certificates = read_certificates(&read("capath", &path)?).unwrap_or_default();
            found.extend(certificates.into_iter().map(|certificate| (path.clone(), certificate)));
        }
    }
    match found.is_empty() {
        true => Err(unusable("capath", directory, "there is no certificate in it", allowed)),
        false => Ok(found),
    }
}

fn private_key(key: &str, path: &Path) -> Result<PrivateKeyDer<'static>> {
    let pem = read(key, path)?;
    if String::from_utf8_lossy(&pem).contains("ENCRYPTED") {
        let decrypt = "a key without a passphrase (`openssl pkey -in FILE -out FILE` writes one)";
        return Err(unusable(key, path, "its private key is encrypted", decrypt));
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound if key == "certfile" => {
            unusable(key, path, "there is no private key in it, and the parameter `keyfile` is missing", KEYS)
        }
        rustls::pki_types::pem::Error::NoItemsFound => unusable(key, path, "there is no private key in it", KEYS),
        error => unusable(key, path, &format!("broken PEM ({error})"), KEYS),
    })
}

fn system_roots() -> Result<RootCertStore> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some systems have a few certificates that are too old for rustls.
    roots.add_parsable_certificates(loaded.certs);
    if roots.is_empty() {
        let reason = loaded.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(Error::Invalid(format!(
            "this system has no trusted certificates{reason}: install them (`ca-certificates`), or name the broker's \
             authority with the parameter `cafile`"
        )));
    }
    Ok(roots)
}

/// Checks that the other side has the key of its certificate, but not whether the certificate is trusted.
#[derive(Debug)]
struct BelieveAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for BelieveAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
