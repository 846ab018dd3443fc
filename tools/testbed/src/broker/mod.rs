//! A running RabbitMQ: how it is found or started, and what a test can do with it.

mod container;
pub mod ctl;
mod daemon;
mod docker;
mod found;
#[cfg(unix)]
mod install;
mod management;
#[cfg(unix)]
mod node;
#[cfg(unix)]
mod node_directory;
mod ports;
mod probe;
#[cfg(unix)]
mod process_group;
mod start;
mod tls;
mod virtual_host;

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use async_trait::async_trait;
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep, timeout},
};

use self::{management::Management, ports::Ports};
pub use self::{
    probe::{Listener, listener},
    start::BrokerBuilder,
    tls::ServerTls,
    virtual_host::VirtualHost,
};

/// The port that the lesson programs use without `AMQP_URL`.
pub const DEFAULT_PORT: u16 = 5672;

/// How long a broker may take to answer, after its container or process has been started.
const READY: Duration = Duration::from_secs(60);

/// A running RabbitMQ: one that this crate has started, or the one that `AMQP_URL` names.
///
/// A broker that this crate has started ends with this value, and leaves nothing behind: no container, no process, no
/// directory. This is also true after a panic, after `kill -9`, and for a value in a static.
pub struct Broker {
    machinery: Box<dyn Machinery>,
    url: String,
    host: String,
    port: u16,
    tls_port: Option<u16>,
    management: Option<Management>,
}

/// The container or process in which a broker runs, and what can be done with it. By default nothing can.
#[async_trait]
trait Machinery: Send + Sync {
    async fn rabbitmqctl(&self, _arguments: &[&str]) -> Result<String> {
        not_ours()
    }
    async fn stop(&self) -> Result<()> {
        not_ours()
    }
    async fn kill(&self) -> Result<()> {
        not_ours()
    }
    async fn start_again(&self) -> Result<()> {
        not_ours()
    }
    async fn pause(&self) -> Result<()> {
        not_ours()
    }
    async fn resume(&self) -> Result<()> {
        not_ours()
    }
    /// Whether the container or the process runs.
    async fn is_running(&self) -> Result<bool> {
        Ok(true)
    }
    /// Its own host and port, if programs otherwise reach it through a published port.
    async fn own_address(&self) -> Option<(String, u16)> {
        None
    }
    /// What it printed last, in one line: the reason if it does not start.
    async fn last_words(&self) -> String {
        String::new()
    }
}

fn not_ours<T>() -> Result<T> {
    bail!("this program cannot control the RabbitMQ that AMQP_URL names")
}

impl Broker {
    /// Starts a broker, in Docker or as a private node, on free ports.
    pub async fn start() -> Result<Broker> {
        Broker::builder().start().await
    }

    /// The same with a choice of ports, TLS and settings, and with a report of each step.
    pub fn builder() -> BrokerBuilder {
        BrokerBuilder::default()
    }

    /// The broker that `AMQP_URL` names. If the variable is not set or empty, starts a broker.
    pub async fn find_or_start(report: impl Fn(&str) + Send + Sync + 'static) -> Result<Broker> {
        match std::env::var("AMQP_URL") {
            Ok(url) if !url.is_empty() => found::broker(&url).await.context("AMQP_URL is set, but it cannot be used"),
            _ => Broker::builder().report(report).start().await,
        }
    }

