//! The writer: the one actor that writes to the database.
//!
//! It commits the facts of all waiting groups in one transaction (group commit), and runs the
//! periodic work of the database.
//!
//! It is fail-stop. From the first failure on, only a trial write each second touches the database,
//! and every other request is refused at once. One log line reports the failure, one the recovery.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use actix::{Actor, AsyncContext as _, Context, Handler, Message};
use greenroom_core::{Timestamp, Trust};
use tokio::sync::oneshot;

use super::{
    Fault, GroupCommit, GroupNo, LockError, StorageHealth, Store, StoreError, StoredGroup, chain,
};
use crate::{
    abort_on_panic::{self, AbortOnPanic},
    clock,
};

/// How long an idempotency key is kept. The API guarantees at least 24 h.
pub(crate) const KEY_MS: i64 = 48 * 60 * 60 * 1000;
/// The wait between two trial writes while the database fails.
const PROBE: Duration = Duration::from_secs(1);
/// How often the files are checked.
const CHECK: Duration = Duration::from_secs(1);
/// The wait between two steps of giving free pages back, while there are no commits.
const SHRINK: Duration = Duration::from_millis(100);
/// How often the trusted time is stored.
const CLOCK: Duration = Duration::from_secs(600);
/// A wall clock that is further ahead of the trusted time is logged, milliseconds.
const DOUBTFUL_MS: i64 = 24 * 60 * 60 * 1000;
/// How often expired keys and leases are deleted.
const HOUSEKEEPING: Duration = Duration::from_secs(3600);
/// The most groups that get an owner in one transaction: commits wait for it.
const ADOPTIONS_MAX: usize = 100;

/// Stores one group's facts; the answer goes to `done`. Sent without waiting for room in the
/// mailbox: a group has at most one commit under way.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Commit {
    /// What to store.
    pub commit: GroupCommit,
    /// Where the answer goes.
    pub done: oneshot::Sender<Result<GroupCommit, StoreError>>,
}

/// Makes the caller the owner of a group, after the commits that wait; the group's rows go to
/// `done`. Sent without waiting for room in the mailbox: a group has at most one actor that starts.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Adopt {
    /// The group.
    pub group: GroupNo,
    /// Where its rows go.
    pub done: oneshot::Sender<Result<Option<StoredGroup>, StoreError>>,
}

/// Calls the store after the commits that wait. The closure passes its value on itself, and
/// returns its error to the writer.
#[derive(Message)]
#[rtype(result = "Result<(), StoreError>")]
pub struct Write(pub Box<WriteFn>);

type WriteFn = dyn FnOnce(&mut dyn Store) -> Result<(), StoreError> + Send;

/// Reports this error of the database, which a reader or the checkpointer got.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReadFailed(pub StoreError);

/// Returns the time by which transcripts are deleted: see [`greenroom_core::Trust`].
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Timestamp, StoreError>")]
pub struct TrustedTime;

/// Commits and adopts what waits, now that the mailbox is drained.
#[derive(Message)]
#[rtype(result = "()")]
struct Flush;

/// The writer of a store.
pub struct Writer<S> {
    store: S,
    health: StorageHealth,
    /// The commits of the next transaction.
    waiting: Vec<Commit>,
    /// The groups that wait for their next owner.
    adopting: VecDeque<Adopt>,
    /// The trusted time, once it was read.
    trust: Option<Trust>,
    /// When the database began to fail.
    failed: Option<Instant>,
    /// When the database was last tested after a reader's error.
    read_failed: Option<Instant>,
    /// The number of transactions at the last check for commits.
    transactions_seen: u64,
    _vital: AbortOnPanic,
}

impl<S: Store + Unpin> Writer<S> {
    /// Creates the writer of `store`.
    pub fn new(store: S, health: StorageHealth) -> Self {
        Self {
            store,
            health,
            waiting: Vec::new(),
            adopting: VecDeque::new(),
            trust: None,
            failed: None,
            read_failed: None,
            transactions_seen: 0,
            _vital: AbortOnPanic("storage"),
        }
    }

    /// Calls the store, such that a call that does not return is noticed.
    fn call<T>(&mut self, call: impl FnOnce(&mut S) -> T) -> T {
        let _call = self.health.calls().begin();
        call(&mut self.store)
    }

