//! The producers and consumers of a soak: starts them at its beginning, and ends them at its end.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use amqprs::{BasicProperties, DELIVERY_MODE_PERSISTENT, channel::BasicPublishArguments};
use anyhow::{Context, Result};
use common::{Channel, ConnectOptions, ConnectionManager};
use fastrand::Rng;
use testbed::{Broker, Proxy, VirtualHost};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Options, SETTLE, WorkQueue, accounts::Accounts, consumer::Worker, full_queue, producer::Producer,
    volatile_consumers::VolatileConsumers,
};
use crate::{kept_setup::KeptSetup, losses::Losses, wait::within};

/// Short enough that calls sometimes reach it while the broker is down.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(5);

/// All producers and consumers, and what is needed to end them.
pub(super) struct Participants<'a> {
    host: &'a VirtualHost<'a>,
    members: Vec<Member>,
    producers: JoinSet<()>,
    workers: JoinSet<()>,
    volatile_consumers: Option<VolatileConsumers>,
    publish_no_more: watch::Sender<bool>,
    consume_no_more: watch::Sender<bool>,
    tested: Handle,
    /// Set a flag, and its producer makes the broker close its channel.
    pub close_flags: Vec<Arc<AtomicBool>>,
    /// Use one to make the broker close a consumer's channel.
    pub kept_setups: Vec<KeptSetup>,
}

/// One connection manager, through a proxy of its own.
struct Member {
    proxy: Arc<Proxy>,
    connections: ConnectionManager,
    losses: Losses,
}

impl<'a> Participants<'a> {
    /// Starts all of them.
    pub async fn start(
        broker: &Broker,
        host: &'a VirtualHost<'a>,
        options: &Options,
        accounts: Arc<Accounts>,
        rng: &mut Rng,
        tested: &Handle,
    ) -> Result<Self> {
        let queues =
            (0..options.consumers).map(|index| WorkQueue { name: format!("work-{index}"), quorum: index % 2 == 0 });
        let queues: Arc<Vec<WorkQueue>> = Arc::new(queues.collect());
        let mut members = Vec::new();
        for _ in 0..options.producers.max(options.consumers) {
            members.push(Member::new(broker, host, tested).await?);
        }
        let (publish_no_more, consume_no_more) = (watch::Sender::new(false), watch::Sender::new(false));
        let mut participants = Self {
            host,
            members,
            producers: JoinSet::new(),
            workers: JoinSet::new(),
            volatile_consumers: None,
            publish_no_more,
            consume_no_more,
            tested: tested.clone(),
            close_flags: Vec::new(),
            kept_setups: Vec::new(),
        };
        declare(participants.channel(0, "declare").await?, &queues).await?;
        for (index, queue) in queues.iter().cloned().enumerate() {
            let (channel, kept_setup) = (participants.channel(index, "consumer").await?, KeptSetup::default());
            participants.kept_setups.push(kept_setup.clone());
            let worker = Worker { channel, queue, kept_setup, accounts: accounts.clone(), rng: rng.fork() };
            participants.workers.spawn_on(worker.run(participants.consume_no_more.subscribe()), tested);
        }
        for index in 0..options.producers {
            let close_flag = Arc::new(AtomicBool::new(false));
            participants.close_flags.push(close_flag.clone());
            let producer = Producer {
                index,
                connections: participants.members[index].connections.clone(),
                channel: participants.channel(index, "producer").await?,
                queues: queues.clone(),
                accounts: accounts.clone(),
                close_flag,
                rate: options.rate,
                rng: rng.fork(),
                next: 0,
            };
            participants.producers.spawn_on(producer.run(participants.publish_no_more.subscribe()), tested);
        }
        let (one, other) = (
            participants.channel(0, "volatile_consumers").await?,
            participants.channel(1 % participants.members.len(), "volatile_consumers").await?,
        );
        participants.volatile_consumers = Some(tested.spawn(VolatileConsumers::start(one, other)).await??);
        Ok(participants)
    }

    /// The proxies that the connections go through.
    pub fn proxies(&self) -> Vec<Arc<Proxy>> {
        self.members.iter().map(|member| member.proxy.clone()).collect()
    }

