//! One of an agent's output pipes, and its read buffer.

use std::io;

use bytes::BytesMut;
use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver};

/// The size of one read: other groups of the same thread wait while it is handled.
pub const READ_BYTES: usize = 32 << 10;

/// An output pipe.
pub struct Pipe {
    /// The reading end.
    pub pipe: Receiver,
    /// Bytes that were read and not handled yet.
    pub buffer: BytesMut,
    /// The number of leading bytes of the buffer without a line feed.
    pub searched: usize,
    /// Whether no more bytes follow.
    pub ended: bool,
    /// The bytes to read before the pipe counts as ended, once its writers are gone.
    left: Option<u64>,
}

impl Pipe {
    /// Creates the reader of a new pipe.
    pub fn new(pipe: Receiver) -> Self {
        Self { pipe, buffer: BytesMut::new(), searched: 0, ended: false, left: None }
    }

    /// Limits the pipe to the bytes that it holds now, as its writers are gone: later bytes come
    /// from a foreign process that holds the pipe open (F9).
    pub fn limit_to_written(&mut self) {
        self.left = Some(rustix::io::ioctl_fionread(&self.pipe).unwrap_or_default());
    }

    /// Counts bytes that were read.
    pub fn count_read(&mut self, bytes: usize) {
        self.left = self.left.map(|left| left.saturating_sub(bytes as u64));
    }

    /// Whether all bytes of its writers were read, though a foreign process may hold the pipe open.
    pub fn is_drained(&self) -> bool {
        !self.ended && self.left == Some(0)
    }

    /// Whether the pipe holds bytes that were not read.
    pub fn has_unread(&self) -> bool {
        !self.ended && rustix::io::ioctl_fionread(&self.pipe).is_ok_and(|bytes| bytes > 0)
    }

    /// Waits until the pipe is readable, and reads. Cancel safe.
    pub async fn read(&mut self) -> io::Result<usize> {
        self.pipe.readable().await?;
        self.buffer.reserve(READ_BYTES);
        self.pipe.read_buf(&mut self.buffer).await
    }
}
