//! Where one user sits: a virtual host and a proxy of its own.

use std::time::Duration;

use anyhow::{Context, Result};
use common::{ConnectOptions, ConnectionManager};
use testbed::{Broker, Proxy, VirtualHost};

/// A virtual host of its own, with one way to it that faults are made on, and one that is spared.
pub struct Access<'broker> {
    /// All its connections but the spared ones are in the name of its user.
    pub host: VirtualHost<'broker>,
    /// What the user's connections go through.
    pub proxy: Proxy,
}

impl<'broker> Access<'broker> {
    /// A new one.
    pub async fn new(broker: &'broker Broker) -> Result<Self> {
        let host = broker.virtual_host().await?;
        let proxy = Proxy::start(broker.port()).await?;
        Ok(Self { host, proxy })
    }

    /// For the user: through the proxy. A silent peer is noticed as soon as can be.
    pub fn options(&self) -> Result<ConnectOptions> {
        let (name, password, port) = (self.host.name(), self.host.password(), self.proxy.port());
        let url = format!("amqp://{name}:{password}@127.0.0.1:{port}/{name}?heartbeat=2");
        Ok(url.parse::<ConnectOptions>()?.name("faults"))
    }

    /// Spared: past the proxy, in another name. It feeds and checks, and is back at once after a restart, so that the
    /// user's return is what is measured.
    pub fn spared(&self) -> Result<ConnectionManager> {
        let url = self.host.url();
        let (_, place) = url.split_once('@').context("a URL without a user")?;
        let options: ConnectOptions = format!("amqp://guest:guest@{place}").parse()?;
        Ok(ConnectionManager::new(options.reconnect_interval(Duration::from_millis(30)).name("spared")))
    }
}
