//! The server's stderr, over all its restarts.

use std::{
    io::{BufRead, BufReader, Read},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::TIMEOUT;

/// The number of lines that a failure shows.
const TAIL_LINES: usize = 60;

/// A growing list of lines, with waits; clones share it.
#[derive(Clone, Default)]
pub struct Log(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Log {
    /// Collects the lines of `stream` until it ends, in a new thread.
    pub fn follow(&self, stream: impl Read + Send + 'static) {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                log.push(String::from_utf8_lossy(&line).into_owned());
            }
        });
    }

    pub fn push(&self, line: String) {
        self.lock().push(line);
        self.0.1.notify_all();
    }

    pub fn lines(&self) -> Vec<String> {
        self.lock().clone()
    }

    /// Returns the last lines, under a heading.
    pub fn tail(&self) -> String {
        let lines = self.lock();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        format!("--- end of the server's log ---\n{}\n---", tail.join("\n"))
    }

    /// Waits for the first line that `fits` accepts, earlier lines included.
    #[track_caller]
    pub fn wait(&self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        self.wait_within(TIMEOUT, what, fits)
    }

    /// [`Self::wait`] with a timeout of its own.
    #[track_caller]
    pub fn wait_within(
        &self,
        timeout: Duration,
        what: &str,
        fits: impl Fn(&str) -> bool,
    ) -> String {
        let deadline = Instant::now() + timeout;
        let mut lines = self.lock();
        loop {
            if let Some(line) = lines.iter().find(|line| fits(line)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(lines);
                panic!("no log line in {timeout:?}: {what}\n{}", self.tail());
            }
            let waited = self.0.1.wait_timeout(lines, left);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
