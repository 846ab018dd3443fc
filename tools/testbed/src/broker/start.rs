//! Starts a broker: tries Docker, then a private node, and uses the first that works.

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

/// How often we try other ports if another program takes the ports that were free a moment ago.
const ATTEMPTS: usize = 5;

/// The choices for a broker that is to be started.
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

/// How the broker differs from RabbitMQ's defaults.
#[derive(Default)]
pub(super) struct Settings {
    pub tls: Option<ServerTls>,
    /// Lines of `rabbitmq.conf`.
    pub configuration: String,
}

/// The value of `TESTBED_BROKER`: start a broker of this kind only.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Docker,
    Node,
}

impl BrokerBuilder {
    /// Listens for AMQP on the first free port from this one on.
    pub fn port_from(mut self, port: u16) -> BrokerBuilder {
        self.port = Some(port);
        self
    }

    /// Offers the management page on the first free port from this one on.
    pub fn management_port_from(mut self, port: u16) -> BrokerBuilder {
        self.management_port = Some(port);
        self
    }

    /// Also speaks AMQP over TLS, on a second port.
    pub fn tls(mut self, tls: ServerTls) -> BrokerBuilder {
        self.settings.tls = Some(tls);
        self
    }

    /// Adds lines of [`rabbitmq.conf`](https://www.rabbitmq.com/docs/configure), such as `heartbeat = 10`, after the lines
    /// that are always there.
    pub fn configuration(mut self, lines: &str) -> BrokerBuilder {
        self.settings.configuration += lines;
        self.settings.configuration.push('\n');
        self
    }

    /// Calls `report` with a line of text for each step that is tried, and for each step that fails.
    pub fn report(mut self, report: impl Fn(&str) + Send + Sync + 'static) -> BrokerBuilder {
        self.report = Box::new(report);
        self
    }

    /// Starts the broker. It is ready for clients when this returns.
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
            "no RabbitMQ could be started; set AMQP_URL to the URL of one that you have, or fix one of these:\n  {}{container}",
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

    /// With the `rabbitmq-server` of this machine. If there is none, and this user may, it is installed.
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
        bail!("a private node needs a Unix system")
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
