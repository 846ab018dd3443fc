//! Counts panics. A panic in a task of amqprs prints a text, but has no other effect that a caller sees. Here it is a
//! failure.

use std::{
    panic,
    sync::atomic::{AtomicU32, Ordering},
};

static PANICS: AtomicU32 = AtomicU32::new(0);

/// Counts panics from now on. They are printed as usual.
pub fn count() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        usual(info);
    }));
}

/// How many there were.
pub fn counted() -> u32 {
    PANICS.load(Ordering::Relaxed)
}
