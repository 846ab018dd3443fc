//! Runs producers and consumers for minutes and makes a random fault every few seconds. Nothing may be lost, and
//! nothing may be left.

mod accounts;
mod consumer;
mod participants;
mod producer;
mod random_faults;
mod usage;
mod volatile_consumers;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use fastrand::Rng;
use testbed::Broker;
use tokio::{
    runtime::Builder,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use common::{QueueDeclaration, classic_queue, quorum_queue};

use self::{
    accounts::{Accounts, now},
    participants::Participants,
    random_faults::{Made, RandomFaults},
    usage::{Memory, connection_threads},
};
use crate::{panics, wait::within};

/// A queue that is full with its one message. It refuses everything else.
const FULL: &str = "full";

/// A queue that is deleted now and then. The messages that are counted do not go there.
const VOLATILE: &str = "volatile";

/// How long everything may take to come to an end when the faults are over.
const SETTLE: Duration = Duration::from_secs(90);

/// The options of a soak.
#[derive(Debug, Clone)]
pub struct Options {
    /// For how long faults are made.
    pub duration: Duration,
    /// How many producers.
    pub producers: usize,
    /// How many consumers, each with a queue of its own.
    pub consumers: usize,
    /// The seed of all random choices.
    pub seed: u64,
    /// The time from one fault to the next.
    pub every: Duration,
    /// Messages per second, of each producer.
    pub rate: u32,
}

/// A queue with a consumer, classic or quorum.
#[derive(Debug, Clone)]
struct WorkQueue {
    name: String,
    quorum: bool,
}

impl WorkQueue {
    fn declaration(&self) -> QueueDeclaration {
        if self.quorum { quorum_queue(&self.name) } else { classic_queue(&self.name) }
    }
}

fn full_queue() -> QueueDeclaration {
    classic_queue(FULL).with("x-max-length", 1).with("x-overflow", "reject-publish")
}

/// Runs one soak, and prints what happens. Returns whether everything went well.
///
/// # Errors
/// When the broker does not start or does not come back. Errors of producers and consumers are printed.
pub async fn run(options: &Options) -> Result<bool> {
    let broker = Broker::builder().report(|line| eprintln!("{line}")).start().await?;
    println!("RabbitMQ {}; seed {}", broker.version().await?, options.seed);
    // Everything that is tested runs on a runtime of its own, so that its tasks can be counted.
    let tested = Builder::new_multi_thread().worker_threads(2).thread_name("tested").enable_all().build()?;
    let outcome = soak(&broker, options, tested.handle()).await;
    tested.shutdown_background();
    broker.shutdown().await?;
    outcome
}

async fn soak(broker: &Broker, options: &Options, tested: &tokio::runtime::Handle) -> Result<bool> {
    let host = broker.virtual_host().await?;
    let mut rng = Rng::with_seed(options.seed);
    let accounts = Arc::new(Accounts::new(options.producers));
    let mut participants = Participants::start(broker, &host, options, accounts.clone(), &mut rng, tested).await?;
    let mut random_faults = RandomFaults {
        broker,
        host: &host,
        proxies: participants.proxies(),
        close_flags: participants.close_flags.clone(),
        kept_setups: participants.kept_setups.clone(),
        rng: rng.fork(),
        made: Made::default(),
        stalls: JoinSet::new(),
    };
    let (begun, mut memory) = (Instant::now(), Memory::default());
    let mut progress = Progress { accounts: &accounts, begun, confirmed: 0, tested };
    let end = tokio::time::Instant::now() + options.duration;
    tokio::select! {
        outcome = random_faults.run(options.every, end) => outcome?,
        () = progress.show(&mut memory) => {}
    }
    let took = begun.elapsed();
    println!("{} faults in {} s: {}", random_faults.made.total(), took.as_secs(), random_faults.made);

    let outage = participants.end(&accounts).await;
    nothing_left(&participants, &accounts, tested).await?;
    drop(random_faults);
    println!("{} confirmed/s; {}", now(&accounts.figures.confirmed) / took.as_secs().max(1), accounts.figures);
    println!("longest outage {:.1} s; memory in MiB: {memory}", outage.as_secs_f32());
    if let Some(trouble) = memory.trouble() {
        accounts.violation(trouble);
    }
    if panics::counted() > 0 {
        accounts.violation(format!("{} panics", panics::counted()));
    }
    let violations = accounts.violations();
    for violation in &violations {
        println!("FAILED {violation}");
    }
    if violations.is_empty() {
        println!("ok: nothing lost, nothing left");
    }
    // Dropping the virtual host blocks until the broker answers.
    drop(participants);
    tokio::task::block_in_place(|| drop(host));
    Ok(violations.is_empty())
}

/// Checks that no task, thread, connection or channel is left.
async fn nothing_left(
    participants: &Participants<'_>,
    accounts: &Accounts,
    tested: &tokio::runtime::Handle,
) -> Result<()> {
    let ended = async {
        while tested.metrics().num_alive_tasks() > 0 || connection_threads().is_some_and(|threads| threads > 0) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    if within(Duration::from_secs(10), "the end of every task", ended).await.is_err() {
        let (tasks, threads) = (tested.metrics().num_alive_tasks(), connection_threads().unwrap_or_default());
        accounts.violation(format!("{tasks} tasks and {threads} threads are left"));
    }
    let (connections, channels) = participants.left_on_the_broker().await?;
    if connections + channels > 0 {
        accounts.violation(format!("{connections} connections and {channels} channels are left on the broker"));
    }
    println!("left: {} tasks, {connections} connections, {channels} channels", tested.metrics().num_alive_tasks());
    Ok(())
}

/// Shows the progress.
struct Progress<'a> {
    accounts: &'a Accounts,
    begun: Instant,
    confirmed: u64,
    tested: &'a tokio::runtime::Handle,
}

impl Progress<'_> {
    /// Prints a line every ten seconds.
    async fn show(&mut self, memory: &mut Memory) {
        let mut ticks = interval(Duration::from_secs(10));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let confirmed = now(&self.accounts.figures.confirmed);
            let rate = (confirmed - self.confirmed) / 10;
            self.confirmed = confirmed;
            let size = memory.sample().map_or(String::new(), |size| format!(", {size:.1} MiB"));
            let tasks = self.tested.metrics().num_alive_tasks();
            let seconds = self.begun.elapsed().as_secs();
            println!("{seconds:4} s: {rate}/s, {}, {tasks} tasks{size}", self.accounts.figures);
        }
    }
}