    /// Tests whether the database works.
    fn test(&mut self) -> Result<(), StoreError> {
        self.call(|store| store.check().and_then(|_| store.probe()))
    }

    fn flush(&mut self, ctx: &mut Context<Self>) {
        if !self.waiting.is_empty() {
            self.commit_waiting(ctx);
        }
        if !self.adopting.is_empty() {
            self.adopt_waiting(ctx);
        }
    }

    fn commit_waiting(&mut self, ctx: &mut Context<Self>) {
        let (batch, done): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).map(|waiting| (waiting.commit, waiting.done)).unzip();
        if batch.iter().any(|commit| commit.key.is_some())
            && let Some(trust) = &self.trust
        {
            self.store.stamp_keys(trust.time(clock::moment()));
        }
        let answers = self.commit(&batch, ctx);
        for ((commit, done), answer) in batch.into_iter().zip(done).zip(answers) {
            // Fails if the group's actor has stopped, which is then rebuilt from the rows.
            _ = done.send(answer.map(|()| commit));
        }
    }

    /// Gives some of the waiting groups to their next owners.
    fn adopt_waiting(&mut self, ctx: &mut Context<Self>) {
        let count = self.adopting.len().min(ADOPTIONS_MAX);
        let mut batch: Vec<Adopt> = self.adopting.drain(..count).collect();
        if !self.adopting.is_empty() {
            ctx.notify(Flush);
        }
        // An actor that has stopped must not take the group from the one that followed it.
        batch.retain(|adopt| !adopt.done.is_closed());
        let groups: Vec<GroupNo> = batch.iter().map(|adopt| adopt.group).collect();
        for (adopt, answer) in batch.into_iter().zip(self.adopt(&groups)) {
            _ = adopt.done.send(self.note_result(answer, ctx));
        }
    }

    /// Adopts the groups in one transaction, or each in its own if a row of one cannot be read
    /// (I15).
    fn adopt(&mut self, groups: &[GroupNo]) -> Vec<Result<Option<StoredGroup>, StoreError>> {
        let now = clock::moment().up;
        let works = self.health.check_works();
        let adopted = works.and_then(|()| self.call(|store| store.adopt_all(groups, now)));
        match adopted {
            Ok(found) => found.into_iter().map(Ok).collect(),
            Err(err) if err.is_of_one_group() && groups.len() > 1 => {
                groups.iter().map(|group| self.call(|store| store.adopt(*group, now))).collect()
            }
            Err(err) => groups.iter().map(|_| Err(err.clone())).collect(),
        }
    }

    /// Commits the batch in one transaction. If that fails and one group's facts may be the cause,
    /// commits each group in a transaction of its own, so that no group affects another (I15).
    fn commit(
        &mut self,
        batch: &[GroupCommit],
        ctx: &mut Context<Self>,
    ) -> Vec<Result<(), StoreError>> {
        let all = |err: &StoreError| batch.iter().map(|_| Err(err.clone())).collect();
        if let Err(refusal) = self.health.check_works() {
            return all(&refusal);
        }
        let mut answers = self.transact(batch);
        let mut split = false;
        if let Err(err) = &answers
            && batch.len() > 1
            && err.fault().is_none_or(Fault::may_be_of_one_group)
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
        // If other groups' facts were stored, the database works (I15).
        let works = split && answers.iter().any(Result::is_ok);
        let broken = |err: &&StoreError| {
            err.fault().is_some_and(|fault| !(works && fault.may_be_of_one_group()))
        };
        for err in errors().filter(|err| !broken(err)) {
            if let StoreError::Unreadable(row) = err {
                self.health.report_unreadable(row);
                continue;
            }
            log::error!(err:% = chain(err); "commit failed; none of its facts is stored");
        }
        let broken = errors().find(broken).cloned();
        self.note_database(broken.as_ref(), ctx);
        answers
    }

    /// Commits one transaction, and observes its duration.
    fn transact(
        &mut self,
        batch: &[GroupCommit],
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let began = Instant::now();
        let answers = self.call(|store| store.commit(batch));
        self.health.transacted(began.elapsed(), answers.as_deref().unwrap_or_default());
        answers
    }

    /// Records the result of a group's request: an unreadable row of the group, or whether the
    /// database works.
    fn note_result<T>(
        &mut self,
        done: Result<T, StoreError>,
        ctx: &mut Context<Self>,
    ) -> Result<T, StoreError> {
        match &done {
            Err(StoreError::Unreadable(row)) => self.health.report_unreadable(row),
            done => self.note_database(done.as_ref().err(), ctx),
        }
        done
    }

    /// Records whether the database works. While it does not, the writer tests it every second, as
    /// the groups may have nothing to write until the server is ready again.
    fn note_database(&mut self, broken: Option<&StoreError>, ctx: &mut Context<Self>) {
        match broken.and_then(|err| Some((err, err.fault()?))) {
            Some((err, fault)) => self.on_failure(err, fault, ctx),
            None if broken.is_none() => self.on_success(),
            None => {}
        }
    }

    fn on_failure(&mut self, err: &StoreError, fault: Fault, ctx: &mut Context<Self>) {
        // A failed sync ends the process, even if the database failed before.
        if !self.health.set_failing(fault) && fault != Fault::Unsynced {
            return;
        }
        log::error!(
            target: "greenroom::storage",
            file:% = self.store.file(), fault = fault.wire_name(), err:% = chain(err),
            remedy = fault.remedy();
            "storage failed; nothing is accepted or started until it works"
        );
        if fault == Fault::Unsynced {
            exit_after_failed_sync();
        }
        if self.failed.is_none() {
            self.failed = Some(Instant::now());
            ctx.run_later(PROBE, Self::probe);
        }
    }

    fn on_success(&mut self) {
        if !self.health.set_working() {
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
            match self.test() {
                Ok(()) => return self.on_success(),
                Err(err) => self.note_database(Some(&err), ctx),
            }
        }
        ctx.run_later(PROBE, Self::probe);
    }

    /// Checks the files, and begins to give free pages back if there are no commits.
    fn check(&mut self, ctx: &mut Context<Self>) {
        if !self.health.is_good() {
            return;
        }
        match self.call(S::check) {
            Ok(sizes) => self.health.measured(sizes),
            Err(err) => return self.note_database(Some(&err), ctx),
        }
        if self.is_quiet() {
            self.shrink(ctx);
        }
    }

    fn shrink(&mut self, ctx: &mut Context<Self>) {
        if !self.health.is_good() || !self.is_quiet() {
            return;
        }
        match self.call(S::shrink) {
            Ok(true) => {
                // So that the checkpointer moves the pages that this wrote.
                self.health.committed(0);
                self.transactions_seen = self.health.totals().1;
                ctx.run_later(SHRINK, Self::shrink);
            }
            Ok(false) => {}
            Err(err) => self.note_database(Some(&err), ctx),
        }
    }

    /// Whether there was no commit since the last call.
    fn is_quiet(&mut self) -> bool {
        let (_, transactions) = self.health.totals();
        std::mem::replace(&mut self.transactions_seen, transactions) == transactions
    }

    /// Advances the trusted time, stores it and returns it. After a start it is read first.
    fn update_trusted_time(&mut self, ctx: &mut Context<Self>) -> Result<Timestamp, StoreError> {
        self.health.check_works()?;
        let call = self.health.calls().begin();
        let advanced = self.advance_trusted_time();
        drop(call);
        self.note_result(advanced, ctx)
    }

    fn advance_trusted_time(&mut self) -> Result<Timestamp, StoreError> {
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
            // The doubt begins with the first reading.
            trust.advance(now, false);
        }
        self.store.put_trust(&trust, set_ms)?;
        let ahead_ms = trust.doubt_ms(now);
        if self.trust.is_none() && DOUBTFUL_MS < ahead_ms {
            log::warn!(
                target: "greenroom::storage", ahead_ms;
                "the wall clock is far ahead of the time in the database; nothing is deleted by it \
                 until the server has confirmed it for a day of running"
            );
        }
        if set_ms != 0 {
            log::info!(target: "greenroom::storage", set_ms; "trusted time set to the wall clock");
        }
        self.trust = Some(trust);
        Ok(trust.time(now))
    }

    /// Deletes expired idempotency keys and stale leases.
    fn delete_expired(&mut self, ctx: &mut Context<Self>) {
        let now = clock::moment();
        let Ok(trusted_time) = self.update_trusted_time(ctx) else { return };
        let _call = self.health.calls().begin();
        if let Err(err) = self.store.forget_keys(Timestamp(trusted_time.0.saturating_sub(KEY_MS))) {
            log::warn!(err:% = chain(&err); "expired idempotency keys could not be deleted");
            return self.note_database(Some(&err), ctx);
        }
        match self.store.forget_locks(now.up) {
            Ok(_) | Err(LockError::Absent) => {}
            Err(err) => {
                log::warn!(err:% = chain(&err); "stale leases could not be deleted");
                if let LockError::Store(err) = err {
                    self.note_database(Some(&err), ctx);
                }
            }
        }
    }
}

