//! The parent of all groups: starts them, rebuilds an actor that died, and shuts all down.
//!
//! actix's own Supervisor leaves a closed mailbox after a panic; here a group's actor reports its
//! end when it is dropped, whatever the reason.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use actix::{
    Actor, ActorFutureExt as _, Addr, Arbiter, AsyncContext as _, AtomicResponse, Context, Handler,
    Message, MessageResponse, ResponseFuture, WrapFuture as _,
};
use futures_util::future::join_all;
use greenroom_core::{GroupId, Recovery};
use tokio::{sync::broadcast, time::sleep};

use crate::{
    abort_on_panic::AbortOnPanic,
    awake::timeout,
    changes::{Backlog, Change, KEPT_MAX, RecentChanges},
    clock,
    group::{CancelRunning, Drain, Forget, Group, GroupDied, Shared, StatusChanged, StopAgent},
    quota::Full,
    storage::{GROUP_MAX, GroupIndex, GroupNo, Left, StoreError},
    transcript::feed::Feed,
};

/// How long a cancelled turn may still take when the server shuts down.
const CANCEL_WAIT: Duration = Duration::from_secs(5);
/// How long a group's agent may take to stop after that: its escalation and the shim's time.
const STOP_WAIT: Duration = Duration::from_secs(20);
/// How long after its end an actor is rebuilt, at first; doubled up to [`REBUILD_WAIT_MAX`] while
/// its successors end early too.
const REBUILD_WAIT: Duration = Duration::from_millis(50);
const REBUILD_WAIT_MAX: Duration = Duration::from_secs(5);
/// An actor that ran this long started without trouble.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// How often the supervisor checks for readers of status changes. A reader who reconnects within
/// that time misses nothing.
const READERS_CHECK_EVERY: Duration = Duration::from_secs(60);

/// A group as its readers hold it: its rows are found by its number.
#[derive(Clone, Debug)]
pub struct KnownGroup {
    /// Its name.
    pub id: GroupId,
    /// Its number.
    pub no: GroupNo,
    /// Its readers' feed, whatever actor fills it.
    pub feed: Arc<Feed>,
}

/// A group as those hold it who change it.
#[derive(Clone, Debug)]
pub struct GroupHandle {
    /// Its name.
    pub id: GroupId,
    /// Its number.
    pub no: GroupNo,
    /// Its owner.
    pub addr: Addr<Group>,
}

/// Look a group up for its readers. Starts no actor.
#[derive(Debug, Message)]
#[rtype(result = "Option<KnownGroup>")]
pub struct LookUp(pub GroupId);

/// Find a group's owner, or start its actor. The group itself exists once it has a durable fact.
#[derive(Debug, Message)]
#[rtype(result = "Result<Option<GroupHandle>, Full>")]
pub struct FindOwner {
    /// The group's name.
    pub group: GroupId,
    /// Whether an unknown name gets an actor too.
    pub create: bool,
}

/// Read the index of groups, and start those with work to continue. From the answer on, the groups
/// that readers must wait for are known.
#[derive(Debug, Message)]
#[rtype(result = "Result<usize, StoreError>")]
pub struct Boot;

/// Shut down in order: start no work, let running turns finish for a while, cancel them, stop every
/// agent. The answer comes when all agents are gone.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ShutDown;

/// Read the status changes after a number, and subscribe to all later ones.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Changes")]
pub struct ChangesAfter(pub u64);

/// Status changes of all groups.
#[derive(Debug, MessageResponse)]
pub struct Changes {
    /// The number of the first change available, if requested ones are missing.
    pub gap: Option<u64>,
    /// The requested changes that are still in memory.
    pub past: Vec<Arc<Change>>,
    /// Later changes. A reader that lags too far misses some, and is notified of that.
    pub live: broadcast::Receiver<Arc<Change>>,
}

/// A group that exists, or that will once its actor has stored a fact.
struct Entry {
    no: GroupNo,
    /// Created for the first reader or actor. Outlives the actors, and ends with the group.
    feed: Option<Arc<Feed>>,
    /// The last actor; `None` until one is needed.
    actor: Option<Running>,
}

struct Running {
    addr: Addr<Group>,
    incarnation: u64,
    started: Instant,
    rebuild_wait: Duration,
}

/// The parent of all groups.
pub struct Supervisor {
    shared: Arc<Shared>,
    arbiters: Vec<Arbiter>,
    groups: HashMap<GroupId, Entry>,
    last_no: GroupNo,
    last_incarnation: u64,
    past_changes: RecentChanges,
    changes: broadcast::Sender<Arc<Change>>,
    /// The number of checks in a row that found no reader.
    checks_without_readers: u32,
    _vital: AbortOnPanic,
}

