//! Certificates for tests with TLS: an authority, and the certificates that it signs.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

/// An authority made for one test. Only this test trusts it.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// A certificate and its private key, both in PEM format.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The key, not encrypted.
    pub key: String,
}

impl Authority {
    /// An authority with this name.
    pub fn new(name: &str) -> Result<Authority> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = parameters.self_signed(&key)?.pem();
        Ok(Authority { issuer: Issuer::new(parameters, key), certificate })
    }

    /// Its own certificate in PEM format, for programs that shall trust it.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for a server with these names and addresses.
    pub fn server(&self, names: &[&str]) -> Result<Identity> {
        self.sign(server(names)?)
    }

    /// The same, but it expired in the year 2001.
    pub fn expired_server(&self, names: &[&str]) -> Result<Identity> {
        let mut parameters = server(names)?;
        parameters.not_before = date_time_ymd(2000, 1, 1);
        parameters.not_after = date_time_ymd(2001, 1, 1);
        self.sign(parameters)
    }

    /// A certificate for a client with this common name.
    pub fn client(&self, name: &str) -> Result<Identity> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(parameters)
    }

    fn sign(&self, parameters: CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }
}

impl Identity {
    /// A self-signed certificate for a server with these names and addresses.
    pub fn self_signed_server(names: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = server(names)?.self_signed(&key)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }
}

fn server(names: &[&str]) -> Result<CertificateParams> {
    let mut parameters = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    parameters.distinguished_name.push(DnType::CommonName, "a server of a test");
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(parameters)
}
