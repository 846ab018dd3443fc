//! A virtual host for one test.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Broker, management::path_segment, ports::random};

/// A virtual host and its user. Both are deleted when this value is dropped.
///
/// Paths of the management interface are written as in its documentation, with `{vhost}` for the name of this virtual
/// host: `/api/queues/{vhost}/hello`.
pub struct VirtualHost<'broker> {
    broker: &'broker Broker,
    name: String,
    password: String,
}

impl<'broker> VirtualHost<'broker> {
    pub(super) async fn create(broker: &'broker Broker) -> Result<VirtualHost<'broker>> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let management = broker.management()?;
        let host = VirtualHost {
            broker,
            name: format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            // Random, so that a test can search outputs that must not contain a password for it.
            password: format!("secret-{:016x}", random()),
        };
        let name = &host.name;
        let everything = json!({"configure": ".*", "write": ".*", "read": ".*"});
        let user = json!({"password": host.password, "tags": ""});
        for (path, body) in [
            (format!("/api/vhosts/{name}"), None),
            (format!("/api/users/{name}"), Some(user)),
            (format!("/api/permissions/{name}/{name}"), Some(everything)),
        ] {
            management.request("PUT", &path, body).await?;
        }
        Ok(host)
    }

    /// The URL for programs, with the virtual host, its user and that user's password.
    pub fn url(&self) -> String {
        let VirtualHost { name, password, broker } = self;
        format!("amqp://{name}:{password}@{}:{}/{name}", broker.host, broker.port)
    }

    /// The same with TLS. An error if the broker does not speak TLS.
    pub fn tls_url(&self) -> Result<String> {
        let VirtualHost { name, password, broker } = self;
        let port = broker.tls_port.context("this broker does not speak TLS")?;
        Ok(format!("amqps://{name}:{password}@{}:{port}/{name}", broker.host))
    }

    /// Its name, and its user's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its user's password, which no program may ever print.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The broker of this virtual host.
    pub fn broker(&self) -> &'broker Broker {
        self.broker
    }

    /// Asks the management interface. Its answers can be five seconds old.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.request("GET", path, None).await
    }

    /// Creates or changes something.
    pub async fn put(&self, path: &str, body: Value) -> Result<()> {
        self.request("PUT", path, Some(body)).await.map(drop)
    }

    /// Runs an action, such as `/api/queues/{vhost}/hello/get`.
    pub async fn post(&self, path: &str, body: Value) -> Result<Value> {
        self.request("POST", path, Some(body)).await
    }

    /// Deletes something.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.request("DELETE", path, None).await.map(drop)
    }

    /// A queue as the management interface shows it: `durable`, `arguments`, `policy` and so on.
    pub async fn queue(&self, name: &str) -> Result<Value> {
        self.get(&format!("/api/queues/{{vhost}}/{}", path_segment(name))).await
    }

    /// The connections to this virtual host that are open now.
    pub async fn connections(&self) -> Result<Vec<Value>> {
        let path = format!("/api/connections/username/{}", self.name);
        match self.get(&path).await? {
            Value::Array(connections) => Ok(connections),
            other => bail!("GET {path}: not a list: {other}"),
        }
    }

    /// Closes every connection to this virtual host, and only these, and waits until they are closed. At least one must exist
    /// or come.
    pub async fn close_all_connections(&self) -> Result<()> {
        let names = |list: Vec<Value>| list.into_iter().map(|one| one["name"].clone());
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut cut: Vec<Value> = Vec::new();
        // On a busy broker the list shows a new connection a moment after its client has connected.
        while cut.is_empty() {
            ensure!(Instant::now() < deadline, "there is no connection to {}", self.name);
            sleep(Duration::from_millis(20)).await;
            cut = names(self.connections().await?).collect();
        }
        let mut asked: Option<Instant> = None;
        // The broker answers before the connections are closed. A client may already have a new one.
        while names(self.connections().await?).any(|name| cut.contains(&name)) {
            ensure!(Instant::now() < deadline, "the connections of {} are still open", self.name);
            if asked.is_none_or(|asked| asked.elapsed() > Duration::from_secs(3)) {
                asked = Some(Instant::now());
                self.ask_to_close_connections().await?;
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Asks the broker to close every connection to this virtual host, without waiting until they are closed.
    pub async fn ask_to_close_connections(&self) -> Result<()> {
        // By user, because the broker always knows the user of a connection. Its list of connections by virtual host can be
        // five seconds old.
        self.delete(&format!("/api/connections/username/{}", self.name)).await
    }

    async fn request(&self, method: &'static str, path: &str, body: Option<Value>) -> Result<Value> {
        let path = path.replace("{vhost}", &self.name);
        self.broker.management()?.request(method, &path, body).await
    }
}

impl Drop for VirtualHost<'_> {
    fn drop(&mut self) {
        // If this fails, the broker has been stopped. Its data is removed with it.
        if let Ok(management) = self.broker.management() {
            for what in ["vhosts", "users"] {
                let path = format!("/api/{what}/{}", self.name);
                let patience = Duration::from_secs(2);
                drop(management.request_blocking("DELETE", &path, None, patience));
            }
        }
    }
}
