//! The actor that commits: group commit, and one clear word when the database fails.
//!
//! It is fail-stop. From the first failure on nothing touches the database but a trial write each
//! second, and everything else is refused at once; one line in the log says so, and one when it is
//! over.

use std::time::{Duration, Instant};

use actix::{Actor, AsyncContext as _, Context, Handler, Message};
use greenroom_core::{Timestamp, Trust};
use tokio::sync::oneshot;

use super::{
    ClosedRows, Cut, DigestRows, EndedAt, Fault, GroupNo, Hydration, LockError, StorageHealth,
    Store, StoreError, Swept, Writes, chain,
};
use crate::{
    clock,
    vital::{self, Vital},
};

/// How long an idempotency key is kept. The contract says at least 24 h.
pub(crate) const KEY_MS: i64 = 48 * 60 * 60 * 1000;
/// How long after a failure the database is tried again.
const PROBE: Duration = Duration::from_secs(1);
/// How often the files are looked at.
const CHECK: Duration = Duration::from_secs(1);
/// Between two steps of giving free pages back, while nobody commits.
const SHRINK: Duration = Duration::from_millis(100);
/// How often the trusted time is stored.
const CLOCK: Duration = Duration::from_secs(600);
/// A wall clock that is further ahead of the trusted time is named in the log, milliseconds.
const DOUBTFUL_MS: i64 = 24 * 60 * 60 * 1000;
/// How often old keys are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(3600);

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

/// Stores digests of runs and tasks that were made again; see [`Store::put_closed`].
#[derive(Debug, Message)]
#[rtype(result = "Result<(), StoreError>")]
pub struct PutClosed {
    /// The group.
    pub group: GroupNo,
    /// Its owner's epoch.
    pub epoch: u64,
    /// The digests.
    pub rows: ClosedRows,
}

/// Stores digests that were made again; see [`Store::put_digests`].
#[derive(Debug, Message)]
#[rtype(result = "Result<(), StoreError>")]
pub struct PutDigests {
    /// The group.
    pub group: GroupNo,
    /// Its owner's epoch.
    pub epoch: u64,
    /// The digests.
    pub rows: DigestRows,
}

/// Stores how far ended tasks were handed on; see [`Store::put_exported`].
#[derive(Debug, Message)]
#[rtype(result = "Result<(), StoreError>")]
pub struct PutExported {
    /// To whom.
    pub name: &'static str,
    /// How far.
    pub place: EndedAt,
}

/// Deletes all rows of a group.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), StoreError>")]
pub struct Purge(pub GroupNo);

/// Somebody else met this error of the database: a reader, or whoever moves the write-ahead log.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Found(pub StoreError);
impl Message for Cut {
    type Result = Result<bool, StoreError>;
}

/// Deletes some frames of a cut log; see [`Store::sweep`].
#[derive(Debug, Message)]
#[rtype(result = "Result<Swept, StoreError>")]
pub struct Sweep(pub GroupNo);

/// The time by which transcripts are deleted: see [`greenroom_core::Trust`].
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Timestamp, StoreError>")]
pub struct Trusted;

/// Commit what was pushed, now that the mailbox is drained.
#[derive(Message)]
#[rtype(result = "()")]
struct Flush;

/// The one writer.
pub struct Storage<S> {
    pub(super) store: S,
    pub(super) health: StorageHealth,
    waiting: Vec<Commit>,
    /// The time by which things are deleted, once it was read.
    trust: Option<Trust>,
    /// Since when the database fails.
    failed: Option<Instant>,
    /// When a reader's failure was last looked into.
    read_failed: Option<Instant>,
    /// Transactions there were when it was last looked whether anybody commits.
    seen: u64,
    _vital: Vital,
}

impl<S: Store + Unpin> Storage<S> {
    /// The one writer of `store`.
    pub fn new(store: S, health: StorageHealth) -> Self {
        Self {
            store,
            health,
            waiting: Vec::new(),
            trust: None,
            failed: None,
            read_failed: None,
            seen: 0,
            _vital: Vital("storage"),
        }
    }

    /// What everybody is told while the database fails.
    pub(super) fn refusal(&self) -> Result<(), StoreError> {
        match self.health.failing() {
            Some(failing) => Err(StoreError::Unavailable(failing.fault)),
            None => Ok(()),
        }
    }

