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
}

impl Pipe {
    /// Nothing was read from it yet.
    pub fn new(pipe: Receiver) -> Self {
        Self { pipe, buffer: BytesMut::new(), searched: 0, ended: false }
    }

    /// Reads what is there, without waiting.
    pub fn try_read(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ_BYTES);
        self.pipe.try_read_buf(&mut self.buffer)
    }

    /// Waits until there is something, and reads it. Cancel safe.
    pub async fn read(&mut self) -> io::Result<usize> {
        self.pipe.readable().await?;
        self.buffer.reserve(READ_BYTES);
        self.pipe.read_buf(&mut self.buffer).await
    }
}
