//! Makes each fault, with all users at the same time.

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

/// A user must have recovered within this time after the broker answers. `common` promises one second on a machine that
/// is not busy. The times are printed, so that people can judge them.
const SOON: Duration = Duration::from_secs(10);

/// RabbitMQ writes a new quorum queue to disk half a second late. If it is killed before that, version 3.10 never
/// answers for this queue again, and 4.3 starts with an empty one.
const WRITTEN_DOWN: Duration = Duration::from_secs(1);

/// The deadline for one step of one user. The waits inside a step have shorter deadlines.
const STEP: Duration = Duration::from_secs(60);

/// The result of one fault with one user.
pub struct Outcome {
    /// The user.
    pub kind: Kind,
    /// What was measured, and how long it took in each round. Or what went wrong.
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
/// When the broker does not stop or start. Errors of a user are in its outcome.
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
    // Dropping a virtual host blocks until the broker answers.
    tokio::task::block_in_place(|| outcomes.extend(cells.into_iter().map(Cell::outcome)));
    Ok(outcomes)
}

/// Does one step with all cells that have not failed, at the same time.
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

/// Starts the broker. Returns the time of its first answer.
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

    /// Makes the fault, waits until the user notices it, and ends it.
    async fn make_fault(&mut self, fault: Fault) -> Result<()> {
        let mut hit = None;
        match fault {
            Fault::Fin => self.access.proxy.cut(),
            Fault::Rst => self.access.proxy.reset(),
            Fault::Silence => self.access.proxy.stall(),
            Fault::MidFrame => self.access.proxy.cut_after(fastrand::u32(100..2_000)),
            // When this call returns, the user may already have recovered. So wait for the loss at the same time.
            Fault::CloseConnections => {
                let (closed, felt) =
                    tokio::join!(self.access.host.ask_to_close_connections(), self.user.notices(fault));
                closed?;
                hit = Some(felt?);
            }
            Fault::ChannelClosed => self.user.lose_channel().await?,
            Fault::QueueDeleted => self.user.lose_queue().await?,
            // These are made once for all users.
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
