//! Why something could not be stored or read.

use std::sync::Arc;

use super::{Fault, Unreadable, fault};

/// Why something could not be stored or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The group belongs to a later owner, or its log ends elsewhere than where the facts begin;
    /// nothing was written (I14, I3).
    #[error("the group belongs to a later owner, or its log ends elsewhere")]
    Fenced,
    /// The database refused. Nothing of the transaction was written.
    #[error("the database failed while it {operation}")]
    Database {
        /// What was going on.
        operation: &'static str,
        /// The database's own words.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The database does not work, and nothing was tried: whoever finds out that it works again
    /// is at it already.
    #[error("the database does not work: {}", .0.word())]
    Unavailable(Fault),
    /// The database cannot be used at all, and was left as it is.
    #[error("cannot use {file}: {why}; nothing was changed")]
    Unusable {
        /// The file or directory.
        file: String,
        /// What to do, or what is wrong.
        why: String,
        /// The cause.
        #[source]
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
    /// The database found one group's facts to break a rule of the schema; none of them is stored.
    #[error("the facts break a rule of the schema")]
    Refused(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The lease under which the facts were to be published is another's, or nobody's; nothing was
    /// written (SEEDS HL-11).
    #[error("the lease was lost before its facts were published")]
    LeaseLost,
    /// The data directory is another server's.
    #[error("{0} is in use by another greenroom")]
    InUse(String),
    /// The database was written by a later version.
    #[error("the database has schema {found}; this greenroom knows up to {known}")]
    TooNew {
        /// The database's version.
        found: u32,
        /// The last version known here.
        known: u32,
    },
    /// A row of one group cannot be understood. The database works, and so do the other groups.
    #[error("{0}")]
    Unreadable(Unreadable),
    /// A group, or the database, has used up a range of numbers; nothing was written.
    #[error("{0}")]
    Exhausted(&'static str),
    /// The storage actor is gone.
    #[error("storage has stopped")]
    Stopped,
}

impl StoreError {
    /// What is wrong with the database, if that is what the error says.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Database { source, .. } => {
                let broken = source.downcast_ref::<fault::Broken>();
                Some(broken.map_or(Fault::Other, |broken| broken.fault))
            }
            Self::Unavailable(fault) => Some(*fault),
            _ => None,
        }
    }

    /// Whether it concerns one group and not the database.
    pub fn is_one_groups(&self) -> bool {
        matches!(self, Self::Unreadable(_) | Self::Exhausted(_) | Self::Refused(_) | Self::Fenced)
    }

    /// How loud to log it for one group or request: what is wrong with the database, or with a
    /// row, is logged once, where it was found first.
    pub fn level(&self) -> log::Level {
        let known = self.fault().is_some() || matches!(self, Self::Unreadable(_));
        if known { log::Level::Debug } else { log::Level::Error }
    }
}