    /// The broker that all tests of this process share. The first test that asks starts it. Each test uses a
    /// [virtual host](Broker::virtual_host) of its own, and does not stop or change the broker itself.
    pub async fn shared() -> Result<&'static Broker> {
        static SHARED: OnceCell<Result<Broker, String>> = OnceCell::const_new();
        // A failure is kept, too. Otherwise each of the other tests would wait for the same failure again.
        let broker = SHARED.get_or_init(|| async { Broker::start().await.map_err(|error| format!("{error:#}")) }).await;
        broker.as_ref().map_err(|error| anyhow!("{error}"))
    }

    fn own(machinery: impl Machinery + 'static, host: String, ports: Ports) -> Broker {
        Broker {
            machinery: Box::new(machinery),
            url: format!("amqp://guest:guest@{host}:{}", ports.amqp),
            port: ports.amqp,
            tls_port: ports.tls,
            management: Some(Management::new(&host, ports.management)),
            host,
        }
    }

    /// The URL for programs: `amqp://guest:guest@localhost:PORT`, or what `AMQP_URL` says.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL of the broker's own address, for measuring. The traffic of a container's published port may pass through a
    /// process of Docker's, which takes a good part of the throughput. If the own address cannot be reached, this is
    /// [`url`](Broker::url).
    pub async fn direct_url(&self) -> String {
        let Some((host, port)) = self.machinery.own_address().await else { return self.url.clone() };
        // On macOS and Windows programs cannot reach the network of containers, and get no error: only a timeout tells.
        match timeout(Duration::from_secs(1), probe::version(&host, port)).await {
            Ok(Ok(_)) => format!("amqp://guest:guest@{host}:{port}"),
            _ => self.url.clone(),
        }
    }

    /// The port at which it speaks AMQP.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port at which it speaks AMQP over TLS, if it was started [with TLS](BrokerBuilder::tls).
    pub fn tls_port(&self) -> Option<u16> {
        self.tls_port
    }

    /// The management page for a browser, user `guest`, password `guest`. `None` for the broker that `AMQP_URL` names.
    pub fn management_url(&self) -> Option<&str> {
        self.management.as_ref().map(Management::url)
    }

    /// The version of this RabbitMQ, such as `4.3.6`.
    pub async fn version(&self) -> Result<String> {
        probe::version(&self.host, self.port).await
    }

    /// For a test that needs a newer RabbitMQ: whether this one is older than `least`, such as `4.3`. If it is older, the
    /// test is reported as [skipped](skip).
    ///
    /// ```no_run
    /// # async fn test(broker: testbed::Broker) -> anyhow::Result<()> {
    /// if broker.skip_below("4.3").await? {
    ///     return Ok(());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn skip_below(&self, least: &str) -> Result<bool> {
        let numbers = |version: &str| version.split('.').map_while(|part| part.parse().ok()).collect::<Vec<u32>>();
        let version = self.version().await?;
        let skips = numbers(&version) < numbers(least);
        if skips {
            skip(&format!("it needs RabbitMQ {least} or newer, and this is {version}"))?;
        }
        Ok(skips)
    }

    /// A virtual host of its own for one test, with a user who can access nothing else. Other tests do not see what this
    /// test declares. The virtual host is deleted when the value is dropped.
    pub async fn virtual_host(&self) -> Result<VirtualHost<'_>> {
        VirtualHost::create(self).await
    }

    /// Runs `rabbitmqctl` on this broker and returns what it prints. Takes a second or two.
    pub async fn rabbitmqctl(&self, arguments: &[&str]) -> Result<String> {
        self.machinery.rabbitmqctl(arguments).await
    }

    /// Stops it cleanly. Durable queues and persistent messages are there again after [`Broker::start_again`].
    pub async fn stop(&self) -> Result<()> {
        self.machinery.stop().await
    }

    /// Kills it, as a power failure would.
    pub async fn kill(&self) -> Result<()> {
        self.machinery.kill().await
    }

    /// Starts it again after [`Broker::stop`] or [`Broker::kill`], on the same ports, with its data.
    pub async fn start_again(&self) -> Result<()> {
        self.machinery.start_again().await?;
        self.ready().await
    }

    /// Stops it and starts it again.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start_again().await
    }

    /// Freezes it: its connections stay open, but it does not answer on them.
    pub async fn pause(&self) -> Result<()> {
        self.machinery.pause().await
    }

    /// Lets it continue after [`Broker::pause`].
    pub async fn resume(&self) -> Result<()> {
        self.machinery.resume().await
    }

    /// Waits until its container or process has ended for any reason, and returns what it printed last. For the broker that
    /// `AMQP_URL` names, this waits forever.
    pub async fn ended(&self) -> Result<String> {
        while self.machinery.is_running().await? {
            sleep(Duration::from_millis(500)).await;
        }
        Ok(self.machinery.last_words().await)
    }

    /// Ends it and waits until nothing is left, without blocking the runtime as a drop does.
    pub async fn shutdown(self) -> Result<()> {
        Ok(tokio::task::spawn_blocking(move || drop(self)).await?)
    }

    fn management(&self) -> Result<&Management> {
        self.management.as_ref().context("the management interface of a broker named by AMQP_URL is not known")
    }

    /// Waits until programs can use it, by asking again and again. The line in the log that says so cannot be used, because
    /// the log of a broker that is started again already contains it.
    async fn ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            let error = match self.answers().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !self.machinery.is_running().await? {
                bail!("it ended as soon as it was started: {}", self.machinery.last_words().await);
            }
            if Instant::now() > deadline {
                let seconds = READY.as_secs();
                return Err(error.context(format!("it is not ready after {seconds} s")));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn answers(&self) -> Result<()> {
        self.version().await?;
        if let Some(management) = &self.management {
            management.request("GET", "/api/whoami", None).await?;
        }
        Ok(())
    }
}

/// Says why a test cannot run here; the test then returns. The line begins with `skipped:` and names the test. It goes
/// directly to stderr, past the test runner's capture, so that people see it and scripts can count it.
pub fn skip(why: &str) -> io::Result<()> {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    writeln!(io::stderr(), "skipped: {test}: {why}")
}

/// A message in one line, for a list with one line per step.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What Erlang says when another program uses a port.
const PORT_TAKEN: &str = "eaddrinuse";

/// The end of a log in one short line. A message of Erlang can have 30 kilobytes.
fn last_words(log: &str) -> String {
    if log.contains(PORT_TAKEN) {
        return format!("another program has taken one of its ports ({PORT_TAKEN})");
    }
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut news: Vec<&str> = lines.iter().copied().filter(|line| !line.contains("[info]")).collect();
    if news.is_empty() {
        news = lines;
    }
    let last = news[news.len().saturating_sub(4)..].iter();
    last.map(|line| line.chars().take(200).collect::<String>()).collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::last_words;

    #[test]
    fn the_last_words_leave_out_what_is_only_information() {
        let log = "1 [info] one\n\n2 [error] two\n3 [info] three\n  BOOT FAILED\n";
        assert_eq!(last_words(log), "2 [error] two | BOOT FAILED");
        assert_eq!(last_words("1 [info] one\n2 [info] two\n"), "1 [info] one | 2 [info] two");
        assert_eq!(last_words(""), "");
        assert_eq!(last_words(&"é".repeat(30_000)).chars().count(), 200);
    }

    #[test]
    fn a_taken_port_is_named_as_the_reason() {
        assert!(last_words("{listen_error,{acceptor,15672},eaddrinuse}").contains("taken one of its ports"));
    }
}
