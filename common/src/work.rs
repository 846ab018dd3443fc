//! Working on several deliveries at a time.

use std::{future::Future, pin::pin};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::{
    runtime::Handle,
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{Consumer, Delivery, Error, Result};

/// Runs a job for each delivery, in a task of its own, and then `finish` on what it returned. No more deliveries are
/// worked on at a time than the prefetch: after a loss the broker delivers as many again, while those of before are still
/// running. When `stop` is there, gives back what has not been begun, and waits for the jobs that have.
pub(crate) async fn work<Job, Finish>(
    deliveries: Consumer,
    stop: impl Future<Output = ()>,
    job: impl Fn(Delivery) -> Job + Send + 'static,
    finish: impl Fn(Job::Output) -> Finish + Send + 'static,
) -> Result<()>
where
    Job: Future<Output: Send + 'static> + Send + 'static,
    Finish: Future<Output = ()> + Send + 'static,
{
    let core = deliveries.core();
    let stopped = CancellationToken::new();
    let crew = Crew { jobs: JoinSet::new(), finish, finishing: FuturesUnordered::new() };
    // Jobs run on the program's own threads. All else does where deliveries and confirms come in, so that neither has to
    // wake another thread.
    let Some(shift) = core.spawn(crew.take(deliveries, job, Handle::current(), stopped.clone())) else {
        return Err(Error::Shutdown("connection manager"));
    };
    let mut shift = AbortOnDropHandle::new(shift);
    let ended = tokio::select! {
        ended = &mut shift => ended,
        () = stop => {
            stopped.cancel();
            shift.await
        }
    };
    // Else the connection manager's thread has ended, and the jobs with it.
    let Ok((ended, mut crew)) = ended else { return Ok(()) };
    while crew.goes_on().await {}
    ended
}

/// The jobs under way.
struct Crew<T, F, Finish> {
    jobs: JoinSet<T>,
    finish: F,
    finishing: FuturesUnordered<Finish>,
}

impl<T, F, Finish> Crew<T, F, Finish>
where
    T: Send + 'static,
    F: Fn(T) -> Finish,
    Finish: Future<Output = ()>,
{
    async fn take<Job>(
        mut self,
        mut deliveries: Consumer,
        job: impl Fn(Delivery) -> Job,
        runtime: Handle,
        stopped: CancellationToken,
    ) -> (Result<()>, Self)
    where
        Job: Future<Output = T> + Send + 'static,
    {
        let mut stopped = pin!(stopped.cancelled());
        let ended = loop {
            let full = self.len() >= deliveries.prefetch();
            let delivery = tokio::select! {
                biased;
                () = &mut stopped => break Ok(()),
                true = self.goes_on() => continue,
                delivery = deliveries.next(), if !full => delivery,
            };
            match delivery {
                Ok(Some(delivery)) => drop(self.jobs.spawn_on(job(delivery), &runtime)),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        (ended, self)
    }

    fn len(&self) -> usize {
        self.jobs.len() + self.finishing.len()
    }

    /// Waits until one of them is a step further; `false` when there is none.
    async fn goes_on(&mut self) -> bool {
        tokio::select! {
            Some(()) = self.finishing.next() => true,
            Some(done) = self.jobs.join_next() => {
                // One that panicked or was aborted has nothing to be finished.
                self.finishing.extend(done.ok().map(&self.finish));
                true
            }
            else => false,
        }
    }
}
