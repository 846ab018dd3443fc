//! Working on several deliveries at a time.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{sync::Notify, task::JoinSet};

use crate::{Consumer, Delivery, Result};

/// Runs a job for each delivery, in a task of its own, and no more of them at a time than the prefetch: after a loss
/// the broker delivers as many again, while those of before are still running. When `stop` is there, gives back what
/// has not been begun, and waits for the jobs that have. A job is over when its [`Slot`] is dropped, which it may hand on.
pub(crate) async fn work<Fut>(
    mut deliveries: Consumer,
    stop: impl Future<Output = ()>,
    job: impl Fn(Delivery, Slot) -> Fut,
) -> Result<()>
where
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut stop = pin!(stop);
    let mut working = JoinSet::new();
    let slots = Arc::new(Slots::default());
    let (mut place, mut prefetch) = (deliveries.place(), 1);
    let ended = loop {
        if let Some(place) = &*place.borrow_and_update() {
            prefetch = place.prefetch;
        }
        // Forgets those that have ended.
        while working.try_join_next().is_some() {}
        // Listens before it looks.
        let freed = slots.freed.notified();
        let full = slots.taken() >= prefetch;
        let delivery = tokio::select! {
            biased;
            () = &mut stop => break Ok(()),
            delivery = deliveries.next(), if !full => delivery,
            () = freed, if full => continue,
            Ok(()) = place.changed() => continue,
        };
        match delivery {
            Ok(Some(delivery)) => drop(working.spawn(job(delivery, Slots::take(&slots)))),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    drop(deliveries);
    // Each task has a slot, or somebody who goes on for it.
    loop {
        let freed = slots.freed.notified();
        if slots.taken() == 0 {
            return ended;
        }
        freed.await;
    }
}

#[derive(Default)]
struct Slots {
    taken: AtomicUsize,
    freed: Notify,
}

/// One of those that may be worked on at a time.
pub(crate) struct Slot(Arc<Slots>);

impl Slots {
    fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    fn take(slots: &Arc<Self>) -> Slot {
        slots.taken.fetch_add(1, Ordering::SeqCst);
        Slot(slots.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::SeqCst);
        // Only one waits.
        self.0.freed.notify_waiters();
    }
}
