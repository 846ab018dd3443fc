//! Keeps a connection alive as long as a user holds something that was made on it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    ConnectOptions, Error, Result,
    connection::{
        core::{ConnectionCore, ConnectionStatus},
        supervisor::{Request, supervise},
    },
    encoding::nesting::{STACK, stack_size},
};

/// Everything that a user holds has one, and no task has one. When the last one is dropped, all tasks end.
pub(crate) struct ConnectionHandle {
    pub core: Arc<ConnectionCore>,
    requests: mpsc::UnboundedSender<Request>,
    /// The supervisor's end of `requests`. The first use starts the supervisor and takes this.
    supervisor: Mutex<Option<mpsc::UnboundedReceiver<Request>>>,
    runtime: Mutex<Option<Runtime>>,
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        self.core.closing.cancel();
        self.core.stop.cancel();
        self.end_runtime();
    }
}

impl ConnectionHandle {
    pub fn new(options: ConnectOptions) -> Arc<Self> {
        let (requests, supervisor) = mpsc::unbounded_channel();
        Arc::new(Self {
            core: Arc::new(ConnectionCore::new(options)),
            requests,
            supervisor: Mutex::new(Some(supervisor)),
            runtime: Mutex::default(),
        })
    }

    /// Waits until there is a connection, asking for the first one.
    pub async fn connect(&self) -> Result<()> {
        let core = &self.core;
        if core.closing.is_cancelled() {
            return Err(Error::Shutdown("connection manager"));
        }
        if matches!(*core.status.borrow(), ConnectionStatus::Up(_)) {
            return Ok(());
        }
        self.start_supervisor()?;
        let (request, answer) = oneshot::channel();
        let _ = self.requests.send(request);
        // Each attempt has its own deadline. This deadline is for attempts that follow each other.
        let patience = core.options.operation_timeout.max(core.options.time_to_connect() + Duration::from_secs(1));
        match timeout(patience, answer).await {
            Ok(answer) => answer.unwrap_or(Err(Error::Shutdown("connection manager"))),
            Err(_) => Err(core.timed_out("cannot connect to RabbitMQ")),
        }
    }

    /// Starts the supervisor at the first use, on a runtime with one thread that belongs only to this manager.
    ///
    /// A task of amqprs panics if another task that waits for its answer is dropped. If everything runs on one thread
    /// that is never shut down in between, this cannot happen. The program's own runtime is shut down at the end of
    /// `main`. A runtime of our own also ends what amqprs cannot abort: a write to a peer that has stopped reading. And
    /// heartbeats continue while the program's own threads are busy.
    fn start_supervisor(&self) -> Result<()> {
        let mut supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner);
        if supervisor.is_none() {
            return Ok(());
        }
        let stack = stack_size().map_err(|error| {
            let stack = STACK >> 20;
            Error::text(format!("cannot start a thread with {stack} MiB of address space for its stack: {error}"))
        })?;
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("rabbitmq").thread_stack_size(stack).enable_all();
        let runtime = builder.build().map_err(|error| {
            // The code of EMFILE, for which there is no `ErrorKind`.
            let too_many_files = cfg!(unix) && error.raw_os_error() == Some(24);
            let hint = if too_many_files { "; `ulimit -n 1024` allows more" } else { "" };
            Error::text(format!("cannot start what the connection runs on: {error}{hint}"))
        })?;
        let handle = self.core.runtime.get_or_init(|| runtime.handle().clone());
        if let Some(requests) = supervisor.take() {
            self.core.supervisor.spawn_on(supervise(self.core.clone(), requests), handle);
        }
        *self.runtime.lock().unwrap_or_else(PoisonError::into_inner) = Some(runtime);
        Ok(())
    }

    pub fn end_runtime(&self) {
        if let Some(runtime) = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // This does not wait, so it may be called anywhere.
            runtime.shutdown_background();
        }
    }
}
