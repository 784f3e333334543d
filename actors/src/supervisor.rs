//! Starts groups from the database, and rebuilds an actor that died.
//!
//! actix's own Supervisor leaves a closed mailbox behind after a panic; here a group's actor tells
//! of its end when it is dropped, however that comes about.

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
    awake::timeout,
    changes::{History, KEPT_MAX, Replay},
    clock,
    feed::Feed,
    group::{Change, Cut, Drain, Forget, Group, GroupDied, Halt, Shared, StatusChanged},
    storage::{GROUP_MAX, GroupIndex, GroupNo, StoreError},
    vital::Vital,
};

/// How long a cancelled turn may still take when the server shuts down.
const CUT: Duration = Duration::from_secs(5);
/// How long a group's agent may take to end after that: its ladder and what its keeper adds.
const HALT: Duration = Duration::from_secs(20);
/// How long after its end an actor is rebuilt, at first; doubled up to [`REBUILD_MAX`] while it
/// does not live long.
const REBUILD: Duration = Duration::from_millis(50);
const REBUILD_MAX: Duration = Duration::from_secs(5);
/// An actor that lived so long had no trouble starting.
const LIVED: Duration = Duration::from_secs(30);
/// How often it is looked whether anybody watches the status of all groups. A reader who comes back
/// within that time misses nothing.
const UNWATCHED: Duration = Duration::from_secs(60);

/// A group as the HTTP edge holds it.
#[derive(Clone, Debug)]
pub struct GroupHandle {
    /// Its name.
    pub id: GroupId,
    /// Its number.
    pub no: GroupNo,
    /// Its actor.
    pub addr: Addr<Group>,
    /// Its readers' feed.
    pub feed: Arc<Feed>,
}

/// Find a group, or make its actor. The group itself exists once something of it is durable.
#[derive(Debug, Message)]
#[rtype(result = "Option<GroupHandle>")]
pub struct Find {
    /// Its name.
    pub group: GroupId,
    /// Whether a name that nobody used yet is taken.
    pub create: bool,
}

/// Read the index of groups, and start those that have something to go on with.
#[derive(Debug, Message)]
#[rtype(result = "Result<usize, StoreError>")]
pub struct Boot;

/// End everything in order: start nothing, let running turns finish for a while, cancel them, end
/// every agent. Answered when nothing is left.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ShutDown;

/// Read the status changes after a number, and hear of all later ones.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Changes")]
pub struct ChangesAfter(pub u64);

/// Status changes of all groups.
#[derive(Debug, MessageResponse)]
pub struct Changes {
    /// The number of the first change that follows, if changes that were asked for are missing.
    pub gap: Option<u64>,
    /// Those that were asked for and are kept.
    pub past: Vec<Arc<Change>>,
    /// Those to come. A reader that falls far behind misses some, and learns of it.
    pub coming: broadcast::Receiver<Arc<Change>>,
}

struct Entry {
    handle: GroupHandle,
    incarnation: u64,
    started: Instant,
    patience: Duration,
}

/// The parent of all groups.
pub struct Supervisor {
    shared: Arc<Shared>,
    arbiters: Vec<Arbiter>,
    groups: HashMap<GroupId, Entry>,
    /// Groups that exist and whose actor nobody needed yet.
    dormant: HashMap<GroupId, GroupNo>,
    last_no: GroupNo,
    last_incarnation: u64,
    past_changes: History,
    changes: broadcast::Sender<Arc<Change>>,
    /// How often in a row nobody was found to watch.
    unwatched: u32,
    _vital: Vital,
}

impl Supervisor {
    /// A supervisor whose groups run on `arbiters`.
    pub fn new(shared: Arc<Shared>, arbiters: Vec<Arbiter>) -> Self {
        Self {
            shared,
            arbiters,
            groups: HashMap::new(),
            dormant: HashMap::new(),
            last_no: 0,
            last_incarnation: 0,
            // Microseconds since the epoch. No server makes a million changes a second for long, so
            // the numbers of an earlier life are below, or above if the clock was set back.
            past_changes: History::new(clock::now_us()),
            changes: broadcast::Sender::new(KEPT_MAX),
            unwatched: 0,
            _vital: Vital("supervisor"),
        }
    }

    fn open(&mut self, id: &GroupId, create: bool) -> Option<GroupHandle> {
        if let Some(entry) = self.groups.get(id) {
            return Some(entry.handle.clone());
        }
        let no = match self.dormant.remove(id) {
            Some(no) => no,
            None if create => {
                // The number after the last one stores nothing: its group refuses everything.
                self.last_no = self.last_no.saturating_add(1).min(GROUP_MAX + 1);
                self.last_no
            }
            None => return None,
        };
        Some(self.start(id.clone(), no, Arc::default(), REBUILD, Recovery::Restart))
    }

    /// Stops listening to status changes when nobody has wanted to know of them for a while.
    fn look_who_watches(&mut self, ctx: &mut Context<Self>) {
        if self.changes.receiver_count() > 0 {
            self.unwatched = 0;
        } else {
            self.unwatched += 1;
        }
        if self.unwatched > 1 {
            self.unwatched = 0;
            self.shared.watched.end();
        } else {
            ctx.run_later(UNWATCHED, Self::look_who_watches);
        }
    }

