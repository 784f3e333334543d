//! The errors of storage.

use std::sync::Arc;

use super::{Fault, Unreadable, fault};

/// Why something could not be stored or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The group has a later owner, or its log does not end where the facts begin; nothing was
    /// stored (I14, I3).
    #[error("the group has a later owner, or its log does not end where the facts begin")]
    Fenced,
    /// The database failed. Nothing of the transaction is stored.
    #[error("the database failed while it {operation}")]
    Database {
        /// What the database did, in the past tense.
        operation: &'static str,
        /// The database's own message.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The database does not work, and nothing was attempted: the writer already tests it once a
    /// second.
    #[error("the database does not work: {}", .0.wire_name())]
    Unavailable(Fault),
    /// The database cannot be used at all; it was not changed.
    #[error("cannot use {file}: {why}; nothing was changed")]
    Unusable {
        /// The file or directory.
        file: String,
        /// What is wrong, and what to do.
        why: String,
        /// The cause.
        #[source]
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
    /// One group's facts violate a constraint of the schema; none of them is stored.
    #[error("the facts violate a constraint of the schema")]
    Refused(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The holder has lost the lease that the facts need: another holder has the lock, or it is
    /// free; nothing was stored (HL-11).
    #[error("the lease was lost before its facts were published")]
    LeaseLost,
    /// Another server uses the data directory.
    #[error("{0} is in use by another greenroom")]
    InUse(String),
    /// A later version wrote the database.
    #[error(
        "{file} is of a later greenroom: its schema is {found}, and this greenroom knows up to \
         {known}; start the later greenroom, or restore a backup from before its first start"
    )]
    TooNew {
        /// The database.
        file: String,
        /// The database's version.
        found: u32,
        /// The last version that this greenroom knows.
        known: u32,
    },
    /// A row of one group is unreadable. The database and the other groups work.
    #[error("{0}")]
    Unreadable(Unreadable),
    /// A group, or the database, has used up a range of numbers; nothing was stored.
    #[error("{0}")]
    Exhausted(&'static str),
    /// The writer or the readers have stopped.
    #[error("storage has stopped")]
    Stopped,
}

impl StoreError {
    /// The database's fault, if the error is one of the database.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Database { source, .. } => {
                let error = source.downcast_ref::<fault::FaultError>();
                Some(error.map_or(Fault::Other, |error| error.fault))
            }
            Self::Unavailable(fault) => Some(*fault),
            _ => None,
        }
    }

    /// Whether the error concerns one group only.
    pub fn is_of_one_group(&self) -> bool {
        matches!(self, Self::Unreadable(_) | Self::Exhausted(_) | Self::Refused(_) | Self::Fenced)
    }

    /// The level at which one group or request logs the error: `debug` for a fault of the database
    /// or an unreadable row, which was logged once already.
    pub fn level(&self) -> log::Level {
        let known = self.fault().is_some() || matches!(self, Self::Unreadable(_));
        if known { log::Level::Debug } else { log::Level::Error }
    }
}

/// Formats an error and all its causes on one line.
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(": ");
        text.push_str(&err.to_string());
        cause = err.source();
    }
    text
}