    fn flush(&mut self, ctx: &mut Context<Self>) {
        if self.waiting.is_empty() {
            return;
        }
        let (batch, done): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).map(|commit| (commit.writes, commit.done)).unzip();
        if batch.iter().any(|writes| writes.key.is_some())
            && let Some(trust) = &self.trust
        {
            self.store.stamp_keys(trust.time(clock::moment()));
        }
        let answers = self.commit(&batch, ctx);
        for ((writes, done), answer) in batch.into_iter().zip(done).zip(answers) {
            // Nobody waits any more if the group's actor is gone; it is rebuilt from the rows.
            _ = done.send(answer.map(|()| writes));
        }
    }

    /// One transaction for all. If it fails and one group's facts may be the reason, each group
    /// gets a transaction of its own, so that none is felt by another (I15).
    fn commit(&mut self, batch: &[Writes], ctx: &mut Context<Self>) -> Vec<Result<(), StoreError>> {
        let all = |err: &StoreError| batch.iter().map(|_| Err(err.clone())).collect();
        if let Err(refusal) = self.refusal() {
            return all(&refusal);
        }
        let mut answers = self.transact(batch);
        let mut split = false;
        if let Err(err) = &answers
            && batch.len() > 1
            && err.fault().is_none_or(Fault::may_be_one_groups)
        {
            log::warn!(groups = batch.len(), err:% = chain(err); "commit split");
            split = true;
            answers = batch
                .chunks(1)
                .map(|one| self.transact(one).map_or_else(Err, |mut sole| sole.remove(0)))
                .map(Ok)
                .collect();
        }
        self.health.committed(batch.len() as u64);
        let answers = answers.unwrap_or_else(|err| all(&err));
        let errors = || answers.iter().filter_map(|answer| answer.as_ref().err());
        // If others' facts were stored, it is not the database that is at fault (I15).
        let works = split && answers.iter().any(Result::is_ok);
        let broken = |err: &&StoreError| {
            err.fault().is_some_and(|fault| !(works && fault.may_be_one_groups()))
        };
        for err in errors().filter(|err| !broken(err)) {
            if let StoreError::Unreadable(row) = err {
                self.health.unreadable(row);
                continue;
            }
            log::error!(err:% = chain(err); "commit failed; nothing of it is stored");
        }
        let broken = errors().find(broken).cloned();
        self.note(broken.as_ref(), ctx);
        answers
    }

    /// One transaction, and what it took.
    fn transact(&mut self, batch: &[Writes]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let began = Instant::now();
        let answers = self.store.commit(batch);
        self.health.transacted(began.elapsed(), answers.as_deref().unwrap_or_default());
        answers
    }

    /// A transaction of its own, behind all that was asked for before it.
    fn put(
        &mut self,
        ctx: &mut Context<Self>,
        put: impl FnOnce(&mut S) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.flush(ctx);
        self.refusal()?;
        let done = put(&mut self.store);
        self.judge(done, ctx)
    }

    /// Takes in how a group's request ended: whether the database works, or only a row of the group
    /// cannot be understood.
    fn judge<T>(
        &mut self,
        done: Result<T, StoreError>,
        ctx: &mut Context<Self>,
    ) -> Result<T, StoreError> {
        match &done {
            Err(StoreError::Unreadable(row)) => self.health.unreadable(row),
            done => self.note(done.as_ref().err(), ctx),
        }
        done
    }

    /// Keeps in mind whether the database works. While it does not it is tried every second: nobody
    /// may have anything to write until somebody says that it is ready again.
    pub(super) fn note(&mut self, broken: Option<&StoreError>, ctx: &mut Context<Self>) {
        match broken.and_then(|err| Some((err, err.fault()?))) {
            Some((err, fault)) => self.fail(err, fault, ctx),
            None if broken.is_none() => self.work(),
            None => {}
        }
    }

    fn fail(&mut self, err: &StoreError, fault: Fault, ctx: &mut Context<Self>) {
        // Whatever failed before: a sync that failed ends the process.
        if !self.health.fail(fault) && fault != Fault::Unsynced {
            return;
        }
        log::error!(
            target: "greenroom::storage",
            file:% = self.store.file(), fault = fault.word(), err:% = chain(err),
            remedy = fault.remedy();
            "storage failed; nothing is accepted or started until it works"
        );
        if fault == Fault::Unsynced {
            unsynced();
        }
        if self.failed.is_none() {
            self.failed = Some(Instant::now());
            ctx.run_later(PROBE, Self::probe);
        }
    }

    fn work(&mut self) {
        if !self.health.work() {
            return;
        }
        let down = self.failed.take().map_or(Duration::ZERO, |since| since.elapsed());
        log::info!(
            target: "greenroom::storage", down_ms = down.as_millis();
            "storage works again"
        );
    }

    fn probe(&mut self, ctx: &mut Context<Self>) {
        let Some(failing) = self.health.failing() else { return };
        if failing.fault.heals() {
            match self.store.check().and_then(|_| self.store.probe()) {
                Ok(()) => return self.work(),
                Err(err) => self.note(Some(&err), ctx),
            }
        }
        ctx.run_later(PROBE, Self::probe);
    }

    /// Looks at the files, and begins to give free pages back if nobody commits.
    fn check(&mut self, ctx: &mut Context<Self>) {
        if !self.health.is_good() {
            return;
        }
        match self.store.check() {
            Ok(sizes) => self.health.measured(sizes),
            Err(err) => return self.note(Some(&err), ctx),
        }
        if self.is_quiet() {
            self.shrink(ctx);
        }
    }

    fn shrink(&mut self, ctx: &mut Context<Self>) {
        if !self.health.is_good() || !self.is_quiet() {
            return;
        }
        match self.store.shrink() {
            Ok(true) => {
                // The checkpointer moves what was written for it.
                self.health.committed(0);
                self.seen = self.health.totals().1;
                ctx.run_later(SHRINK, Self::shrink);
            }
            Ok(false) => {}
            Err(err) => self.note(Some(&err), ctx),
        }
    }

    /// Whether nobody committed since the last look.
    fn is_quiet(&mut self) -> bool {
        let (_, transactions) = self.health.totals();
        std::mem::replace(&mut self.seen, transactions) == transactions
    }

    /// Advances the trusted time and stores it; reads it first after a start.
    fn look_at_clock(&mut self, ctx: &mut Context<Self>) -> Result<Timestamp, StoreError> {
        self.refusal()?;
        let looked = self.advance_clock();
        self.judge(looked, ctx)
    }

    fn advance_clock(&mut self) -> Result<Timestamp, StoreError> {
        let now = clock::moment();
        let known = match self.trust {
            Some(known) => Some(known),
            None => self.store.trust()?,
        };
        let (mut trust, set_ms) = match known {
            Some(mut trust) => {
                let set_ms = trust.advance(now, self.trust.is_some());
                (trust, set_ms)
            }
            None => (Trust::first(self.store.newest(now.wall)?, now), 0),
        };
        if known.is_none() {
            // The doubt begins with the first look.
            trust.advance(now, false);
        }
        self.store.put_trust(&trust, set_ms)?;
        let ahead_ms = trust.doubt_ms(now);
        if self.trust.is_none() && DOUBTFUL_MS < ahead_ms {
            log::warn!(
                target: "greenroom::storage", ahead_ms;
                "the wall clock is far ahead of the time that the database knows; nothing is \
                 deleted by it before it has been so for a day of running"
            );
        }
        if set_ms != 0 {
            log::info!(target: "greenroom::storage", set_ms; "trusted time set to the wall clock");
        }
        self.trust = Some(trust);
        Ok(trust.time(now))
    }

    fn keep_house(&mut self, ctx: &mut Context<Self>) {
        let now = clock::moment();
        let Ok(trusted) = self.look_at_clock(ctx) else { return };
        if let Err(err) = self.store.forget_keys(Timestamp(trusted.0.saturating_sub(KEY_MS))) {
            log::warn!(err:% = chain(&err); "old idempotency keys are kept");
            return self.note(Some(&err), ctx);
        }
        match self.store.forget_locks(now.up) {
            Ok(_) | Err(LockError::Absent) => {}
            Err(err) => {
                log::warn!(err:% = chain(&err); "old leases are kept");
                if let LockError::Store(err) = err {
                    self.note(Some(&err), ctx);
                }
            }
        }
    }
}