    fn start(
        &mut self,
        id: GroupId,
        no: GroupNo,
        feed: Arc<Feed>,
        patience: Duration,
        recovery: Recovery,
    ) -> GroupHandle {
        let arbiter = &self.arbiters[no as usize % self.arbiters.len()];
        self.last_incarnation += 1;
        let incarnation = self.last_incarnation;
        let (shared, for_actor) = (self.shared.clone(), (id.clone(), feed.clone()));
        let addr = Group::start_in_arbiter(&arbiter.handle(), move |_| {
            let (id, feed) = for_actor;
            Group::new(id, no, (incarnation, recovery), shared, feed)
        });
        let handle = GroupHandle { id: id.clone(), no, addr, feed };
        let entry =
            Entry { handle: handle.clone(), incarnation, started: Instant::now(), patience };
        self.groups.insert(id, entry);
        handle
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
        let ledger = self.shared.ledger.clone();
        let index = async move { ledger.read(|archive| archive.group_index()).await };
        AtomicResponse::new(Box::pin(index.into_actor(self).map(|index, supervisor, _| {
            let GroupIndex { groups, last_no } = index?;
            supervisor.last_no = last_no;
            let count = groups.len();
            for (no, id, busy) in groups {
                if busy {
                    supervisor.start(id, no, Arc::default(), REBUILD, Recovery::Restart);
                } else {
                    supervisor.dormant.insert(id, no);
                }
            }
            Ok(count)
        })))
    }
}

impl Handler<Find> for Supervisor {
    type Result = Option<GroupHandle>;

    fn handle(&mut self, find: Find, _: &mut Self::Context) -> Self::Result {
        self.open(&find.group, find.create)
    }
}

impl Handler<GroupDied> for Supervisor {
    type Result = ();

    fn handle(&mut self, died: GroupDied, ctx: &mut Self::Context) {
        let GroupDied { group: id, incarnation, recovery } = died;
        // Its mailbox may still be open: the actor tells of its end while it is being dropped.
        let entry = self.groups.get(&id).filter(|entry| entry.incarnation == incarnation);
        let Some(entry) = entry else { return };
        let patience = match entry.started.elapsed() {
            lived if lived >= LIVED => REBUILD,
            _ => (entry.patience * 2).min(REBUILD_MAX),
        };
        let (no, feed, wait) = (entry.handle.no, entry.handle.feed.clone(), entry.patience);
        log::warn!(
            target: "greenroom::supervisor", group:% = id, after_ms = wait.as_millis();
            "group actor ended; it is rebuilt from the database"
        );
        let health = self.shared.ledger.health.clone();
        let rested = async move {
            sleep(wait).await;
            // What it would believe of a database that fails would not be so.
            health.until_good().await;
        };
        ctx.spawn(rested.into_actor(self).map(move |(), supervisor, _| {
            if supervisor.groups.contains_key(&id) {
                supervisor.start(id, no, feed, patience, recovery);
            }
        }));
    }
}

impl Handler<Forget> for Supervisor {
    type Result = ();

    fn handle(&mut self, Forget(id): Forget, _: &mut Self::Context) {
        self.groups.remove(&id);
    }
}

impl Handler<StatusChanged> for Supervisor {
    type Result = ();

    fn handle(&mut self, StatusChanged(change): StatusChanged, _: &mut Self::Context) {
        let change = self.past_changes.push(change);
        // An error says that nobody listens.
        _ = self.changes.send(change);
    }
}

impl Handler<ChangesAfter> for Supervisor {
    type Result = Changes;

    fn handle(&mut self, ChangesAfter(id): ChangesAfter, ctx: &mut Self::Context) -> Self::Result {
        if let Some(unheard) = self.shared.watched.begin() {
            self.past_changes.skip(unheard);
            ctx.run_later(UNWATCHED, Self::look_who_watches);
        }
        let Replay { gap, past } = self.past_changes.after(id);
        Changes { gap, past, coming: self.changes.subscribe() }
    }
}

impl Handler<ShutDown> for Supervisor {
    /// Not atomic: reads are answered all through the drain.
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: ShutDown, _: &mut Self::Context) -> Self::Result {
        // Before any group hears of it: none claims work while the others are told.
        self.shared.draining.store(true, Ordering::SeqCst);
        let groups: Vec<GroupHandle> =
            self.groups.values().map(|entry| entry.handle.clone()).collect();
        let shared = self.shared.clone();
        Box::pin(drain(groups, shared))
    }
}

/// Every wait has an end: a group that hangs must not keep the server from its own.
async fn drain(groups: Vec<GroupHandle>, shared: Arc<Shared>) {
    let all = u32::try_from(shared.limits.running_groups).unwrap_or(u32::MAX);
    let idle = || shared.slots.acquire_many(all);
    for group in &groups {
        group.addr.do_send(Drain);
    }
    if timeout(shared.limits.drain, idle()).await.is_err() {
        log::warn!(
            target: "greenroom::supervisor",
            "drain took too long; running turns are cut off"
        );
        for group in &groups {
            group.addr.do_send(Cut);
        }
        // What does not heed it is ended below.
        _ = timeout(CUT, idle()).await;
    }
    let halts = groups.iter().map(|group| async {
        (timeout(HALT, group.addr.send(Halt)).await.is_err()).then_some(&group.id)
    });
    let left: Vec<&GroupId> = join_all(halts).await.into_iter().flatten().collect();
    for group in left {
        log::error!(
            target: "greenroom::supervisor", group:%;
            "group did not end its agent in time; the agent is killed as the server ends"
        );
    }
}
