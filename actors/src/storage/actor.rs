//! The actor that commits: group commit, and one clear word when the database fails.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use actix::{Actor, AsyncContext as _, Context, Handler, Message};
use greenroom_core::Timestamp;
use tokio::sync::oneshot;

use super::{Cut, GroupNo, Hydration, LockError, Store, StoreError, Swept, Writes};
use crate::clock;

/// How long an idempotency key is kept. The contract says at least 24 h.
pub(crate) const KEY_MS: i64 = 48 * 60 * 60 * 1000;
/// How long after a failure the database is tried again.
const PROBE: std::time::Duration = std::time::Duration::from_secs(1);
/// How often old keys are looked for.
const HOUSEKEEPING: std::time::Duration = std::time::Duration::from_secs(3600);

/// Whether the last commit worked, and what was committed so far; for anybody to look at.
#[derive(Clone, Debug, Default)]
pub struct StorageHealth(Arc<Figures>);

#[derive(Debug, Default)]
struct Figures {
    failing: AtomicBool,
    commits: AtomicU64,
    transactions: AtomicU64,
}

impl StorageHealth {
    /// Whether the last transaction was durable.
    pub fn is_good(&self) -> bool {
        !self.0.failing.load(Ordering::Relaxed)
    }

    /// How many groups' commits there were, and in how many transactions.
    pub fn totals(&self) -> (u64, u64) {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        (of(&self.0.commits), of(&self.0.transactions))
    }
}

/// Makes one group's writes durable; `done` is told. Sent without waiting: a group has at most
/// one commit under way.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Commit {
    /// What to store.
    pub writes: Writes,
    /// Who waits for it.
    pub done: oneshot::Sender<Result<Writes, StoreError>>,
}

/// Makes the sender the group's only owner; see [`Store::adopt`].
#[derive(Debug, Message)]
#[rtype(result = "Result<Option<Hydration>, StoreError>")]
pub struct Adopt(pub GroupNo);

/// Deletes all rows of a group.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), StoreError>")]
pub struct Purge(pub GroupNo);

impl Message for Cut {
    type Result = Result<bool, StoreError>;
}

/// Deletes some frames of a cut log; see [`Store::sweep`].
#[derive(Debug, Message)]
#[rtype(result = "Result<Swept, StoreError>")]
pub struct Sweep(pub GroupNo);

/// Commit what was pushed, now that the mailbox is drained.
#[derive(Message)]
#[rtype(result = "()")]
struct Flush;

/// The one writer.
pub struct Storage<S> {
    pub(super) store: S,
    health: StorageHealth,
    waiting: Vec<Commit>,
}

impl<S: Store + Unpin> Storage<S> {
    /// The one writer of `store`.
    pub fn new(store: S, health: StorageHealth) -> Self {
        Self { store, health, waiting: Vec::new() }
    }

