//! Each fault, with all users at once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use testbed::Broker;
use tokio::time::sleep;

use crate::{
    access::Access,
    fault::Fault,
    users::{Kind, User},
    wait::within,
};

/// Whoever is not back by then, once the broker answers, is lost. `common` promises a second, on a machine that is not
/// busy: the times are printed, for people to judge.
const SOON: Duration = Duration::from_secs(10);

/// RabbitMQ notes a new quorum queue on disk half a second late. Killed before that, 3.10 never answers for it again, and
/// 4.3 begins with an empty one.
const WRITTEN_DOWN: Duration = Duration::from_secs(1);

/// The end of patience with one step of one user; what it waits for within has shorter deadlines.
const STEP: Duration = Duration::from_secs(60);

/// One user and the fault: what came of it.
pub struct Outcome {
    /// The user.
    pub kind: Kind,
    /// What was measured, and how long it took in each round; or what went wrong.
    pub result: Result<(&'static str, Vec<Duration>)>,
}

struct Cell<'a> {
    kind: Kind,
    access: Arc<Access<'a>>,
    user: Box<dyn User + 'a>,
    over: Instant,
    times: Vec<Duration>,
    trouble: Option<anyhow::Error>,
}

/// Makes one fault `rounds` times in a row, with these users.
///
/// # Errors
/// When the broker does not stop or start. What goes wrong with a user is in its outcome.
pub async fn run(broker: &Broker, fault: Fault, kinds: &[Kind], rounds: u32) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let mut cells = Vec::new();
    for (kind, cell) in kinds.iter().zip(join_all(kinds.iter().map(|&kind| Cell::open(broker, kind))).await) {
        match cell {
            Ok(cell) => cells.push(cell),
            Err(error) => outcomes.push(Outcome { kind: *kind, result: Err(error.context("at its start")) }),
        }
    }
    for round in 1..=rounds {
        all(&mut cells, &format!("before round {round}"), async |cell| cell.user.works().await).await;
        if fault.is_of_the_broker() {
            stop(broker, fault).await?;
        }
        let name = format!("in round {round}");
        all(&mut cells, &name, async |cell| cell.make_fault(fault).await).await;
        if fault.is_of_the_broker() {
            let over = start(broker).await?;
            cells.iter_mut().for_each(|cell| cell.over = over);
        }
        all(&mut cells, &format!("after round {round}"), async |cell| cell.is_back(fault).await).await;
    }
    all(&mut cells, "at its end", async |cell| cell.user.finish().await).await;
    // Dropping a virtual host waits for the broker.
    tokio::task::block_in_place(|| outcomes.extend(cells.into_iter().map(Cell::outcome)));
    Ok(outcomes)
}

/// Does one step with all cells that are still well, at once.
async fn all<'a>(cells: &mut [Cell<'a>], when: &str, step: impl AsyncFn(&mut Cell<'a>) -> Result<()>) {
    let step = &step;
    join_all(cells.iter_mut().filter(|cell| cell.trouble.is_none()).map(|cell| async move {
        let outcome = within(STEP, "this step", step(cell)).await.and_then(|outcome| outcome);
        cell.trouble = outcome.err().map(|error| error.context(when.to_owned()));
    }))
    .await;
}

async fn stop(broker: &Broker, fault: Fault) -> Result<()> {
    if fault == Fault::Kill {
        sleep(WRITTEN_DOWN).await;
    }
    let stopped = async { if fault == Fault::Kill { broker.kill().await } else { broker.stop().await } };
    within(STEP, "the broker's end", stopped).await?
}

/// Starts the broker; tells when it first answered.
async fn start(broker: &Broker) -> Result<Instant> {
    let answer = async {
        while broker.version().await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
        Instant::now()
    };
    let (started, answered) = tokio::join!(
        within(STEP, "the broker's start", broker.start_again()),
        within(STEP, "the broker's answer", answer)
    );
    started??;
    answered
}

impl<'a> Cell<'a> {
    async fn open(broker: &'a Broker, kind: Kind) -> Result<Self> {
        let access = Arc::new(Access::new(broker).await?);
        let user = within(STEP, "its start", kind.start(access.clone())).await??;
        Ok(Self { kind, access, user, over: Instant::now(), times: Vec::new(), trouble: None })
    }

    /// Makes the fault, waits until it is felt, and ends it.
    async fn make_fault(&mut self, fault: Fault) -> Result<()> {
        let mut hit = None;
        match fault {
            Fault::Fin => self.access.proxy.cut(),
            Fault::Rst => self.access.proxy.reset(),
            Fault::Silence => self.access.proxy.stall(),
            Fault::MidFrame => self.access.proxy.cut_after(fastrand::u32(100..2_000)),
            // By the time that is answered, they may be back.
            Fault::CloseConnections => {
                let (closed, felt) =
                    tokio::join!(self.access.host.ask_to_close_connections(), self.user.notices(fault));
                closed?;
                hit = Some(felt?);
            }
            Fault::ChannelClosed => self.user.lose_channel().await?,
            Fault::QueueDeleted => self.user.lose_queue().await?,
            // Made for all at once.
            Fault::StopStart | Fault::Kill => {}
        }
        let hit = match hit {
            Some(hit) => hit,
            None => self.user.notices(fault).await?,
        };
        self.access.proxy.resume();
        self.over = if fault.lasts() { Instant::now() } else { hit };
        Ok(())
    }

    async fn is_back(&mut self, fault: Fault) -> Result<()> {
        let took = self.user.is_back(fault, self.over).await?;
        self.times.push(took);
        if self.kind != Kind::Closing {
            ensure!(took < SOON, "back only after {} ms", took.as_millis());
        }
        Ok(())
    }

    fn outcome(self) -> Outcome {
        let result = match self.trouble {
            None => Ok((self.user.measures(), self.times)),
            Some(error) => Err(error),
        };
        Outcome { kind: self.kind, result }
    }
}
