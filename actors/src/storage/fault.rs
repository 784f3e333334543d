//! What can be wrong with a database, as far as whoever runs it can do something about it.

use std::{error::Error, fmt};

use greenroom_core::Timestamp;

/// Why a database does not work (RELIABILITY F19–F25).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No room is left, on the disk or in the file.
    DiskFull,
    /// It may be read only.
    ReadOnly,
    /// Another program holds its lock.
    Locked,
    /// What stands in a file cannot be understood.
    Corrupt,
    /// A file was removed, or another one put in its place, while it was open.
    Replaced,
    /// What was written could not be synced. Nobody knows what of it is on disk, and a later sync
    /// that works says nothing about it.
    Unsynced,
    /// The system refused to read or to write: a broken disk, a quota, a limit on file sizes.
    Io,
    /// Whatever else.
    Other,
}

impl Fault {
    /// One word for it, without a path (RELIABILITY C21).
    pub fn word(self) -> &'static str {
        match self {
            Self::DiskFull => "disk_full",
            Self::ReadOnly => "read_only",
            Self::Locked => "locked",
            Self::Corrupt => "corrupt",
            Self::Replaced => "file_replaced",
            Self::Unsynced => "sync_failed",
            Self::Io => "io_error",
            Self::Other => "error",
        }
    }

    /// What to do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::DiskFull => "make room on its disk; work goes on by itself then",
            Self::ReadOnly => "let this user write to it; work goes on by itself then",
            Self::Locked => "end the program that holds its lock; work goes on by itself then",
            Self::Corrupt => "stop the server, keep the files, and restore a backup",
            Self::Replaced => "stop the server; put the file back, or restore a backup",
            Self::Unsynced => "look after the disk; the next start reads what is on it",
            Self::Io => "look after the disk, quotas and limits; work goes on by itself then",
            Self::Other => "it is tried again every second",
        }
    }

    /// Whether a write that works proves that it is over. A damaged file can be written to, too.
    pub fn heals(self) -> bool {
        !matches!(self, Self::Corrupt | Self::Replaced)
    }

    /// Whether the reason may be one group's facts: then the others are tried without them.
    pub(super) fn may_be_one_groups(self) -> bool {
        matches!(self, Self::Other)
    }
}

/// Since when a database does not work, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// Why.
    pub fault: Fault,
    /// Since when, by the wall clock.
    pub since: Timestamp,
}

/// A database's own error, with what it means for whoever runs it.
#[derive(Debug)]
pub(super) struct Broken {
    pub fault: Fault,
    pub cause: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl Error for Broken {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.source()
    }
}