/// Ends the process. After a failed sync the kernel may mark pages as clean that never reached the
/// disk, and only reading the files again shows what did (F20). The shims kill their trees.
pub(super) fn exit_after_failed_sync() -> ! {
    log::logger().flush();
    std::process::exit(abort_on_panic::EXIT)
}

impl<S: Store + Unpin> Actor for Writer<S> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
        self.check(ctx);
        _ = self.update_trusted_time(ctx);
        ctx.run_interval(CLOCK, |writer, ctx| _ = writer.update_trusted_time(ctx));
        ctx.run_interval(CHECK, Self::check);
        ctx.run_interval(HOUSEKEEPING, Self::delete_expired);
    }
}

impl<S: Store + Unpin> Handler<Commit> for Writer<S> {
    type Result = ();

    fn handle(&mut self, commit: Commit, ctx: &mut Self::Context) {
        if self.waiting.is_empty() {
            // Handled when the mailbox is drained: what waits there joins the transaction.
            ctx.notify(Flush);
        }
        self.waiting.push(commit);
    }
}

impl<S: Store + Unpin> Handler<Adopt> for Writer<S> {
    type Result = ();

    fn handle(&mut self, adopt: Adopt, ctx: &mut Self::Context) {
        if self.adopting.is_empty() {
            // As for commits: the groups that start together share a transaction.
            ctx.notify(Flush);
        }
        self.adopting.push_back(adopt);
    }
}