/// Ends the process: after a sync that failed, the kernel may take for clean what never came to
/// the disk, and only a new reading of the files tells what did (RELIABILITY F20). The shims kill
/// their trees.
pub(super) fn unsynced() -> ! {
    log::logger().flush();
    std::process::exit(vital::EXIT)
}

impl<S: Store + Unpin> Actor for Storage<S> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
        self.check(ctx);
        _ = self.look_at_clock(ctx);
        ctx.run_interval(CLOCK, |storage, ctx| _ = storage.look_at_clock(ctx));
        ctx.run_interval(CHECK, Self::check);
        ctx.run_interval(HOUSEKEEPING, Self::keep_house);
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

impl<S: Store + Unpin> Handler<Trusted> for Storage<S> {
    type Result = Result<Timestamp, StoreError>;

    fn handle(&mut self, _: Trusted, ctx: &mut Self::Context) -> Self::Result {
        self.flush(ctx);
        self.look_at_clock(ctx)
    }
}

impl<S: Store + Unpin> Handler<Adopt> for Storage<S> {
    type Result = Result<Option<Hydration>, StoreError>;

    fn handle(&mut self, Adopt(group): Adopt, ctx: &mut Self::Context) -> Self::Result {
        self.flush(ctx);
        self.refusal()?;
        let adopted = self.store.adopt(group, clock::moment().up);
        self.judge(adopted, ctx)
    }
}

