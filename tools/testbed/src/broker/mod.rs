//! A running RabbitMQ: where it comes from, and what a test may do to it.

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

/// Where the lesson programs look without `AMQP_URL`.
pub const DEFAULT_PORT: u16 = 5672;

/// How long a broker may take until it answers, after its container or process has been started.
const READY: Duration = Duration::from_secs(60);

/// A running RabbitMQ: one of our own, or the one that `AMQP_URL` names.
///
/// One of our own ends with this value, and nothing of it is left: no container, no process, no
/// directory. That holds for a panic, for `kill -9` and for a value in a static, too.
pub struct Broker {
    machinery: Box<dyn Machinery>,
    url: String,
    host: String,
    port: u16,
    tls_port: Option<u16>,
    management: Option<Management>,
}

/// What can be done to the machinery under a broker: a container, a process. By default nothing.
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
    /// Whether the container or the process is there.
    async fn is_running(&self) -> Result<bool> {
        Ok(true)
    }
    /// The host and port of its own, where others lead to it.
    async fn own_address(&self) -> Option<(String, u16)> {
        None
    }
    /// What it printed last, in one line, for when it does not start.
    async fn last_words(&self) -> String {
        String::new()
    }
}

fn not_ours<T>() -> Result<T> {
    bail!("the RabbitMQ that AMQP_URL names is not ours to control")
}

impl Broker {
    /// Starts a broker of our own, in Docker or as a private process, on free ports.
    pub async fn start() -> Result<Broker> {
        Broker::builder().start().await
    }

    /// The same with a choice of ports, and a word on each step.
    pub fn builder() -> BrokerBuilder {
        BrokerBuilder::default()
    }

    /// The broker that `AMQP_URL` names, if it is set and not empty, else one of our own.
    pub async fn find_or_start(report: impl Fn(&str) + Send + Sync + 'static) -> Result<Broker> {
        match std::env::var("AMQP_URL") {
            Ok(url) if !url.is_empty() => found::broker(&url).await.context("AMQP_URL is set, but it cannot be used"),
            _ => Broker::builder().report(report).start().await,
        }
    }

    /// The broker that all tests of this process share, started by the first that asks. Each test takes a
    /// [virtual host](Broker::virtual_host) of its own from it, and leaves the broker itself alone.
    pub async fn shared() -> Result<&'static Broker> {
        static SHARED: OnceCell<Result<Broker, String>> = OnceCell::const_new();
        // The failure is kept, too: the other tests would only run into the same one, one by one.
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

    /// The URL without detours, for measuring: what comes to a container's published port may pass through a process of
    /// Docker's, which costs a good part of the throughput. [`url`](Broker::url), where there is no other way.
    pub async fn direct_url(&self) -> String {
        let Some((host, port)) = self.machinery.own_address().await else { return self.url.clone() };
        // On macOS and Windows containers have a network that is out of reach, and nobody says so.
        match timeout(Duration::from_secs(1), probe::version(&host, port)).await {
            Ok(Ok(_)) => format!("amqp://guest:guest@{host}:{port}"),
            _ => self.url.clone(),
        }
    }

    /// The port at which it speaks AMQP.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port at which it speaks AMQP in TLS, if it was started [so](BrokerBuilder::tls).
    pub fn tls_port(&self) -> Option<u16> {
        self.tls_port
    }

    /// The page for a browser, user `guest`, password `guest`; unknown for a broker that was found.
    pub fn management_url(&self) -> Option<&str> {
        self.management.as_ref().map(Management::url)
    }

    /// Which RabbitMQ this is, as `4.3.6`.
    pub async fn version(&self) -> Result<String> {
        probe::version(&self.host, self.port).await
    }

    /// For a test that this RabbitMQ may be too old for: whether it is older than `least`, as `4.3`. Then it
    /// is [skipped](skip).
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

    /// A virtual host of its own for one test, with a user who can reach nothing else: what one test
    /// declares, no other can see. It goes when the value is dropped.
    pub async fn virtual_host(&self) -> Result<VirtualHost<'_>> {
        VirtualHost::create(self).await
    }

    /// Runs `rabbitmqctl` on this broker and gives back what it prints. Takes a second or two.
    pub async fn rabbitmqctl(&self, arguments: &[&str]) -> Result<String> {
        self.machinery.rabbitmqctl(arguments).await
    }

    /// Stops it in good order. What is durable is there again after [`Broker::start_again`].
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

    /// Freezes it: its connections stay open, and nobody answers on them.
    pub async fn pause(&self) -> Result<()> {
        self.machinery.pause().await
    }

    /// Lets it go on after [`Broker::pause`].
    pub async fn resume(&self) -> Result<()> {
        self.machinery.resume().await
    }

    /// Waits until its container or process has ended, by whatever cause, and gives back what it printed last. A
    /// broker that was found never ends, as far as can be seen from here.
    pub async fn ended(&self) -> Result<String> {
        while self.machinery.is_running().await? {
            sleep(Duration::from_millis(500)).await;
        }
        Ok(self.machinery.last_words().await)
    }

    /// Ends it and waits until nothing of it is left, without blocking the runtime as a drop does.
    pub async fn shutdown(self) -> Result<()> {
        Ok(tokio::task::spawn_blocking(move || drop(self)).await?)
    }

    fn management(&self) -> Result<&Management> {
        self.management.as_ref().context("the management interface of a broker named by AMQP_URL is not known")
    }

    /// Waits until programs can use it. No event tells that of a broker that has run before: its
    /// log has the line already.
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

/// Says why a test cannot run here, for one that returns then: in a line that begins with `skipped:` and names the test,
/// on stderr, past the test runner's capture, to be seen and to be counted.
pub fn skip(why: &str) -> io::Result<()> {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    writeln!(io::stderr(), "skipped: {test}: {why}")
}

/// A message in one line, for a list with one line per step.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What Erlang says when somebody else has taken a port.
const PORT_TAKEN: &str = "eaddrinuse";

/// The end of a log in one line, and no longer than anybody would read: Erlang's can be 30 kilobytes.
fn last_words(log: &str) -> String {
    if log.contains(PORT_TAKEN) {
        return format!("somebody else has taken one of its ports ({PORT_TAKEN})");
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
    fn the_last_words_are_those_that_tell_something() {
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
