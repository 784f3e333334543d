//! The server's stderr, over all its restarts.

use std::{
    io::{BufRead, BufReader, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use super::eventually;

/// The number of lines that a failure shows.
const TAIL_LINES: usize = 60;

/// A growing list of lines; clones share it.
#[derive(Clone, Default)]
pub struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    /// Held while the reader stands still.
    reader: Arc<Mutex<()>>,
}

impl Log {
    /// Collects the lines of `stream` until it ends, in a new thread.
    pub fn follow(&self, stream: impl Read + Send + 'static) {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                drop(log.stop_reading());
                log.push(String::from_utf8_lossy(&line).into_owned());
            }
        });
    }

    /// Makes the reader stand still, until the result is dropped.
    pub fn stop_reading(&self) -> MutexGuard<'_, ()> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, line: String) {
        self.lock().push(line);
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
        eventually(what, self, || self.lock().iter().find(|line| fits(line)).cloned())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
