//! The calls in progress: which correlation id belongs to which caller, and where the replies arrive.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use crate::{Delivery, Error, Message, Result, consumer::subscriber::CurrentSubscription, session::Session};

#[derive(Default)]
pub(super) struct Calls {
    table: Mutex<CallTable>,
    /// Notified when there is another reply queue.
    renewed: Notify,
}

#[derive(Default)]
struct CallTable {
    /// Where replies arrive at present. The calls for an earlier reply queue have failed.
    replies_at: Option<CurrentSubscription>,
    waiting: HashMap<Uuid, oneshot::Sender<Result<Message>>>,
    /// How many replies have come that do not have an id of ours.
    foreign: u64,
    /// Why there will never be another reply.
    ended: Option<Error>,
}

/// One call. It is in the map as long as this value exists.
pub(super) struct Call<'a> {
    /// The correlation id.
    pub id: Uuid,
    pub reply_to: String,
    /// The AMQP channel that consumes the replies.
    pub session: Weak<Session>,
    pub reply: oneshot::Receiver<Result<Message>>,
    calls: &'a Calls,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.calls.lock().waiting.remove(&self.id);
    }
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, CallTable> {
        // No code that can panic may run under the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// How many replies have come whose correlation id is missing, or cannot be one of ours.
    pub fn foreign(&self) -> u64 {
        self.lock().foreign
    }

    /// A new call, as soon as there is a reply queue.
    pub async fn register(&self) -> Result<Call<'_>> {
        loop {
            // Listens before it checks.
            let renewed = self.renewed.notified();
            {
                let mut table = self.lock();
                if let Some(reason) = &table.ended {
                    return Err(reason.clone());
                }
                if let Some(CurrentSubscription { queue, session, .. }) = table.replies_at.clone() {
                    let (sender, reply) = oneshot::channel();
                    let id = Uuid::new_v4();
                    table.waiting.insert(id, sender);
                    return Ok(Call { id, reply_to: queue, session, reply, calls: self });
                }
            }
            renewed.await;
        }
    }

    /// Passes a reply to its call. A reply that is late, comes twice or belongs to another client is ignored.
    pub fn answer(&self, reply: Delivery) {
        let (message, _) = reply.split();
        let id = message.properties.correlation_id().map_or("", String::as_str);
        if Uuid::parse_str(id).is_err() {
            self.lock().foreign += 1;
        }
        let caller = Uuid::parse_str(id).ok().and_then(|id| self.lock().waiting.remove(&id));
        match caller {
            Some(caller) => {
                let _ = caller.send(Ok(message));
            }
            None => tracing::debug!("a reply without a waiting call is discarded (correlation id {id:?})"),
        }
    }

    /// A call has failed.
    pub fn fail(&self, id: &Uuid, reason: Error) {
        if let Some(caller) = self.lock().waiting.remove(id) {
            let _ = caller.send(Err(reason));
        }
    }

    /// The reply queue has changed, or there is none. The earlier calls get no reply any more.
    pub fn renew(&self, replies_at: Option<CurrentSubscription>) {
        let mut table = self.lock();
        match (&table.replies_at, &replies_at) {
            (Some(old), Some(new)) if Weak::ptr_eq(&old.session, &new.session) => return,
            _ => {}
        }
        table.replies_at = replies_at;
        table.fail_all(&Error::lost("the reply queue went with it"));
        self.renewed.notify_waiters();
    }

    /// There will be no other reply queue.
    pub fn end(&self, reason: Error) {
        let mut table = self.lock();
        table.fail_all(&reason);
        table.ended = Some(reason);
        self.renewed.notify_waiters();
    }
}

impl CallTable {
    fn fail_all(&mut self, reason: &Error) {
        for (_, caller) in self.waiting.drain() {
            let _ = caller.send(Err(reason.clone()));
        }
    }
}
