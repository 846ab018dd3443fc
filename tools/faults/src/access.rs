//! How one user reaches the broker: through a virtual host and a proxy of its own.

use std::time::Duration;

use anyhow::{Context, Result};
use common::{ConnectOptions, ConnectionManager};
use testbed::{Broker, Proxy, VirtualHost};

/// A virtual host with two ways to it: through a proxy, which makes faults, and directly.
pub struct Access<'broker> {
    /// The connections through the proxy log in as the user of this virtual host. The direct ones log in as `guest`.
    pub host: VirtualHost<'broker>,
    /// What the user's connections go through.
    pub proxy: Proxy,
}

impl<'broker> Access<'broker> {
    /// Creates a virtual host and a proxy.
    pub async fn new(broker: &'broker Broker) -> Result<Self> {
        let host = broker.virtual_host().await?;
        let proxy = Proxy::start(broker.port()).await?;
        Ok(Self { host, proxy })
    }

    /// The options of the user's connections, which go through the proxy. The heartbeat is as short as possible, so
    /// that a silent peer is noticed soon.
    pub fn options(&self) -> Result<ConnectOptions> {
        let (name, password, port) = (self.host.name(), self.host.password(), self.proxy.port());
        let url = format!("amqp://{name}:{password}@127.0.0.1:{port}/{name}?heartbeat=2");
        Ok(url.parse::<ConnectOptions>()?.name("faults"))
    }

    /// A direct connection, as another user, so that no fault of the proxy hits it. It sends messages and checks
    /// results. After a restart it reconnects at once, so that only the user's recovery is measured.
    pub fn spared(&self) -> Result<ConnectionManager> {
        let url = self.host.url();
        let (_, place) = url.split_once('@').context("a URL without a user")?;
        let options: ConnectOptions = format!("amqp://guest:guest@{place}").parse()?;
        Ok(ConnectionManager::new(options.reconnect_interval(Duration::from_millis(30)).name("spared")))
    }
}
