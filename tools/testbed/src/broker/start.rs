//! The steps by which a broker of our own is started: the first that works.

use std::env;

#[cfg(unix)]
use anyhow::Context;
use anyhow::{Result, bail};

use super::{
    Broker, ServerTls,
    container::in_a_container,
    docker::{self, DockerBroker},
    ports::Ports,
};
#[cfg(unix)]
use super::{
    install,
    node::{self, Commands, NodeBroker},
};

/// How often other ports are tried after somebody else has taken the ones just found free.
const ATTEMPTS: usize = 5;

/// The choices for a broker of our own.
pub struct BrokerBuilder {
    port: Option<u16>,
    management_port: Option<u16>,
    settings: Settings,
    report: Box<dyn Fn(&str) + Send + Sync>,
}

impl Default for BrokerBuilder {
    fn default() -> BrokerBuilder {
        BrokerBuilder { port: None, management_port: None, settings: Settings::default(), report: Box::new(|_| ()) }
    }
}

/// How a broker of our own differs from one as it is installed.
#[derive(Default)]
pub(super) struct Settings {
    pub tls: Option<ServerTls>,
    /// Lines of `rabbitmq.conf`.
    pub configuration: String,
}

/// `TESTBED_BROKER`: only this way, and no other.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Docker,
    Node,
}

impl BrokerBuilder {
    /// Speak AMQP on the first free port from this one on.
    pub fn port_from(mut self, port: u16) -> BrokerBuilder {
        self.port = Some(port);
        self
    }

    /// Offer the management page on the first free port from this one on.
    pub fn management_port_from(mut self, port: u16) -> BrokerBuilder {
        self.management_port = Some(port);
        self
    }

    /// Speak TLS, too, on a port of its own.
    pub fn tls(mut self, tls: ServerTls) -> BrokerBuilder {
        self.settings.tls = Some(tls);
        self
    }

    /// Lines of [`rabbitmq.conf`](https://www.rabbitmq.com/docs/configure), such as `heartbeat = 10`, after those that are
    /// needed anyway.
    pub fn configuration(mut self, lines: &str) -> BrokerBuilder {
        self.settings.configuration += lines;
        self.settings.configuration.push('\n');
        self
    }

    /// Called with a line of text for each step that is tried, and for each that fails.
    pub fn report(mut self, report: impl Fn(&str) + Send + Sync + 'static) -> BrokerBuilder {
        self.report = Box::new(report);
        self
    }

    /// Starts it; ready for clients when this returns.
    pub async fn start(self) -> Result<Broker> {
        let only = wanted_kind()?;
        let mut failures = Vec::new();
        if only != Some(Kind::Node) {
            match self.in_docker().await {
                Ok(broker) => return Ok(broker),
                Err(error) => self.note(&mut failures, "Docker", &error),
            }
        }
        if only != Some(Kind::Docker) {
            match self.as_process().await {
                Ok(broker) => return Ok(broker),
                Err(error) => self.note(&mut failures, "rabbitmq-server", &error),
            }
        }
        let container = if in_a_container() {
            "\n  (This is a container: `localhost` is the container itself. Name the machine, or another container on the same \
             network, as in amqp://guest:guest@host.docker.internal:5672)"
        } else {
            ""
        };
        bail!(
            "no RabbitMQ could be started; set AMQP_URL to the URL of one that you have, or help here:\n  {}{container}",
            failures.join("\n  ")
        )
    }

    fn note(&self, failures: &mut Vec<String>, step: &str, error: &anyhow::Error) {
        let line = format!("{step}: {error:#}");
        (self.report)(&line);
        failures.push(line);
    }

    async fn in_docker(&self) -> Result<Broker> {
        let mut attempt = 1;
        let (broker, ports) = loop {
            let ports = Ports::choose(self.port, self.management_port, self.settings.tls.is_some())?;
            match DockerBroker::start(ports, &self.settings, &*self.report).await {
                Ok(broker) => break (broker, ports),
                Err(error) if docker::is_port_taken(&error) && attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        };
        let host = broker.host().to_owned();
        let broker = Broker::own(broker, host, ports);
        broker.ready().await?;
        Ok(broker)
    }

    /// With the `rabbitmq-server` of this machine; one is installed if there is none and we may.
    #[cfg(unix)]
    async fn as_process(&self) -> Result<Broker> {
        let commands = match Commands::find() {
            Ok(commands) => commands,
            Err(error) => {
                let installed = install::rabbitmq_server(&*self.report).await;
                installed.context(error.to_string())?;
                Commands::find()?
            }
        };
        let mut attempt = 1;
        loop {
            let ports = Ports::choose(self.port, self.management_port, self.settings.tls.is_some())?;
            let node = NodeBroker::start(commands.clone(), ports, &self.settings, &*self.report).await?;
            let broker = Broker::own(node, "localhost".to_owned(), ports);
            match broker.ready().await {
                Ok(()) => return Ok(broker),
                Err(error) if node::is_port_taken(&error) && attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    #[cfg(not(unix))]
    async fn as_process(&self) -> Result<Broker> {
        bail!("a node of our own needs a Unix system")
    }
}

fn wanted_kind() -> Result<Option<Kind>> {
    match env::var("TESTBED_BROKER").unwrap_or_default().as_str() {
        "" => Ok(None),
        "docker" => Ok(Some(Kind::Docker)),
        "node" => Ok(Some(Kind::Node)),
        other => bail!("TESTBED_BROKER is `{other}`; it can be `docker` or `node`, or be left out"),
    }
}
