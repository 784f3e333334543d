//! What greenroom writes to an agent, line by line, without ever waiting for it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    rc::Rc,
    time::Duration,
};

use tokio::{
    net::unix::pipe::Sender,
    sync::Notify,
    time::{Instant, timeout_at},
};

/// An agent that takes nothing for this long has hung (RELIABILITY F15).
const STALL: Duration = Duration::from_secs(10);
/// More than this unread is a hung agent too.
const BYTES_MAX: usize = 64 << 20;

/// The agent's standard input, and what does not fit into it yet.
#[derive(Default)]
pub struct Stdin {
    pipe: RefCell<Option<Rc<Sender>>>,
    waiting: RefCell<VecDeque<Line>>,
    /// Since when the agent took nothing of what waits.
    since: Cell<Option<Instant>>,
    more: Notify,
}

struct Line {
    text: Vec<u8>,
    written: usize,
}

impl Stdin {
    /// Begins with `pipe`; lines that were sent before go first.
    pub fn open(&self, pipe: Sender) {
        *self.pipe.borrow_mut() = Some(Rc::new(pipe));
        self.write();
    }

    /// Closes it; what was not written is lost.
    pub fn close(&self) {
        self.pipe.borrow_mut().take();
        self.waiting.borrow_mut().clear();
        self.since.set(None);
        self.more.notify_one();
    }

    /// Sends one line.
    pub fn send(&self, line: String) {
        let mut text = line.into_bytes();
        text.push(b'\n');
        self.waiting.borrow_mut().push_back(Line { text, written: 0 });
        self.write();
        if !self.waiting.borrow().is_empty() {
            self.more.notify_one();
        }
    }

    /// Writes what waits as the agent takes it. Ends only when the agent takes nothing any more.
    ///
    /// Cancel safe: how long the agent takes nothing counts on from one call to the next.
    pub async fn stall(&self) {
        loop {
            let (pipe, since) = (self.pipe.borrow().clone(), self.since.get());
            let (Some(pipe), Some(since)) = (pipe, since) else {
                self.more.notified().await;
                continue;
            };
            let unread: usize = self.waiting.borrow().iter().map(|line| line.text.len()).sum();
            if unread > BYTES_MAX || timeout_at(since + STALL, pipe.writable()).await.is_err() {
                return;
            }
            self.write();
        }
    }

    fn write(&self) {
        let pipe = self.pipe.borrow();
        let Some(pipe) = pipe.as_ref() else { return };
        let mut waiting = self.waiting.borrow_mut();
        while let Some(line) = waiting.front_mut() {
            match pipe.try_write(&line.text[line.written..]) {
                Ok(written) => {
                    line.written += written;
                    self.since.set(None);
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    self.since.set(self.since.get().or_else(|| Some(Instant::now())));
                    return;
                }
                // The agent closed its end: that it ended is told by its keeper.
                Err(_) => line.written = line.text.len(),
            }
            if line.written == line.text.len() {
                waiting.pop_front();
            }
        }
    }
}
