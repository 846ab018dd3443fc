//! Working on several deliveries at a time.

use std::{future::Future, pin::pin};

use tokio::task::JoinSet;

use crate::{Consumer, Delivery, Result};

/// Runs a job for each delivery, in a task of its own, and no more of them at a time than the prefetch: after a loss
/// the broker delivers as many again, while those of before are still running. When `stop` is there, gives back what
/// has not been begun, and waits for the jobs that have.
pub(crate) async fn work<Fut>(
    mut deliveries: Consumer,
    stop: impl Future<Output = ()>,
    job: impl Fn(Delivery) -> Fut,
) -> Result<()>
where
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut stop = pin!(stop);
    let mut working = JoinSet::new();
    let (mut place, mut prefetch) = (deliveries.place(), 1);
    let ended = loop {
        if let Some(place) = &*place.borrow_and_update() {
            prefetch = place.prefetch;
        }
        let delivery = tokio::select! {
            biased;
            () = &mut stop => break Ok(()),
            // Also forgets those that have ended.
            Some(_) = working.join_next() => continue,
            delivery = deliveries.next(), if working.len() < prefetch => delivery,
            Ok(()) = place.changed() => continue,
        };
        match delivery {
            Ok(Some(delivery)) => drop(working.spawn(job(delivery))),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    drop(deliveries);
    while working.join_next().await.is_some() {}
    ended
}