impl<S: Store + Unpin> Handler<Flush> for Writer<S> {
    type Result = ();

    fn handle(&mut self, _: Flush, ctx: &mut Self::Context) {
        self.flush(ctx);
    }
}

impl<S: Store + Unpin> Handler<TrustedTime> for Writer<S> {
    type Result = Result<Timestamp, StoreError>;

    fn handle(&mut self, _: TrustedTime, ctx: &mut Self::Context) -> Self::Result {
        self.flush(ctx);
        self.update_trusted_time(ctx)
    }
}

impl<S: Store + Unpin> Handler<Write> for Writer<S> {
    type Result = Result<(), StoreError>;

    fn handle(&mut self, Write(write): Write, ctx: &mut Self::Context) -> Self::Result {
        self.flush(ctx);
        self.health.check_works()?;
        let done = self.call(|store| write(store));
        self.note_result(done, ctx)
    }
}

impl<S: Store + Unpin> Handler<ReadFailed> for Writer<S> {
    type Result = ();

    /// A damaged or replaced file fails for all. Any other error of a reader (no free descriptor, a
    /// limit of its own) proves nothing about the writer, so the writer tests the database itself.
    fn handle(&mut self, ReadFailed(err): ReadFailed, ctx: &mut Self::Context) {
        match err.fault() {
            Some(Fault::Corrupt | Fault::Replaced | Fault::Unsynced) => {
                self.note_database(Some(&err), ctx);
            }
            Some(_) if !self.health.is_good() => {}
            _ if self.read_failed.is_some_and(|at| at.elapsed() < PROBE) => {}
            _ => {
                self.read_failed = Some(Instant::now());
                log::error!(err:% = chain(&err); "a read of the database failed");
                if let Err(err) = self.test() {
                    self.note_database(Some(&err), ctx);
                }
            }
        }
    }
}