impl<S: Store + Unpin> Handler<PutClosed> for Storage<S> {
    type Result = Result<(), StoreError>;

    fn handle(&mut self, put: PutClosed, ctx: &mut Self::Context) -> Self::Result {
        let PutClosed { group, epoch, rows } = put;
        self.put(ctx, |store| store.put_closed(group, epoch, &rows))
    }
}

impl<S: Store + Unpin> Handler<PutDigests> for Storage<S> {
    type Result = Result<(), StoreError>;

    fn handle(&mut self, put: PutDigests, ctx: &mut Self::Context) -> Self::Result {
        let PutDigests { group, epoch, rows } = put;
        self.put(ctx, |store| store.put_digests(group, epoch, &rows))
    }
}

impl<S: Store + Unpin> Handler<PutExported> for Storage<S> {
    type Result = Result<(), StoreError>;

    fn handle(&mut self, put: PutExported, ctx: &mut Self::Context) -> Self::Result {
        self.put(ctx, |store| store.put_exported(put.name, put.place))
    }
}

impl<S: Store + Unpin> Handler<Purge> for Storage<S> {
    type Result = Result<(), StoreError>;

    fn handle(&mut self, Purge(group): Purge, ctx: &mut Self::Context) -> Self::Result {
        self.flush(ctx);
        self.refusal()?;
        let purged = self.store.purge(group);
        if purged.is_ok() {
            self.health.purged(group);
        }
        self.judge(purged, ctx)
    }
}

impl<S: Store + Unpin> Handler<Found> for Storage<S> {
    type Result = ();

    /// A file that is damaged, or another, is so for everybody. Whatever else keeps a reader from
    /// reading (no descriptor left, a limit of its own) says nothing about the writer, who tries
    /// for itself.
    fn handle(&mut self, Found(err): Found, ctx: &mut Self::Context) {
        match err.fault() {
            Some(Fault::Corrupt | Fault::Replaced | Fault::Unsynced) => {
                self.note(Some(&err), ctx);
            }
            Some(_) if !self.health.is_good() => {}
            _ if self.read_failed.is_some_and(|at| at.elapsed() < PROBE) => {}
            _ => {
                self.read_failed = Some(Instant::now());
                log::error!(err:% = chain(&err); "the database could not be read");
                if let Err(err) = self.store.check().and_then(|_| self.store.probe()) {
                    self.note(Some(&err), ctx);
                }
            }
        }
    }
}

impl<S: Store + Unpin> Handler<Cut> for Storage<S> {
    type Result = Result<bool, StoreError>;

    fn handle(&mut self, cut: Cut, ctx: &mut Self::Context) -> Self::Result {
        self.flush(ctx);
        self.refusal()?;
        let done = self.store.forget_keys(cut.keys_before).and_then(|_| self.store.cut(&cut));
        self.judge(done, ctx)
    }
}

impl<S: Store + Unpin> Handler<Sweep> for Storage<S> {
    type Result = Result<Swept, StoreError>;

    fn handle(&mut self, Sweep(group): Sweep, ctx: &mut Self::Context) -> Self::Result {
        self.flush(ctx);
        self.refusal()?;
        let swept = self.store.sweep(group);
        self.judge(swept, ctx)
    }
}
