//! The task that owns the connection: connects, watches, connects again, closes.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ConnectOptions, Error, Result,
    connection::{count::Count, events::Event, live::LiveConnection},
};

/// A connection that lived this long was a good one.
const PROVED: Duration = Duration::from_secs(1);

/// The longest pause where RabbitMQ refuses.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What the tasks share.
pub(crate) struct Core {
    pub options: ConnectOptions,
    pub connection: watch::Sender<ConnectionStatus>,
    pub events: watch::Sender<Option<Event>>,
    /// Those who work on deliveries take no more, and settle what is done.
    pub stop_receiving: CancellationToken,
    /// Everything above the connection has to end, in an orderly way.
    pub closing: CancellationToken,
    /// Everything has to end.
    pub stop: CancellationToken,
    /// The tasks of those who work on deliveries.
    pub workers: TaskTracker,
    /// The tasks of channels and consumers.
    pub tasks: TaskTracker,
    pub supervisor: TaskTracker,
    /// Channels and consumers, which want to be ready.
    pub owners: Count,
    /// Where all of them run, once there is a first connection to be made.
    pub runtime: OnceLock<Handle>,
}

#[derive(Clone)]
pub(crate) enum ConnectionStatus {
    Up(Arc<LiveConnection>),
    /// Not there (yet, or any more), with the last error.
    Down(Option<Error>),
}

/// Somebody wants a connection: the answer is the outcome of an attempt made for it.
pub(crate) type Request = oneshot::Sender<Result<()>>;

