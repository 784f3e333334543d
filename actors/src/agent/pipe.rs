//! One of an agent's two pipes, and what was read from it.

use std::io;

use bytes::BytesMut;
use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver};

/// One read takes no more than this: other groups of the same thread wait while it is heard.
pub const READ_BYTES: usize = 32 << 10;

/// A pipe that is read.
pub struct Pipe {
    /// Its end.
    pub pipe: Receiver,
    /// What was read and not taken yet.
    pub buffer: BytesMut,
    /// Bytes of the buffer that hold no line feed.
    pub searched: usize,
    /// Whether there is no more to come.
    pub ended: bool,
    /// Bytes to read before the pipe counts as ended, once its writers are gone.
    left: Option<u64>,
}

impl Pipe {
    /// Nothing was read from it yet.
    pub fn new(pipe: Receiver) -> Self {
        Self { pipe, buffer: BytesMut::new(), searched: 0, ended: false, left: None }
    }

    /// Takes what stands in the pipe now for all that its writers said, as they are gone: what
    /// comes later is from something else that holds the pipe open (RELIABILITY F9).
    pub fn writers_are_gone(&mut self) {
        self.left = Some(rustix::io::ioctl_fionread(&self.pipe).unwrap_or_default());
    }

    /// Counts bytes that were read.
    pub fn took(&mut self, bytes: usize) {
        self.left = self.left.map(|left| left.saturating_sub(bytes as u64));
    }

    /// Whether all that its writers said was read, and something else may hold the pipe open.
    pub fn is_drained(&self) -> bool {
        !self.ended && self.left == Some(0)
    }

    /// Waits until there is something, and reads it. Cancel safe.
    pub async fn read(&mut self) -> io::Result<usize> {
        self.pipe.readable().await?;
        self.buffer.reserve(READ_BYTES);
        self.pipe.read_buf(&mut self.buffer).await
    }
}
