//! Works on several deliveries at the same time.

use std::{
    future::{Future, ready},
    panic::resume_unwind,
    pin::pin,
};

use amqprs::channel::BasicConsumeArguments;
use futures_util::{
    FutureExt,
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt},
};
use tokio::{runtime::Handle, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    Consumer, Delivery, Error, Result, SetupChannel,
    worker::acks::{Acks, Done},
};

/// A `subscribe` function for [`work`], which settles finished deliveries and never works on more than the prefetch.
pub(crate) fn with_manual_ack<Fut>(
    subscribe: impl Fn(SetupChannel) -> Fut + Send + Sync + 'static,
) -> impl Fn(SetupChannel) -> BoxFuture<'static, Result<BasicConsumeArguments>> + Send + Sync + 'static
where
    Fut: Future<Output = Result<BasicConsumeArguments>> + Send + 'static,
{
    move |setup| {
        let arguments = subscribe(setup);
        Box::pin(async move {
            let arguments = arguments.await?;
            if arguments.no_ack {
                return Err(Error::Invalid(
                    "a worker or RPC server acknowledges what it has done, and does no more at a time than its \
                     prefetch; both need a consumer without `auto_ack`"
                        .into(),
                ));
            }
            Ok(arguments)
        })
    }
}

/// Runs a job for each delivery in a task of its own, and then `finish` on its result. It never works on more
/// deliveries at a time than the prefetch: after a loss the broker delivers as many again, while the earlier jobs still
/// run. When `stop` resolves, it gives back deliveries that it has not begun, and waits for the running jobs.
pub(crate) async fn work<Job, Finish>(
    deliveries: Consumer,
    stop: impl Future<Output = ()>,
    job: impl Fn(Delivery) -> Job + Send + 'static,
    finish: impl Fn(Job::Output) -> Finish + Send + 'static,
) -> Result<()>
where
    Job: Future<Output: Send + 'static> + Send + 'static,
    Finish: Future<Output = Done> + Send + 'static,
{
    let core = deliveries.core();
    let stopped = core.stop_receiving.child_token();
    let workers = Workers { jobs: JoinSet::new(), finish, finishing: FuturesUnordered::new(), acks: Acks::default() };
    // Jobs run on the program's own threads. Everything else runs on the thread where deliveries and confirms arrive,
    // so that no other thread has to be woken.
    let Some(runtime) = core.runtime.get() else { return Err(Error::Shutdown("connection manager")) };
    let receiving = workers.receive(deliveries, job, Handle::current(), stopped.clone());
    let mut receiving = AbortOnDropHandle::new(core.workers.spawn_on(receiving, runtime));
    let ended = tokio::select! {
        ended = &mut receiving => ended,
        () = stop => {
            stopped.cancel();
            receiving.await
        }
    };
    let (ended, mut workers) = match ended {
        Ok(ended) => ended,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        // That thread has ended, and the jobs with it.
        Err(_) => return Ok(()),
    };
    while workers.settle_next().await {
        workers.acks.send().await;
    }
    ended
}

/// The running jobs.
struct Workers<T, F, Finish> {
    jobs: JoinSet<T>,
    finish: F,
    finishing: FuturesUnordered<Finish>,
    acks: Acks,
}

impl<T, F, Finish> Workers<T, F, Finish>
where
    T: Send + 'static,
    F: Fn(T) -> Finish,
    Finish: Future<Output = Done>,
{
    async fn receive<Job>(
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
        let (mut current, mut prefetch) = (deliveries.current_subscription(), 1);
        let ended = loop {
            // Without a subscription the last prefetch counts. The next subscription may come while jobs still run.
            let changed = current.has_changed().unwrap_or(false);
            let subscribed = current.borrow_and_update().as_ref().map(|current| prefetch = current.prefetch).is_some();
            let full = self.jobs.len() + self.finishing.len() >= prefetch;
            if full && changed && subscribed {
                tracing::warn!(
                    "{} jobs from before a loss still run, as many as the prefetch: none is begun until one of them ends \
                     (a job that may hang needs a timeout of its own)",
                    self.jobs.len()
                );
            }
            let delivery = tokio::select! {
                biased;
                () = &mut stopped => break Ok(()),
                true = self.settle_next() => continue,
                // Only when nothing else is finished at this moment: several acks may then be one.
                () = ready(()), if self.acks.are_due() => {
                    self.acks.send().await;
                    continue;
                }
                delivery = deliveries.try_next(), if !full => delivery,
                Ok(()) = current.changed(), if full => continue,
            };
            match delivery {
                Ok(Some(delivery)) => {
                    self.acks.begin(&delivery);
                    self.jobs.spawn_on(job(delivery), &runtime);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // Finished work is settled before the channel may be closed. This does not wait.
        while let Some(true) = self.settle_next().now_or_never() {}
        self.acks.send().await;
        (ended, self)
    }

    /// Waits until a job makes a step. `false` if there is no job. Dropping this loses nothing.
    async fn settle_next(&mut self) -> bool {
        tokio::select! {
            Some(done) = self.finishing.next() => self.acks.end(done),
            // A job that panicked or was aborted has no result to finish.
            Some(job) = self.jobs.join_next() => self.finishing.extend(job.ok().map(&self.finish)),
            else => return false,
        }
        true
    }
}
