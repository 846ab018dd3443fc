//! The server at the other end, before the login.

use std::{net::SocketAddr, sync::Arc};

use tokio_rustls::rustls::ClientConfig;

use crate::{ConnectOptions, options::Host};

/// A server that accepts TCP connections, and should be a RabbitMQ.
pub(crate) struct Peer<'a> {
    pub options: &'a ConnectOptions,
    pub host: &'a Host,
    pub address: SocketAddr,
    pub tls: Option<Arc<ClientConfig>>,
}