impl Supervisor {
    /// Creates a supervisor whose groups run on `arbiters`.
    pub fn new(shared: Arc<Shared>, arbiters: Vec<Arbiter>) -> Self {
        Self {
            shared,
            arbiters,
            groups: HashMap::new(),
            last_no: 0,
            last_incarnation: 0,
            // Microseconds since the epoch. No server makes a million changes a second for long, so
            // the numbers of an earlier process are lower, or higher if the clock was set back.
            past_changes: RecentChanges::new(clock::now_us()),
            changes: broadcast::Sender::new(KEPT_MAX),
            checks_without_readers: 0,
            _vital: AbortOnPanic("supervisor"),
        }
    }

    fn look_up(&mut self, id: &GroupId) -> Option<KnownGroup> {
        let entry = self.groups.get_mut(id)?;
        Some(KnownGroup { id: id.clone(), no: entry.no, feed: entry.feed() })
    }

    fn find_owner(&mut self, id: &GroupId, create: bool) -> Result<Option<GroupHandle>, Full> {
        if create && !self.groups.contains_key(id) {
            self.shared.quotas.groups.check(1)?;
            // The number after the last one stores nothing: its group refuses everything.
            self.last_no = self.last_no.saturating_add(1).min(GROUP_MAX + 1);
            self.groups.insert(id.clone(), Entry::new(self.last_no));
            self.count_groups();
        }
        let Some(entry) = self.groups.get(id) else { return Ok(None) };
        Ok(entry.handle(id).or_else(|| self.start(id, REBUILD_WAIT, Recovery::Restart)))
    }

    fn count_groups(&self) {
        self.shared.quotas.groups.set(self.groups.len() as u64);
    }

    /// Stops receiving status changes after two checks without readers.
    fn check_readers(&mut self, ctx: &mut Context<Self>) {
        if self.changes.receiver_count() > 0 {
            self.checks_without_readers = 0;
        } else {
            self.checks_without_readers += 1;
        }
        if self.checks_without_readers > 1 {
            self.checks_without_readers = 0;
            self.shared.change_gate.close();
        } else {
            ctx.run_later(READERS_CHECK_EVERY, Self::check_readers);
        }
    }

    /// Starts an actor of a known group.
    fn start(
        &mut self,
        id: &GroupId,
        rebuild_wait: Duration,
        recovery: Recovery,
    ) -> Option<GroupHandle> {
        let entry = self.groups.get_mut(id)?;
        let arbiter = &self.arbiters[entry.no as usize % self.arbiters.len()];
        self.last_incarnation += 1;
        let incarnation = self.last_incarnation;
        let (shared, feed, for_actor, no) =
            (self.shared.clone(), entry.feed(), id.clone(), entry.no);
        let addr = Group::start_in_arbiter(&arbiter.handle(), move |_| {
            Group::new(for_actor, no, (incarnation, recovery), shared, feed)
        });
        entry.actor = Some(Running { addr, incarnation, started: Instant::now(), rebuild_wait });
        entry.handle(id)
    }
}

impl Entry {
    fn new(no: GroupNo) -> Self {
        Self { no, feed: None, actor: None }
    }

    fn feed(&mut self) -> Arc<Feed> {
        self.feed.get_or_insert_default().clone()
    }

    fn handle(&self, id: &GroupId) -> Option<GroupHandle> {
        let addr = self.actor.as_ref()?.addr.clone();
        Some(GroupHandle { id: id.clone(), no: self.no, addr })
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(4096);
    }
}

impl Handler<Boot> for Supervisor {
    type Result = AtomicResponse<Self, Result<usize, StoreError>>;

    fn handle(&mut self, _: Boot, _: &mut Self::Context) -> Self::Result {
        let db = self.shared.db.clone();
        let index = async move { db.read(|store| store.group_index()).await };
        AtomicResponse::new(Box::pin(index.into_actor(self).map(|index, supervisor, _| {
            let GroupIndex { groups, last_no } = index?;
            supervisor.last_no = last_no;
            let count = groups.len();
            let (mut unsettled, mut waiting) = (Vec::new(), Vec::new());
            for (no, id, left) in groups {
                supervisor.groups.insert(id.clone(), Entry::new(no));
                match left {
                    Left::Nothing => {}
                    Left::Work => waiting.push(id),
                    Left::Unsettled => unsettled.push((no, id)),
                }
            }
            supervisor.count_groups();
            supervisor.shared.unsettled.found(unsettled.iter().map(|(no, _)| *no));
            // First those that readers wait for.
            for id in unsettled.into_iter().map(|(_, id)| id).chain(waiting) {
                supervisor.start(&id, REBUILD_WAIT, Recovery::Restart);
            }
            Ok(count)
        })))
    }
}

