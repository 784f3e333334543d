//! An agent's stdin: queues lines and writes them as the agent reads, without blocking the group.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    rc::Rc,
    time::Duration,
};

use tokio::{net::unix::pipe::Sender, sync::Notify, task::yield_now};

use crate::awake::{self, Awake};

/// An agent that reads nothing for this long has hung (F15).
const STALL: Duration = Duration::from_secs(10);
/// An agent with more than this unread has hung too.
const BYTES_MAX: usize = 64 << 20;

/// The agent's standard input, and the lines that do not fit into it yet.
#[derive(Default)]
pub struct Stdin {
    pipe: RefCell<Pipe>,
    waiting: RefCell<VecDeque<Line>>,
    /// The bytes of the waiting lines, including the written part of the first.
    waiting_bytes: Cell<usize>,
    /// Since when the agent has read nothing while lines wait.
    stalled_since: Cell<Option<Awake>>,
    /// How many lines were sent.
    sent: Cell<u64>,
    /// The number of the last cancel among them.
    cancel: Cell<u64>,
    changed: Notify,
}

#[derive(Default)]
enum Pipe {
    /// Lines wait until it is open.
    #[default]
    Unopened,
    Open(Rc<Sender>),
    /// greenroom closed it.
    Closed,
    /// The agent closed its end.
    HungUp,
}

/// Why an agent cannot be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwritable {
    /// It reads nothing while lines wait.
    Stalled,
    /// It closed its end, or ended.
    HungUp,
}

struct Line {
    text: Vec<u8>,
    written: usize,
}

impl Stdin {
    /// Opens `pipe`; lines that were sent before go first.
    pub fn open(&self, pipe: Sender) {
        *self.pipe.borrow_mut() = Pipe::Open(Rc::new(pipe));
        self.write();
    }

    /// Closes the pipe; unwritten lines are lost.
    pub fn close(&self) {
        self.end(Pipe::Closed);
    }

    /// Returns how many lines were sent.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Returns the number of the last cancel among the lines that were sent; 0: there was none.
    pub fn cancel(&self) -> u64 {
        self.cancel.get()
    }

    /// Sends the line of a cancel.
    pub fn send_cancel(&self, line: String) {
        self.cancel.set(self.sent.get() + 1);
        self.send(line);
    }

    /// Sends one line; it is lost if either end of the pipe is closed.
    pub fn send(&self, line: String) {
        if matches!(*self.pipe.borrow(), Pipe::Closed | Pipe::HungUp) {
            return;
        }
        self.sent.set(self.sent.get() + 1);
        let mut text = line.into_bytes();
        text.push(b'\n');
        self.waiting_bytes.set(self.waiting_bytes.get() + text.len());
        self.waiting.borrow_mut().push_back(Line { text, written: 0 });
        self.write();
        if !self.waiting.borrow().is_empty() {
            self.changed.notify_one();
        }
    }

    /// Writes the waiting lines as the agent reads them. Returns only when the agent has stalled or
    /// hung up.
    ///
    /// Yields after each write: an agent that reads as fast as greenroom writes must not keep the
    /// thread from other groups (I15). Cancel safe: the time of a stall is counted across calls.
    pub async fn unwritable(&self) -> Unwritable {
        loop {
            let open = match &*self.pipe.borrow() {
                Pipe::HungUp => return Unwritable::HungUp,
                Pipe::Open(pipe) => Some(pipe.clone()),
                Pipe::Unopened | Pipe::Closed => None,
            };
            let (Some(pipe), Some(since)) = (open, self.stalled_since.get()) else {
                self.changed.notified().await;
                continue;
            };
            if self.waiting_bytes.get() > BYTES_MAX
                || awake::timeout_at(since + STALL, pipe.writable()).await.is_err()
            {
                return Unwritable::Stalled;
            }
            self.write();
            yield_now().await;
        }
    }

    fn write(&self) {
        // A pipe without a reader is always ready, and accepts nothing.
        if self.write_while_it_fits().is_err() {
            self.end(Pipe::HungUp);
        }
    }

    fn write_while_it_fits(&self) -> io::Result<()> {
        let pipe = self.pipe.borrow();
        let Pipe::Open(pipe) = &*pipe else { return Ok(()) };
        let mut waiting = self.waiting.borrow_mut();
        while let Some(line) = waiting.front_mut() {
            match pipe.try_write(&line.text[line.written..]) {
                Ok(written) => {
                    line.written += written;
                    self.stalled_since.set(None);
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    let since = self.stalled_since.get().unwrap_or_else(awake::now);
                    self.stalled_since.set(Some(since));
                    return Ok(());
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
            if line.written == line.text.len() {
                self.waiting_bytes.set(self.waiting_bytes.get() - line.text.len());
                waiting.pop_front();
            }
        }
        Ok(())
    }

    fn end(&self, how: Pipe) {
        *self.pipe.borrow_mut() = how;
        self.waiting.borrow_mut().clear();
        self.waiting_bytes.set(0);
        self.stalled_since.set(None);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{os::fd::OwnedFd, time::Instant};

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn full() -> (Stdin, OwnedFd) {
        let (agents_end, servers_end) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let stdin = Stdin::default();
        stdin.open(Sender::from_owned_fd(servers_end).unwrap());
        stdin.send("x".repeat(1 << 20));
        assert!(stdin.stalled_since.get().is_some(), "the pipe is full");
        (stdin, agents_end)
    }

    /// A pipe without a reader is always ready: the wait for room must not spin on it.
    #[tokio::test]
    async fn a_hang_up_ends_the_wait_for_room() {
        let (stdin, agents_end) = full();
        drop(agents_end);
        let waited = tokio::time::timeout(Duration::from_secs(10), stdin.unwritable()).await;
        assert_eq!(waited.unwrap(), Unwritable::HungUp);
        stdin.send("more".into());
        assert!(stdin.waiting.borrow().is_empty() && stdin.waiting_bytes.get() == 0);
        stdin.close();
        let waited = tokio::time::timeout(Duration::from_millis(10), stdin.unwritable()).await;
        assert!(waited.is_err(), "a pipe that greenroom closed is no fault of the agent's");
    }

    #[tokio::test]
    async fn the_wait_for_room_yields_to_others() {
        let (stdin, agents_end) = full();
        let reader = std::thread::spawn(move || {
            let (mut bytes, mut read) = (vec![0; 64 << 10], 0);
            while read <= 1 << 20 {
                read += rustix::io::read(&agents_end, &mut bytes).unwrap();
            }
            agents_end
        });
        let mut yields = 0;
        let began = Instant::now();
        while !stdin.waiting.borrow().is_empty() && began.elapsed() < Duration::from_secs(10) {
            tokio::select! {
                biased;
                _ = stdin.unwritable() => panic!("the agent reads"),
                () = yield_now() => yields += 1,
            }
        }
        assert!(yields > 0 && stdin.stalled_since.get().is_none(), "{yields}");
        drop(reader.join().unwrap());
    }

    /// I11: more unread bytes than the limit are a stall at once, not only after its time.
    #[tokio::test]
    async fn more_unread_than_the_limit_is_a_stall() {
        let (stdin, _agents_end) = full();
        stdin.send("x".repeat(BYTES_MAX));
        let waited = tokio::time::timeout(STALL / 2, stdin.unwritable()).await;
        assert_eq!(waited.unwrap(), Unwritable::Stalled);
    }
}
