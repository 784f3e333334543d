//! What the tests share: a real server with its own directory and port, HTTP and SSE clients, and
//! the scripted agent's journal.
//!
//! It knows only binaries, files and HTTP; only the database that a server leaves is read with
//! greenroom's own reader. Its functions panic with the end of the server's log.

#![allow(clippy::unwrap_used)]

use std::{
    thread,
    time::{Duration, Instant},
};

mod attempts;
pub mod collector;
mod compaction;
pub mod hermes;
pub mod http;
mod inbox;
pub mod journal;
pub mod log;
pub mod openmetrics;
pub mod process;
pub mod programs;
pub mod random;
pub mod routes;
pub mod server;
pub mod setup;
pub mod sse;
mod stored;
pub mod strace;

pub use attempts::millis;
pub use journal::Journal;
pub use log::Log;
pub use server::Server;
pub use setup::{Home, Setup};
pub use sse::{Event, Events};

/// How long a test waits for anything that should happen immediately, on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// The intervals of polling what cannot be awaited: a file, a process table. A look takes several
/// milliseconds of a core, so a long wait looks less often.
const POLL_MIN: Duration = Duration::from_millis(5);
const POLL_MAX: Duration = Duration::from_millis(25);

/// Polls `look` until it returns a value; `None` after `timeout`.
pub fn poll<T>(timeout: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let found = look();
        if found.is_some() || timeout <= start.elapsed() {
            return found;
        }
        thread::sleep((start.elapsed() / 16).clamp(POLL_MIN, POLL_MAX));
    }
}

/// [`poll`]s until `look` returns a value.
///
/// # Panics
///
/// After `timeout`, with `what` and the end of the server's log.
#[track_caller]
pub fn within<T>(timeout: Duration, what: &str, log: &Log, look: impl FnMut() -> Option<T>) -> T {
    poll(timeout, look)
        .unwrap_or_else(|| panic!("timed out after {timeout:?} waiting for {what}\n{}", log.tail()))
}

/// [`within`] the usual timeout.
#[track_caller]
pub fn eventually<T>(what: &str, log: &Log, look: impl FnMut() -> Option<T>) -> T {
    within(TIMEOUT, what, log, look)
}