impl Handler<LookUp> for Supervisor {
    type Result = Option<KnownGroup>;

    fn handle(&mut self, LookUp(group): LookUp, _: &mut Self::Context) -> Self::Result {
        self.look_up(&group)
    }
}

impl Handler<FindOwner> for Supervisor {
    type Result = Result<Option<GroupHandle>, Full>;

    fn handle(&mut self, find: FindOwner, _: &mut Self::Context) -> Self::Result {
        self.find_owner(&find.group, find.create)
    }
}

impl Handler<GroupDied> for Supervisor {
    type Result = ();

    fn handle(&mut self, died: GroupDied, ctx: &mut Self::Context) {
        let GroupDied { group: id, incarnation, recovery } = died;
        // Its mailbox may still be open: the actor reports its end while it is being dropped.
        let actor = self.groups.get(&id).and_then(|entry| entry.actor.as_ref());
        let Some(actor) = actor.filter(|actor| actor.incarnation == incarnation) else { return };
        let wait = actor.rebuild_wait;
        let next_wait = match actor.started.elapsed() {
            lived if lived >= STABLE_AFTER => REBUILD_WAIT,
            _ => (wait * 2).min(REBUILD_WAIT_MAX),
        };
        log::warn!(
            target: "greenroom::supervisor", group:% = id, after_ms = wait.as_millis();
            "group actor ended; it is rebuilt from the database"
        );
        let health = self.shared.db.health.clone();
        let ready = async move {
            sleep(wait).await;
            // A failing database cannot give back the group's state.
            health.until_good().await;
        };
        ctx.spawn(ready.into_actor(self).map(move |(), supervisor, _| {
            supervisor.start(&id, next_wait, recovery);
        }));
    }
}

impl Handler<Forget> for Supervisor {
    type Result = ();

    fn handle(&mut self, Forget(id): Forget, _: &mut Self::Context) {
        self.groups.remove(&id);
        self.count_groups();
    }
}

impl Handler<StatusChanged> for Supervisor {
    type Result = ();

    fn handle(&mut self, StatusChanged(change): StatusChanged, _: &mut Self::Context) {
        let change = self.past_changes.push(change);
        // An error means that no reader is connected.
        _ = self.changes.send(change);
    }
}

impl Handler<ChangesAfter> for Supervisor {
    type Result = Changes;

    fn handle(&mut self, ChangesAfter(id): ChangesAfter, ctx: &mut Self::Context) -> Self::Result {
        if let Some(missed) = self.shared.change_gate.open() {
            self.past_changes.skip(missed);
            ctx.run_later(READERS_CHECK_EVERY, Self::check_readers);
        }
        let Backlog { gap, past } = self.past_changes.after(id);
        Changes { gap, past, live: self.changes.subscribe() }
    }
}

impl Handler<ShutDown> for Supervisor {
    /// Not atomic: reads are answered throughout the drain.
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: ShutDown, _: &mut Self::Context) -> Self::Result {
        // Before any group gets its message: none claims work while the others get theirs.
        self.shared.draining.store(true, Ordering::SeqCst);
        let groups: Vec<GroupHandle> =
            self.groups.iter().filter_map(|(id, entry)| entry.handle(id)).collect();
        let shared = self.shared.clone();
        Box::pin(drain(groups, shared))
    }
}

/// Drains the groups, cancels what runs, and stops the agents. Every wait is bounded: a group that
/// hangs must not stop the server from ending.
async fn drain(groups: Vec<GroupHandle>, shared: Arc<Shared>) {
    let all = u32::try_from(shared.capacity.slots()).unwrap_or(u32::MAX);
    let idle = || shared.slots.acquire_many(all);
    for group in &groups {
        group.addr.do_send(Drain);
    }
    if timeout(shared.drain_timeout, idle()).await.is_err() {
        log::warn!(
            target: "greenroom::supervisor",
            "drain took too long; running turns are cancelled"
        );
        for group in &groups {
            group.addr.do_send(CancelRunning);
        }
        // A turn that does not end then is ended with its agent below.
        _ = timeout(CANCEL_WAIT, idle()).await;
    }
    let stops = groups.iter().map(|group| async {
        (timeout(STOP_WAIT, group.addr.send(StopAgent)).await.is_err()).then_some(&group.id)
    });
    let left: Vec<&GroupId> = join_all(stops).await.into_iter().flatten().collect();
    for group in left {
        log::error!(
            target: "greenroom::supervisor", group:%;
            "group did not stop its agent in time; the agent is killed as the server ends"
        );
    }
}
