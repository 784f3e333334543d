//! The faults of a database, and the operator's remedy for each.

use std::{error::Error, fmt};

use greenroom_core::Timestamp;

/// Why a database does not work (F19–F25).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No room is left, on the disk or in the file.
    DiskFull,
    /// The file is read-only.
    ReadOnly,
    /// Another program holds its lock.
    Locked,
    /// A file is damaged.
    Corrupt,
    /// A file was removed or replaced while it was open.
    Replaced,
    /// A sync failed. How much of the write is on disk is unknown, and a later successful sync does
    /// not prove it.
    Unsynced,
    /// A write does not return. Only requests from outside are refused for it: what waits in the
    /// writer's queue is stored once the write returns.
    Stalled,
    /// The system refused to read or to write: a broken disk, a quota, a limit on file sizes.
    Io,
    /// Any other error.
    Other,
}

impl Fault {
    /// The API's word for the fault, without a path (C21).
    pub fn wire_name(self) -> &'static str {
        match self {
            Self::DiskFull => "disk_full",
            Self::ReadOnly => "read_only",
            Self::Locked => "locked",
            Self::Corrupt => "corrupt",
            Self::Replaced => "file_replaced",
            Self::Unsynced => "sync_failed",
            Self::Stalled => "stalled",
            Self::Io => "io_error",
            Self::Other => "error",
        }
    }

    /// What the operator must do.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::DiskFull => "free space on its disk; work then resumes by itself",
            Self::ReadOnly => "give this user write access; work then resumes by itself",
            Self::Locked => "end the program that holds its lock; work then resumes by itself",
            Self::Corrupt => "stop the server, keep the files, and restore a backup",
            Self::Replaced => "stop the server; put the file back, or restore a backup",
            Self::Unsynced => "check the disk; the next start reads what is on it",
            Self::Stalled => "check the disk and what it waits for; work then resumes by itself",
            Self::Io => "check the disk, quotas and limits; work then resumes by itself",
            Self::Other => "greenroom retries every second",
        }
    }

    /// Whether a successful write proves that the fault has ended. It does not for a damaged file,
    /// which can still be written to.
    pub fn heals(self) -> bool {
        !matches!(self, Self::Corrupt | Self::Replaced)
    }

    /// Whether one group's facts may be the cause: then the writer commits each group by itself.
    pub(super) fn may_be_of_one_group(self) -> bool {
        matches!(self, Self::Other)
    }
}

/// Why a database does not work, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// Why.
    pub fault: Fault,
    /// Since when, by the wall clock.
    pub since: Timestamp,
}

/// A database's own error, with its fault.
#[derive(Debug)]
pub(super) struct FaultError {
    pub fault: Fault,
    pub cause: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl Error for FaultError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.source()
    }
}
