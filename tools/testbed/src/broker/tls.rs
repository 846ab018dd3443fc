//! The TLS settings of a broker.

use crate::Identity;

/// How a broker speaks TLS, on a second port.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// The certificate that it shows to clients, and its key.
    pub identity: Identity,
    /// The authority whose client certificates it trusts, in PEM format.
    pub authority: String,
    /// Whether clients have to show a certificate. If not, they are not asked for one. If yes, the certificate's common name
    /// can be the user (mechanism EXTERNAL).
    pub client_certificates: bool,
}

impl ServerTls {
    /// The plugins that it needs, including the management interface.
    pub(super) const PLUGINS: &str = "[rabbitmq_management,rabbitmq_auth_mechanism_ssl].\n";

    /// The files that the configuration names, with their contents.
    pub(super) fn files(&self) -> [(&'static str, &str); 3] {
        [
            ("tls-authority.pem", &self.authority),
            ("tls-server.pem", &self.identity.certificate),
            ("tls-server.key", &self.identity.key),
        ]
    }

    /// The lines of `rabbitmq.conf`, for a listener at `listen`, with the files in `directory`.
    pub(super) fn configuration(&self, listen: &str, directory: &str) -> String {
        let verify = if self.client_certificates { "verify_peer" } else { "verify_none" };
        format!(
            "listeners.ssl.1 = {listen}\n\
             ssl_options.cacertfile = {directory}/tls-authority.pem\n\
             ssl_options.certfile = {directory}/tls-server.pem\n\
             ssl_options.keyfile = {directory}/tls-server.key\n\
             ssl_options.verify = {verify}\n\
             ssl_options.fail_if_no_peer_cert = {}\n\
             ssl_cert_login_from = common_name\n\
             auth_mechanisms.1 = PLAIN\n\
             auth_mechanisms.2 = EXTERNAL\n",
            self.client_certificates
        )
    }
}
