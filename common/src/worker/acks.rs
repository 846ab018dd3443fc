//! Settles finished deliveries, with one `basic.ack` for many if there is no unfinished one between them.

use std::{collections::BTreeSet, sync::Weak};

use crate::{
    Delivery,
    consumer::delivery::{Receipt, SettleMethod},
    session::Session,
};

/// A delivery whose work is finished, and how to settle it.
pub(crate) type Done = (Receipt, SettleMethod);

/// The unfinished deliveries of one consumer. It has its own AMQP channel, so there are no other deliveries between
/// them.
#[derive(Default)]
pub(crate) struct Acks {
    /// What delivered those begun.
    session: Weak<Session>,
    /// By delivery tag: not done yet.
    begun: BTreeSet<u64>,
    done: Vec<Done>,
}

impl Acks {
    /// Work on a delivery begins.
    pub fn begin(&mut self, delivery: &Delivery) {
        let receipt = delivery.receipt();
        if !receipt.is_of(&self.session) {
            // A new session begins its tags again. What the lost channel had delivered comes again.
            self.session = receipt.session();
            self.begun.clear();
        }
        self.begun.insert(delivery.delivery_tag);
    }

    /// The work on a delivery has ended. The next [`send`](Self::send) settles it.
    pub fn end(&mut self, done: Done) {
        let (receipt, _) = &done;
        if receipt.is_of(&self.session) {
            self.begun.remove(&receipt.delivery_tag);
        }
        self.done.push(done);
    }

    /// Whether there is something to settle.
    pub fn are_due(&self) -> bool {
        !self.done.is_empty()
    }

    /// Settles what is finished.
    pub async fn send(&mut self) {
        let first_begun = self.begun.first();
        let mut together = Vec::new();
        for (receipt, how) in self.done.drain(..) {
            let nothing_before = first_begun.is_none_or(|first| receipt.delivery_tag < *first);
            match how {
                SettleMethod::Ack { .. } if nothing_before && receipt.is_of(&self.session) => together.push(receipt),
                how => settle(receipt, how).await,
            }
        }
        // All deliveries before the last of them are finished and settled.
        if let Some(last) = (0..together.len()).max_by_key(|&index| together[index].delivery_tag) {
            let last = together.swap_remove(last);
            let multiple = !together.is_empty();
            together.into_iter().for_each(Receipt::forget);
            settle(last, SettleMethod::Ack { multiple }).await;
        }
    }
}

async fn settle(receipt: Receipt, how: SettleMethod) {
    let tag = receipt.delivery_tag;
    if let Err(error) = receipt.settle(how).await {
        tracing::warn!("delivery {tag} could not be settled: {error}");
    }
}
