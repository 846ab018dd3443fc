//! What the tasks of a connection manager share.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
};

use tokio::{runtime::Handle, sync::watch, task::JoinHandle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ConnectOptions, Error,
    connection::{count::Count, events::Event, live::LiveConnection},
};

/// What the tasks share.
pub(crate) struct ConnectionCore {
    pub options: ConnectOptions,
    pub status: watch::Sender<ConnectionStatus>,
    pub events: watch::Sender<Option<Event>>,
    /// Workers and RPC servers take no more deliveries, and settle what is done.
    pub stop_receiving: CancellationToken,
    /// Channels and consumers have to end, cleanly.
    pub closing: CancellationToken,
    /// Everything has to end.
    pub stop: CancellationToken,
    /// The tasks of workers and RPC servers.
    pub workers: TaskTracker,
    /// The tasks of channels and consumers.
    pub tasks: TaskTracker,
    pub supervisor: TaskTracker,
    /// Counts the channels and consumers, which must be ready before `ready` returns.
    pub owners: Count,
    /// The runtime of all of them, once the first connection is wanted.
    pub runtime: OnceLock<Handle>,
}

#[derive(Clone)]
pub(crate) enum ConnectionStatus {
    Up(Arc<LiveConnection>),
    /// There is no connection, with the last error.
    Down(Option<Error>),
}

impl ConnectionCore {
    pub fn new(options: ConnectOptions) -> Self {
        Self {
            options,
            status: watch::Sender::new(ConnectionStatus::Down(None)),
            events: watch::Sender::new(None),
            stop_receiving: CancellationToken::new(),
            closing: CancellationToken::new(),
            stop: CancellationToken::new(),
            workers: TaskTracker::new(),
            tasks: TaskTracker::new(),
            supervisor: TaskTracker::new(),
            owners: Count::default(),
            runtime: OnceLock::new(),
        }
    }

    /// Runs a task of a channel or consumer.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<JoinHandle<()>> {
        // Channels come after the first connection.
        self.runtime.get().map(|runtime| self.tasks.spawn_on(task, runtime))
    }

    /// Waits for a living connection. `None` when everything has to end.
    pub async fn live_connection(&self) -> Option<Arc<LiveConnection>> {
        let mut status = self.status.subscribe();
        loop {
            if let ConnectionStatus::Up(connection) = &*status.borrow_and_update()
                && !connection.state.closed.is_lost()
            {
                return Some(connection.clone());
            }
            tokio::select! {
                () = self.closing.cancelled() => return None,
                changed = status.changed() => changed.ok()?,
            }
        }
    }

    /// The error after the operation timeout. It says why nothing happened.
    pub fn timed_out(&self, doing: &str) -> Error {
        let reason = match &*self.status.borrow() {
            ConnectionStatus::Down(Some(error)) => error.to_string(),
            _ => String::new(),
        };
        Error::Timeout { doing: doing.into(), after: self.options.operation_timeout, reason }
    }

    pub fn deadline(&self) -> Instant {
        Instant::now() + self.options.operation_timeout
    }
}
