//! The lines that the library writes to its log.

use std::{
    io,
    sync::{Mutex, Once, PoisonError, mpsc},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{sync::Notify, time::timeout};
use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static WRITTEN: Notify = Notify::const_new();

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        LINES.lock().unwrap_or_else(PoisonError::into_inner).push(String::from_utf8_lossy(line).into_owned());
        WRITTEN.notify_waiters();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Sender(mpsc::Sender<String>);

impl io::Write for Sender {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = self.0.send(String::from_utf8_lossy(line).into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps all lines that all tests log from now on. Look for names that only one test uses.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).without_time().with_writer(|| Writer);
        let _ = tracing_subscriber::registry().with(lines).with(LevelFilter::WARN).try_init();
    });
}

/// The lines that this thread logs while `work` runs.
pub fn during(work: impl FnOnce()) -> String {
    let (lines, written) = mpsc::channel();
    let writer = move || Sender(lines.clone());
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).without_time().with_writer(writer);
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
    written.try_iter().collect()
}

/// The lines with all of these words.
pub fn with(words: &[&str]) -> Vec<String> {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).cloned().collect()
}

/// Waits for a line with all of these words.
pub async fn wait_for(words: &[&str], patience: Duration) -> Result<String> {
    let line = async {
        loop {
            // Register for new lines before looking, so that none is missed.
            let written = WRITTEN.notified();
            if let Some(line) = with(words).pop() {
                return line;
            }
            written.await;
        }
    };
    timeout(patience, line).await.with_context(|| format!("no line in the log has {words:?}"))
}
