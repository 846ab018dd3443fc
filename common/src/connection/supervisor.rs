//! The task that owns the connection: it connects, watches, reconnects and closes.

use std::{sync::Arc, time::Duration};

use backon::ExponentialBackoff;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout_at},
};

use crate::{
    ConnectOptions, Error, Result,
    connection::{
        backoff::{LONGEST_PAUSE, backoff, long_backoff},
        core::{ConnectionCore, ConnectionStatus},
        events::Event,
        live::LiveConnection,
    },
};

/// If a connection has lived this long, the next pauses are short again.
const PROVED: Duration = Duration::from_secs(1);

/// A request for a connection. The answer is the result of an attempt that is made for it.
pub(crate) type Request = oneshot::Sender<Result<()>>;

/// Owns the connection: connects when it is first asked, reconnects after every loss, until the end.
pub(crate) async fn supervise(core: Arc<ConnectionCore>, requests: mpsc::UnboundedReceiver<Request>) {
    keep_connected(&core, requests).await;
    core.status.send_replace(ConnectionStatus::Down(Some(Error::Shutdown("connection manager"))));
    core.events.send_replace(Some(Event::Closed));
}

async fn keep_connected(core: &ConnectionCore, mut requests: mpsc::UnboundedReceiver<Request>) {
    let Some(mut connection) = first_connection(core, &mut requests).await else { return };
    let address = core.options.address();
    tracing::debug!("connected to RabbitMQ at {address}");
    core.events.send_replace(Some(Event::Connected));
    let mut attempts = Attempts::new(&core.options);
    loop {
        let since = Instant::now();
        core.status.send_replace(ConnectionStatus::Up(connection.clone()));
        let Some(reason) = watch_over(core, &connection, &mut requests).await else {
            return close(core, connection).await;
        };
        core.status.send_replace(ConnectionStatus::Down(Some(reason.clone())));
        drop(connection);
        tracing::warn!("{reason}; reconnecting to {address}");
        core.events.send_replace(Some(Event::Lost(reason)));
        // A connection that broke at once is not a success, so the pauses keep growing.
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
    /// The pauses while RabbitMQ refuses the login.
    long_pauses: ExponentialBackoff,
    /// The last warnings, so that each kind of failure is logged once.
    said: Vec<String>,
}

impl Attempts {
    fn new(options: &ConnectOptions) -> Self {
        Self { pauses: backoff(options), long_pauses: long_backoff(options), said: Vec::new() }
    }

    /// How long to wait before the next one.
    fn pause(&mut self, last: Option<&Error>) -> Duration {
        let pauses = match last {
            Some(Error::LoginRefused { .. }) => &mut self.long_pauses,
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
async fn next_connection(core: &ConnectionCore, attempts: &mut Attempts) -> Option<Arc<LiveConnection>> {
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
                core.status.send_replace(ConnectionStatus::Down(Some(error.clone())));
                last = Some(error);
            }
        }
    }
}

/// With `fail_fast`, each request gets one attempt and its result. Without, the attempts continue until one succeeds.
async fn first_connection(
    core: &ConnectionCore,
    requests: &mut mpsc::UnboundedReceiver<Request>,
) -> Option<Arc<LiveConnection>> {
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
                core.status.send_replace(ConnectionStatus::Down(Some(error)));
                Ok(next_connection(core, &mut attempts).await?)
            }
            outcome => outcome,
        };
        while let Ok(request) = requests.try_recv() {
            waiting.push(request);
        }
        if let Ok(connection) = &outcome {
            core.status.send_replace(ConnectionStatus::Up(connection.clone()));
        }
        for request in waiting {
            let _ = request.send(outcome.as_ref().map(drop).map_err(Clone::clone));
        }
        if let Ok(connection) = outcome {
            return Some(connection);
        }
    }
}

/// Waits until the connection is lost. Returns the reason, or `None` when everything has to end.
async fn watch_over(
    core: &ConnectionCore,
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

async fn close(core: &ConnectionCore, connection: Arc<LiveConnection>) {
    connection.state.closing.cancel();
    if let Some(raw) = connection.raw() {
        // In a task of its own: if this call were dropped half-way, amqprs's reader would panic.
        let closing = tokio::spawn(raw.close());
        let deadline = Instant::now() + core.options.operation_timeout;
        let _ = timeout_at(deadline, closing).await;
        // The broker has answered. Now the socket and its tasks end.
        let _ = timeout_at(deadline, connection.state.closed.wait()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_half_a_minute_where_the_login_is_refused_and_stay_short_elsewhere() {
        let options = ConnectOptions::default();
        let mut attempts = Attempts::new(&options);
        let refused = Error::LoginRefused { address: "rabbit:5672".into(), reason: "no".into() };
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
