//! A store behind a gate: a test decides before each call whether the database works.

use std::rc::Rc;

use actix::{Actor, Arbiter, Context, Handler, SyncArbiter};
use greenroom_actors::storage::{
    Db, DigestRows, EndedAt, GroupCommit, GroupNo, LockError, LockGrant, LockRequest,
    LogTruncation, Query, Reader, SealedDigests, StorageHealth, Store, StoreError, StoredGroup,
    Swept, Writer,
    sqlite::{Database, SqliteStore},
};
use greenroom_core::{
    Now, Timestamp, Uptime,
    lock::{Holder, Lease, Lock},
};

/// What the writer calls.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Commit,
    Probe,
    Other,
}

/// The store, and the gate that lets each call pass or fail.
pub struct Gated<G>(pub SqliteStore, pub G);

/// The failure of a database.
pub fn failure() -> StoreError {
    let source = std::sync::Arc::new(std::io::Error::other("on demand"));
    StoreError::Database { operation: "was used", source }
}

impl<G: FnMut(Call) -> Result<(), StoreError>> Gated<G> {
    fn pass(&mut self, call: Call) -> Result<&mut SqliteStore, StoreError> {
        (self.1)(call)?;
        Ok(&mut self.0)
    }
}

impl<G: FnMut(Call) -> Result<(), StoreError> + Send + 'static> Store for Gated<G> {
    fn commit(&mut self, batch: &[GroupCommit]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        self.pass(Call::Commit)?.commit(batch)
    }

    fn probe(&mut self) -> Result<(), StoreError> {
        self.pass(Call::Probe)?.probe()
    }

    fn adopt_all(
        &mut self,
        groups: &[GroupNo],
        now: Uptime,
    ) -> Result<Vec<Option<StoredGroup>>, StoreError> {
        self.pass(Call::Other)?.adopt_all(groups, now)
    }

    fn put_sealed(
        &mut self,
        no: GroupNo,
        epoch: u64,
        rows: &SealedDigests,
    ) -> Result<(), StoreError> {
        self.pass(Call::Other)?.put_sealed(no, epoch, rows)
    }

    fn put_digests(
        &mut self,
        no: GroupNo,
        epoch: u64,
        rows: &DigestRows,
    ) -> Result<(), StoreError> {
        self.pass(Call::Other)?.put_digests(no, epoch, rows)
    }

    fn claim(&mut self, no: GroupNo) -> Result<Option<u64>, StoreError> {
        self.pass(Call::Other)?.claim(no)
    }

    fn purge(&mut self, no: GroupNo, epoch: Option<u64>) -> Result<(), StoreError> {
        self.pass(Call::Other)?.purge(no, epoch)
    }

    fn forget_keys(&mut self, before: Timestamp) -> Result<usize, StoreError> {
        self.pass(Call::Other)?.forget_keys(before)
    }

    fn forget_locks(&mut self, now: Uptime) -> Result<usize, LockError> {
        self.pass(Call::Other)?.forget_locks(now)
    }

    fn truncate_log(&mut self, truncation: &LogTruncation) -> Result<bool, StoreError> {
        self.pass(Call::Other)?.truncate_log(truncation)
    }

    fn sweep(&mut self, no: GroupNo) -> Result<Swept, StoreError> {
        self.pass(Call::Other)?.sweep(no)
    }

    fn put_exported(&mut self, name: &str, place: EndedAt) -> Result<(), StoreError> {
        self.pass(Call::Other)?.put_exported(name, place)
    }

    fn lock_acquire(
        &mut self,
        request: &LockRequest,
        now: Now,
        is_dead: &dyn Fn(&Holder) -> bool,
    ) -> Result<LockGrant, LockError> {
        self.pass(Call::Other)?.lock_acquire(request, now, is_dead)
    }

    fn lock_refresh(&mut self, lease: &Lease, now: Now) -> Result<Lock, LockError> {
        self.pass(Call::Other)?.lock_refresh(lease, now)
    }

    fn lock_release(&mut self, lease: &Lease) -> Result<bool, LockError> {
        self.pass(Call::Other)?.lock_release(lease)
    }
}

/// Starts a writer of `store`, and a reader of the same database.
pub fn start(database: &Database, store: impl Store + Unpin) -> Db {
    let opener = database.opener();
    let readers = SyncArbiter::start(1, move || {
        let opener = opener.clone();
        Reader::new(move || opener.read_store())
    });
    let health = StorageHealth::default();
    let writer = Writer::new(store, health.clone());
    Db::new(Writer::start_in_arbiter(&Arbiter::new().handle(), move |_| writer), readers, health)
}

/// A reader that does something before it answers this query, or any if it is 0; the first query is
/// number 1.
struct Before {
    query: u32,
    asked: u32,
    database: Rc<Database>,
    act: fn(&Database),
}

impl Actor for Before {
    type Context = Context<Self>;
}

impl Handler<Query> for Before {
    type Result = ();

    fn handle(&mut self, Query(ask): Query, _: &mut Self::Context) {
        self.asked += 1;
        if self.query == 0 || self.asked == self.query {
            (self.act)(&self.database);
        }
        ask(Ok(&self.database.opener().read_store().unwrap()));
    }
}

/// Returns the same database, which changes by `act` before the reader answers `query`.
pub fn before(db: &Db, database: &Rc<Database>, query: u32, act: fn(&Database)) -> Db {
    let before = Before { query, asked: 0, database: Rc::clone(database), act };
    Db { query: before.start().recipient(), ..db.clone() }
}
