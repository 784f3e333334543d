//! A bounded queue between those that log and stderr: a reader of the log that stands still (a
//! stopped terminal, a blocked log driver) stops the log, and nothing else.

use std::{
    io,
    os::fd::AsFd,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

/// The most bytes that wait. As many again may be in the hands of the writing thread.
const BYTES_MAX: usize = 1 << 20;
/// How long the end of the process waits for the reader.
const FLUSH_WAIT: Duration = Duration::from_secs(1);

/// The lines that wait for a writing thread.
pub struct LogQueue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    /// Formats the line which says how many lines are missing in its place.
    notice: Box<dyn Fn(u64) -> String + Send + Sync>,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// How many lines were dropped since the last that was added.
    missing: u64,
    /// How many lines were dropped since the start.
    dropped: u64,
    is_writing: bool,
}

impl LogQueue {
    pub fn new(notice: impl Fn(u64) -> String + Send + Sync + 'static) -> Self {
        Self { waiting: Mutex::default(), changed: Condvar::new(), notice: Box::new(notice) }
    }

    /// Starts the thread that writes the lines to `out`, for as long as the process runs.
    ///
    /// # Errors
    ///
    /// The thread could not be started.
    pub fn start(&'static self, out: impl AsFd + Send + 'static) -> io::Result<()> {
        let write = move || {
            loop {
                let lines = self.take();
                write_all(&out, &lines);
                self.lock().is_writing = false;
                self.changed.notify_all();
            }
        };
        thread::Builder::new().name("log".into()).spawn(write).map(drop)
    }

    /// Adds a line, with its end. Drops it if too many wait.
    pub fn push(&self, line: &str) {
        let mut waiting = self.lock();
        self.add_notice(&mut waiting);
        if waiting.missing > 0 || waiting.lines.len() + line.len() > BYTES_MAX {
            waiting.missing += 1;
            waiting.dropped += 1;
            return;
        }
        waiting.lines.extend_from_slice(line.as_bytes());
        drop(waiting);
        self.changed.notify_all();
    }

    /// Says how many lines are missing here, if there is room for more again: the reader is back.
    fn add_notice(&self, waiting: &mut Waiting) {
        if waiting.missing > 0 && waiting.lines.len() <= BYTES_MAX / 2 {
            let notice = (self.notice)(std::mem::take(&mut waiting.missing));
            waiting.lines.extend_from_slice(notice.as_bytes());
        }
    }

    /// Waits for lines, and takes them to be written.
    fn take(&self) -> Vec<u8> {
        let mut waiting = self.lock();
        loop {
            self.add_notice(&mut waiting);
            if !waiting.lines.is_empty() {
                waiting.is_writing = true;
                return std::mem::take(&mut waiting.lines);
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until all lines are written, or a second has passed.
    pub fn flush(&self) {
        let is_busy = |waiting: &mut Waiting| waiting.is_writing || !waiting.lines.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), FLUSH_WAIT, is_busy));
    }

    /// How many lines were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes all lines. A reader that is gone reads no lines: they are lost.
fn write_all(out: impl AsFd, mut lines: &[u8]) {
    while !lines.is_empty() {
        match rustix::io::write(&out, lines) {
            Ok(written) => lines = &lines[written..],
            Err(Errno::INTR) => {}
            // Another process has made the stream non-blocking.
            Err(Errno::AGAIN) => _ = poll(&mut [PollFd::new(&out, PollFlags::OUT)], None),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        fs::File,
        io::{BufRead as _, BufReader},
    };

    use super::*;

    fn started(is_nonblocking: bool) -> (&'static LogQueue, BufReader<File>) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&write, is_nonblocking).unwrap();
        let queue = Box::leak(Box::new(LogQueue::new(|missing| format!("{missing} missing\n"))));
        queue.start(write).unwrap();
        (queue, BufReader::new(read.into()))
    }

    /// A reader that stands still stops nothing; the lines that it missed are counted where they
    /// are missing, and all others are there, in order.
    #[test]
    fn a_reader_that_stands_still_misses_counted_lines() {
        for is_nonblocking in [false, true] {
            let (queue, mut reader) = started(is_nonblocking);
            let padding = "x".repeat(1000);
            for number in 0..5_000 {
                queue.push(&format!("{number} {padding}\n"));
            }
            let dropped = queue.dropped();
            assert!((1..5_000).contains(&dropped), "{dropped}");
            let mut expected = 0;
            let mut line = String::new();
            while expected < 5_000 {
                line.clear();
                reader.read_line(&mut line).unwrap();
                let (number, rest) = line.trim_end().split_once(' ').unwrap();
                let number = number.parse::<u64>().unwrap();
                if rest == "missing" {
                    expected += number;
                } else {
                    assert_eq!(number, expected);
                    expected += 1;
                }
            }
            assert_eq!(expected, 5_000);
            queue.push("back\n");
            line.clear();
            reader.read_line(&mut line).unwrap();
            assert_eq!((line.as_str(), queue.dropped()), ("back\n", dropped));
        }
    }

    /// The end of the process waits for lines that are read, not for a reader that stands still.
    #[test]
    fn flush_waits_for_the_lines_but_not_for_ever() {
        let (queue, mut reader) = started(false);
        queue.push("one\n");
        queue.flush();
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "one\n");
        queue.push(&"x".repeat(512 << 10));
        queue.flush();
        assert!(queue.lock().is_writing, "the pipe holds 64 KiB");
    }
}