    fn flush(&mut self, ctx: &mut Context<Self>) {
        if self.waiting.is_empty() {
            return;
        }
        let (batch, done): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).map(|commit| (commit.writes, commit.done)).unzip();
        let answers = self.commit(&batch, ctx);
        for ((writes, done), answer) in batch.into_iter().zip(done).zip(answers) {
            // Nobody waits any more if the group's actor is gone; it is rebuilt from the rows.
            _ = done.send(answer.map(|()| writes));
        }
    }

    /// One transaction for all. If it fails and one group's facts may be the reason, each group
    /// gets a transaction of its own, so that none is felt by another (I15).
    fn commit(&mut self, batch: &[Writes], ctx: &mut Context<Self>) -> Vec<Result<(), StoreError>> {
        let mut answers = self.store.commit(batch);
        if let Err(err) = &answers
            && batch.len() > 1
        {
            log::warn!(groups = batch.len(), err:% = crate::storage::chain(err); "commit split");
            answers = batch
                .chunks(1)
                .map(|one| self.store.commit(one).map_or_else(Err, |mut sole| sole.remove(0)))
                .map(Ok)
                .collect();
        }
        let figures = &self.health.0;
        figures.transactions.fetch_add(1, Ordering::Relaxed);
        figures.commits.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let answers =
            answers.unwrap_or_else(|err| batch.iter().map(|_| Err(err.clone())).collect());
        for err in answers.iter().filter_map(|answer| answer.as_ref().err()) {
            let err = crate::storage::chain(err);
            log::error!(err:%; "commit failed; nothing of it is stored");
        }
        let broken = |answer: &&Result<_, _>| matches!(answer, Err(StoreError::Database { .. }));
        self.note(answers.iter().find(broken).is_none_or(Result::is_ok), ctx);
        answers
    }

    /// Keeps in mind whether the database works. While it does not it is tried every second: nobody
    /// may have anything to write until somebody says that it is ready again.
    pub(super) fn note(&mut self, works: bool, ctx: &mut Context<Self>) {
        let failed_before = self.health.0.failing.swap(!works, Ordering::Relaxed);
        if works && failed_before {
            log::info!(target: "greenroom::storage", "storage works again");
        }
        if !works && !failed_before {
            ctx.run_later(PROBE, Self::probe);
        }
    }

    fn probe(&mut self, ctx: &mut Context<Self>) {
        if self.health.is_good() {
            return;
        }
        match self.store.probe() {
            Ok(()) => self.note(true, ctx),
            Err(_) => _ = ctx.run_later(PROBE, Self::probe),
        }
    }
}

impl<S: Store + Unpin> Actor for Storage<S> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
        ctx.run_interval(HOUSEKEEPING, |storage, _| {
            let now = clock::moment();
            if let Err(err) = storage.store.forget_keys(Timestamp(now.wall.0 - KEY_MS)) {
                log::warn!(err:% = crate::storage::chain(&err); "old idempotency keys are kept");
            }
            match storage.store.forget_locks(now.up) {
                Ok(_) | Err(LockError::Absent) => {}
                Err(err) => {
                    log::warn!(err:% = crate::storage::chain(&err); "old leases are kept");
                }
            }
        });
    }
}

impl<S: Store + Unpin> Handler<Commit> for Storage<S> {
    type Result = ();

    fn handle(&mut self, commit: Commit, ctx: &mut Self::Context) {
        if self.waiting.is_empty() {
            // Handled only when the mailbox is drained: what waits there joins the transaction.
            ctx.notify(Flush);
        }
        self.waiting.push(commit);
    }
}

impl<S: Store + Unpin> Handler<Flush> for Storage<S> {
    type Result = ();

    fn handle(&mut self, _: Flush, ctx: &mut Self::Context) {
        self.flush(ctx);
    }
}

impl<S: Store + Unpin> Handler<Adopt> for Storage<S> {
    type Result = Result<Option<Hydration>, StoreError>;

    fn handle(&mut self, Adopt(group): Adopt, ctx: &mut Self::Context) -> Self::Result {
        self.flush(ctx);
        let adopted = self.store.adopt(group, clock::moment().up);
        self.note(adopted.is_ok(), ctx);
        adopted
    }
}

impl<S: Store + Unpin> Handler<Purge> for Storage<S> {
    type Result = Result<(), StoreError>;

    fn handle(&mut self, Purge(group): Purge, ctx: &mut Self::Context) -> Self::Result {
        self.flush(ctx);
        self.store.purge(group)
    }
}

impl<S: Store + Unpin> Handler<Cut> for Storage<S> {
    type Result = Result<bool, StoreError>;

    fn handle(&mut self, cut: Cut, ctx: &mut Self::Context) -> Self::Result {
        self.flush(ctx);
        self.store.forget_keys(cut.keys_before)?;
        self.store.cut(&cut)
    }
}

impl<S: Store + Unpin> Handler<Sweep> for Storage<S> {
    type Result = Result<Swept, StoreError>;

    fn handle(&mut self, Sweep(group): Sweep, ctx: &mut Self::Context) -> Self::Result {
        self.flush(ctx);
        self.store.sweep(group)
    }
}
