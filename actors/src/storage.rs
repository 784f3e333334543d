//! Storage: the traits of a database, its rows, the writer, the readers, and the handle [`Db`].
//!
//! One writer on a thread of its own makes all commits. It stores the waiting commits of all groups
//! in one transaction, which gains more than a weaker sync would.

mod calls;
mod db;
mod digests;
mod error;
mod fault;
mod filter;
mod gauges;
mod health;
pub mod holder;
pub mod lease;
mod lock;
mod metrics;
mod plan;
mod read_store;
mod reader;
mod rows;
mod salvage;
pub mod sqlite;
pub mod stall;
mod store;
mod unreadable;
mod work_dir;
mod writer;

pub(crate) use self::writer::KEY_MS;
pub use self::{
    db::Db,
    digests::{
        DigestRows, EndedAt, EndedFilter, EndedTurn, RunDigestRow, SealedDigests, TurnEntry,
        TurnFilter, TurnRow,
    },
    error::{StoreError, chain},
    fault::{Failing, Fault},
    filter::{CurrentView, FrameFilter, PermissionFilter, TaskFilter},
    gauges::GaugeSnapshot,
    health::{Sizes, Stall, StorageHealth},
    lock::{LockError, LockGrant, LockRequest},
    metrics::StorageMetrics,
    read_store::ReadStore,
    reader::{Query, Reader},
    rows::{
        Ended, GROUP_MAX, GroupCommit, GroupIndex, GroupNo, GroupSummary, KeyUse, Left, Listed,
        LogTruncation, PermissionRecord, RunRecord, SEQ_MAX, SegmentRecord, Snapshot,
        StoredCheckpoint, StoredGroup, Swept, TaskView,
    },
    salvage::{Rebuilt, Salvage, SalvagedPermission, SalvagedTask},
    store::Store,
    unreadable::{BrokenGroup, Unreadable, fault_in, once},
    work_dir::WorkDir,
    writer::{Adopt, Commit, ReadFailed, TrustedTime, Write, Writer},
};