    /// Waits until all work is finished and every promise is kept, and closes everything. Reports as a violation what
    /// does not finish, and each broken promise. Returns the longest outage.
    pub async fn end(&mut self, accounts: &Accounts) -> Duration {
        self.publish_no_more.send_replace(true);
        if !ended(&mut self.producers).await {
            accounts.violation(format!("{} producers still wait for something", self.producers.len()));
        }
        let arrived = async {
            while accounts.missing().0 > 0 {
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(SETTLE, arrived).await.is_err() {
            let (count, example) = accounts.missing();
            accounts.violation(format!("{count} confirmed messages never came: {}", example.unwrap_or_default()));
        }
        if let Some(volatile_consumers) = self.volatile_consumers.take()
            && let Err(error) =
                self.tested.spawn(volatile_consumers.finish()).await.map_err(Into::into).and_then(|outcome| outcome)
        {
            accounts.violation(format!("{error:#}"));
        }
        self.consume_no_more.send_replace(true);
        if !ended(&mut self.workers).await {
            accounts.violation(format!("{} consumers still wait for something", self.workers.len()));
        }
        let mut outage = Duration::ZERO;
        for Member { connections, losses, .. } in &self.members {
            let connections = connections.clone();
            let closing = self.tested.spawn(async move { connections.close_all().await });
            match timeout(SETTLE, closing).await {
                Ok(Ok(Ok(()))) => {}
                other => accounts.violation(format!("close_all: {other:?}")),
            }
            outage = outage.max(losses.longest());
        }
        // These handles are the last ones.
        self.kept_setups.iter().for_each(KeptSetup::clear);
        outage
    }

    /// How many connections and channels the broker still has for our user.
    pub async fn left_on_the_broker(&self) -> Result<(usize, usize)> {
        let gone = async {
            // The broker notices the end of a connection a moment later.
            while !self.host.connections().await?.is_empty() {
                sleep(Duration::from_millis(50)).await;
            }
            Ok::<_, anyhow::Error>(())
        };
        let _ = timeout(Duration::from_secs(5), gone).await;
        let connections = self.host.connections().await?.len();
        let channels = self.host.broker().rabbitmqctl(&["-q", "list_channels", "user"]).await?;
        Ok((connections, channels.lines().filter(|line| line.trim() == self.host.name()).count()))
    }

    async fn channel(&self, member: usize, name: &'static str) -> Result<Channel> {
        let connections = self.members[member % self.members.len()].connections.clone();
        let name = format!("{name} {member}");
        Ok(self.tested.spawn(async move { connections.channel(&name).await }).await??)
    }
}

impl Member {
    async fn new(broker: &Broker, host: &VirtualHost<'_>, tested: &Handle) -> Result<Self> {
        let proxy = Arc::new(Proxy::start(broker.port()).await?);
        let (name, password, port) = (host.name(), host.password(), proxy.port());
        let url = format!("amqp://{name}:{password}@127.0.0.1:{port}/{name}?heartbeat=2");
        let options = url.parse::<ConnectOptions>()?.operation_timeout(OPERATION_TIMEOUT).name("soak");
        let connections = ConnectionManager::new(options);
        let listening = connections.clone();
        let losses = tested.spawn(async move { Losses::of(&listening) }).await?;
        Ok(Self { proxy, connections, losses })
    }
}

/// Waits until all tasks have ended. Returns whether they ended in time.
async fn ended(tasks: &mut JoinSet<()>) -> bool {
    timeout(SETTLE, async { while tasks.join_next().await.is_some() {} }).await.is_ok()
}

/// Declares what must exist before the first message is published.
async fn declare(channel: Channel, queues: &[WorkQueue]) -> Result<()> {
    for queue in queues {
        channel.queue_declare(queue.declaration()).await?;
    }
    channel.queue_declare(full_queue()).await?;
    let persistent = BasicProperties::default().with_delivery_mode(DELIVERY_MODE_PERSISTENT).finish();
    let filling = channel.publish(BasicPublishArguments::new("", super::FULL), persistent, "in the way");
    within(SETTLE, "the first confirm", filling).await?.context("the queue that shall be full")?;
    channel.queue_declare(common::classic_queue("empty")).await?;
    Ok(())
}