impl Core {
    pub fn new(options: ConnectOptions) -> Self {
        Self {
            options,
            connection: watch::Sender::new(ConnectionStatus::Down(None)),
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

    /// Waits for a living connection; `None` when everything has to end.
    pub async fn live_connection(&self) -> Option<Arc<LiveConnection>> {
        let mut status = self.connection.subscribe();
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

    /// The operation timeout is over; says why nothing happened.
    pub fn timed_out(&self, doing: &str) -> Error {
        let reason = match &*self.connection.borrow() {
            ConnectionStatus::Down(Some(error)) => error.to_string(),
            _ => String::new(),
        };
        Error::Timeout { doing: doing.into(), after: self.options.operation_timeout, reason }
    }

    pub fn deadline(&self) -> Instant {
        Instant::now() + self.options.operation_timeout
    }
}

/// Owns the connection: connects when first asked, and again after every loss, until the end.
pub(crate) async fn supervise(core: Arc<Core>, requests: mpsc::UnboundedReceiver<Request>) {
    keep_connected(&core, requests).await;
    core.connection.send_replace(ConnectionStatus::Down(Some(Error::Shutdown("connection manager"))));
    core.events.send_replace(Some(Event::Closed));
}

async fn keep_connected(core: &Core, mut requests: mpsc::UnboundedReceiver<Request>) {
    let Some(mut connection) = first_connection(core, &mut requests).await else { return };
    let address = core.options.address();
    tracing::debug!("connected to RabbitMQ at {address}");
    core.events.send_replace(Some(Event::Connected));
    let mut attempts = Attempts::new(&core.options);
    loop {
        let since = Instant::now();
        core.connection.send_replace(ConnectionStatus::Up(connection.clone()));
        let Some(reason) = watch_over(core, &connection, &mut requests).await else {
            return close(core, connection).await;
        };
        core.connection.send_replace(ConnectionStatus::Down(Some(reason.clone())));
        drop(connection);
        tracing::warn!("{reason}; connecting again to {address}");
        core.events.send_replace(Some(Event::Lost(reason)));
        // One that broke at once proves nothing: the pauses go on growing.
        if since.elapsed() > PROVED {
            attempts = Attempts::new(&core.options);
        }
        connection = match next_connection(core, &mut attempts).await {
            Some(connection) => connection,
            None => return,
        };
        tracing::info!("connected again to RabbitMQ at {address}");
        core.events.send_replace(Some(Event::Recovered));
    }
}

/// The attempts to connect until one is good.
struct Attempts {
    pauses: ExponentialBackoff,
    /// Those where RabbitMQ refuses the login.
    long_pauses: ExponentialBackoff,
    /// What was warned of, so that each kind of failure is said once.
    said: Vec<String>,
}

impl Attempts {
    fn new(options: &ConnectOptions) -> Self {
        Self { pauses: backoff(options), long_pauses: long_backoff(options), said: Vec::new() }
    }

    /// How long to wait before the next one.
    fn pause(&mut self, last: Option<&Error>) -> Duration {
        let pauses = match last {
            Some(Error::Refused { .. }) => &mut self.long_pauses,
            _ => &mut self.pauses,
        };
        pauses.next().unwrap_or(LONGEST_PAUSE)
    }

    fn failed(&mut self, error: &Error) {
        let trouble = error.to_string();
        if self.said.contains(&trouble) {
            tracing::debug!("{trouble}");
        } else {
            tracing::warn!("{trouble}; trying until it works");
            self.said.push(trouble);
        }
    }
}

/// Tries until it succeeds. `None` when everything has to end.
async fn next_connection(core: &Core, attempts: &mut Attempts) -> Option<Arc<LiveConnection>> {
    let mut last = None;
    loop {
        tokio::select! {
            () = sleep(attempts.pause(last.as_ref())) => {}
            () = core.stop.cancelled() => return None,
        }
        let outcome = tokio::select! {
            outcome = LiveConnection::connect(&core.options) => outcome,
            () = core.stop.cancelled() => return None,
        };
        match outcome {
            Ok(connection) => return Some(Arc::new(connection)),
            Err(error) => {
                attempts.failed(&error);
                core.connection.send_replace(ConnectionStatus::Down(Some(error.clone())));
                last = Some(error);
            }
        }
    }
}

/// With `fail_fast`, each request gets one attempt and its outcome; without, the attempts go on until one succeeds.
async fn first_connection(core: &Core, requests: &mut mpsc::UnboundedReceiver<Request>) -> Option<Arc<LiveConnection>> {
    loop {
        let mut waiting = tokio::select! {
            request = requests.recv() => vec![request?],
            () = core.stop.cancelled() => return None,
        };
        let outcome = tokio::select! {
            outcome = LiveConnection::connect(&core.options) => outcome.map(Arc::new),
            () = core.stop.cancelled() => return None,
        };
        let outcome = match outcome {
            Err(error) if !core.options.fail_fast => {
                let mut attempts = Attempts::new(&core.options);
                attempts.failed(&error);
                core.connection.send_replace(ConnectionStatus::Down(Some(error)));
                Ok(next_connection(core, &mut attempts).await?)
            }
            outcome => outcome,
        };
        while let Ok(request) = requests.try_recv() {
            waiting.push(request);
        }
        if let Ok(connection) = &outcome {
            core.connection.send_replace(ConnectionStatus::Up(connection.clone()));
        }
        for request in waiting {
            let _ = request.send(outcome.as_ref().map(drop).map_err(Clone::clone));
        }
        if let Ok(connection) = outcome {
            return Some(connection);
        }
    }
}

/// Until the connection is lost: the reason. `None` when everything has to end.
async fn watch_over(
    core: &Core,
    connection: &LiveConnection,
    requests: &mut mpsc::UnboundedReceiver<Request>,
) -> Option<Error> {
    loop {
        tokio::select! {
            () = core.stop.cancelled() => return None,
            reason = connection.state.closed.wait() => return Some(reason),
            request = requests.recv() => {
                let _ = request?.send(Ok(()));
            }
        }
    }
}

async fn close(core: &Core, connection: Arc<LiveConnection>) {
    connection.state.closing.cancel();
    if let Some(raw) = connection.raw() {
        // In a task of its own: dropping the call half-way would kill amqprs's reader.
        let closing = tokio::spawn(raw.close());
        let deadline = Instant::now() + core.options.operation_timeout;
        let _ = timeout_at(deadline, closing).await;
        // The broker has answered; the socket and its tasks end now.
        let _ = timeout_at(deadline, connection.state.closed.wait()).await;
    }
}

/// Pauses between attempts, growing from a tenth of a second, with jitter so that clients do not return as one.
pub(crate) fn backoff(options: &ConnectOptions) -> ExponentialBackoff {
    pauses(options.reconnect_interval)
}

/// The pauses where RabbitMQ is there and refuses: it takes a person to change that, and each attempt costs it something.
pub(crate) fn long_backoff(options: &ConnectOptions) -> ExponentialBackoff {
    pauses(options.reconnect_interval.max(LONGEST_PAUSE))
}

fn pauses(longest: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        // The jitter adds up to as much again.
        .with_min_delay(Duration::from_millis(100).min(longest / 2))
        .with_max_delay(longest / 2)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_half_a_minute_where_the_login_is_refused_and_stay_short_elsewhere() {
        let options = ConnectOptions::default();
        let mut attempts = Attempts::new(&options);
        let refused = Error::Refused { address: "rabbit:5672".into(), reason: "no".into() };
        let broken = Error::lost("broken");
        let short: Vec<_> = (0..20).map(|_| attempts.pause(Some(&broken))).collect();
        assert!(short.iter().all(|pause| *pause <= options.reconnect_interval), "{short:?}");
        let long: Vec<_> = (0..20).map(|_| attempts.pause(Some(&refused))).collect();
        assert!(long.iter().take(2).all(|pause| *pause < Duration::from_secs(1)), "{long:?}");
        assert!(long.iter().all(|pause| *pause <= LONGEST_PAUSE), "{long:?}");
        assert!(long.iter().skip(10).all(|pause| *pause >= LONGEST_PAUSE / 2), "{long:?}");
        assert!(attempts.pause(Some(&broken)) <= options.reconnect_interval);
    }
}
