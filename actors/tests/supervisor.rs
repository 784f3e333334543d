//! Groups through the deaths of their actors and the failures of their storage (I2, I15).
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix::{Actor as _, Addr, Arbiter, AsyncContext as _, Context, Handler, Message, SyncArbiter};
use greenroom_actors::{
    agent::{
        Nursery, acp,
        child::{HEARTBEAT_EVERY, Heartbeat},
        tree::Marker,
    },
    changes::Watched,
    feed::{Next, Tail},
    group::{Accepted, Await, Demand, Group, GroupError, Shared, Submit},
    profile::{Compacts, Limits, Profile, Rlimits, Signals},
    residents::Residents,
    storage::{
        ClosedRows, Cut, DigestRows, EndedAt, Granted, GroupNo, Hydration, Ledger, LockAsk,
        LockError, Reader, Storage, StorageHealth, Store, StoreError, Swept, Writes,
        sqlite::{Database, SqliteStore},
    },
    supervisor::{Boot, Find, GroupHandle, Supervisor},
};
use greenroom_core::{
    OnInterrupt, Patience, Policy, Retry, Task, TaskState, Timestamp,
    lock::{Holder, Lease, Lock, Now, Uptime},
};
use tempfile::TempDir;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);

/// A store that fails when told to.
struct Flaky {
    store: SqliteStore,
    broken: Arc<AtomicBool>,
    panics: Arc<AtomicBool>,
}

impl Store for Flaky {
    fn commit(&mut self, batch: &[Writes]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        assert!(!self.panics.load(Ordering::SeqCst), "told to");
        if self.broken.load(Ordering::SeqCst) {
            let source = Arc::new(std::io::Error::other("no space left"));
            return Err(StoreError::Database { operation: "wrote", source });
        }
        self.store.commit(batch)
    }

    fn adopt(&mut self, group: GroupNo, now: Uptime) -> Result<Option<Hydration>, StoreError> {
        self.store.adopt(group, now)
    }

    fn put_closed(
        &mut self,
        group: GroupNo,
        epoch: u64,
        rows: &ClosedRows,
    ) -> Result<(), StoreError> {
        self.store.put_closed(group, epoch, rows)
    }

    fn put_digests(
        &mut self,
        group: GroupNo,
        epoch: u64,
        rows: &DigestRows,
    ) -> Result<(), StoreError> {
        self.store.put_digests(group, epoch, rows)
    }

    fn put_exported(&mut self, name: &str, place: EndedAt) -> Result<(), StoreError> {
        self.store.put_exported(name, place)
    }

    fn purge(&mut self, group: GroupNo) -> Result<(), StoreError> {
        self.store.purge(group)
    }

    fn probe(&mut self) -> Result<(), StoreError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(StoreError::Stopped);
        }
        self.store.probe()
    }

    fn forget_keys(&mut self, before: Timestamp) -> Result<usize, StoreError> {
        self.store.forget_keys(before)
    }

    fn cut(&mut self, cut: &Cut) -> Result<bool, StoreError> {
        self.store.cut(cut)
    }

    fn sweep(&mut self, group: GroupNo) -> Result<Swept, StoreError> {
        self.store.sweep(group)
    }

    fn lock_acquire(
        &mut self,
        ask: &LockAsk,
        now: Now,
        is_dead: &dyn Fn(&Holder) -> bool,
    ) -> Result<Granted, LockError> {
        self.store.lock_acquire(ask, now, is_dead)
    }

    fn lock_refresh(&mut self, lease: &Lease, now: Now) -> Result<Lock, LockError> {
        self.store.lock_refresh(lease, now)
    }

    fn lock_release(&mut self, lease: &Lease) -> Result<bool, LockError> {
        self.store.lock_release(lease)
    }

    fn forget_locks(&mut self, now: Uptime) -> Result<usize, LockError> {
        self.store.forget_locks(now)
    }
}

/// What a bug in an actor would do.
#[derive(Message)]
#[rtype(result = "()")]
struct Panic;

impl Handler<Panic> for Group {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Context<Self>) {
        panic!("told to");
    }
}

impl Handler<Panic> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Context<Self>) {
        panic!("told to");
    }
}

/// Makes whichever actor logs this line panic, once, at that point.
struct Tripwire(&'static str, AtomicBool);

impl log::Log for Tripwire {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.args().to_string() == self.0 && !self.1.swap(true, Ordering::SeqCst) {
            panic!("told to");
        }
    }

    fn flush(&self) {}
}

struct World {
    supervisor: Addr<Supervisor>,
    shared: Arc<Shared>,
    broken: Arc<AtomicBool>,
    panics: Arc<AtomicBool>,
    _database: Database,
    _dir: TempDir,
}

impl World {
    /// A server without HTTP, with one slot, whose agent cannot be started: its tasks fail.
    async fn new() -> Self {
        Self::with("/bin/false".into(), profile()).await
    }

    /// Such a server with this shim and this profile of its agent.
    async fn with(shim: PathBuf, profile: Profile) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
        let broken = Arc::<AtomicBool>::default();
        let health = StorageHealth::default();
        let panics = Arc::<AtomicBool>::default();
        let store = database.store().unwrap();
        let store = Flaky { store, broken: broken.clone(), panics: panics.clone() };
        let for_actor = health.clone();
        let writer = Storage::start_in_arbiter(&Arbiter::new().handle(), move |_| {
            Storage::new(store, for_actor)
        });
        let opener = database.opener();
        let readers = SyncArbiter::start(1, move || {
            let opener = opener.clone();
            Reader::new(move || opener.archive())
        });
        let ledger = Ledger::new(writer, readers, health);
        let mut made = None;
        let supervisor = Supervisor::create(|ctx| {
            let address = ctx.address();
            let shared = Arc::new(Shared {
                ledger,
                slots: Arc::new(tokio::sync::Semaphore::new(1)),
                nursery: Nursery {
                    shim,
                    shim_args: Vec::new(),
                    heartbeat: Heartbeat::start(HEARTBEAT_EVERY).unwrap(),
                    data: Marker::data(dir.path().display()),
                    line_bytes_max: 1 << 20,
                    open_files: None,
                    residents: Residents::start(1),
                    reaped: Default::default(),
                },
                metrics: Arc::default(),
                profiles: HashMap::from([("absent".into(), Arc::new(profile))]),
                limits: limits(),
                work_dir: dir.path().join("work"),
                default_agent: "absent".into(),
                status: address.clone().recipient(),
                watched: Watched::default(),
                draining: AtomicBool::new(false),
                died: address.clone().recipient(),
                forget: address.recipient(),
            });
            made = Some(shared.clone());
            Supervisor::new(shared, vec![Arbiter::new()])
        });
        supervisor.send(Boot).await.unwrap().unwrap();
        let shared = made.unwrap();
        Self { supervisor, shared, broken, panics, _database: database, _dir: dir }
    }

    async fn find(&self, group: &str) -> GroupHandle {
        let find = Find { group: group.parse().unwrap(), create: true };
        self.supervisor.send(find).await.unwrap().unwrap()
    }

    /// Submits a turn, over rebuilds of the group's actor.
    async fn submit(&self, group: &str) -> Accepted {
        timeout(LONG, async {
            loop {
                let submitted = self.find(group).await.addr.send(turn()).await;
                match submitted {
                    Ok(Ok(accepted)) => return accepted,
                    Ok(Err(err)) => panic!("{err}"),
                    // Nothing to wait for: the supervisor rebuilds it by itself.
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        })
        .await
        .unwrap()
    }

    async fn end(&self, group: &str, accepted: &Accepted) -> Task {
        let task = accepted.view.task.id;
        let ended = self.find(group).await.addr.send(Await(task));
        if let Some(task) = timeout(LONG, ended).await.unwrap().unwrap() {
            return task;
        }
        self.shared.ledger.read(move |archive| archive.task(task)).await.unwrap().unwrap().task
    }
}

fn profile() -> Profile {
    Profile {
        name: "absent".into(),
        command: Path::new("/nonexistent/agent").into(),
        args: Vec::new(),
        env: Vec::new(),
        cwd_roots: Vec::new(),
        auth_method: None,
        start_timeout: LONG,
        compaction: Compacts::Not,
        auto_compact: None,
        signals: Signals::default(),
        umask: None,
        no_new_privs: false,
        rlimits: Rlimits::default(),
    }
}

fn limits() -> Limits {
    Limits {
        running_groups: 1,
        auto_compact: 0.0,
        lock_ttl: Duration::from_secs(300),
        patience: Patience {
            compaction_ms: 60_000,
            turn_ms: 60_000,
            idle_ms: 60_000,
            permission_ms: 60_000,
            retry_base_ms: 1,
            queue_max: 10,
            queue_bytes_max: 1 << 20,
        },
        drain: LONG,
        retry: Retry::Never,
        on_interrupt: OnInterrupt::Continue,
        permissions: Policy::Reject.into(),
    }
}

fn turn() -> Submit {
    let demand = Demand::Turn(acp::text_prompt("hello").unwrap());
    Submit::new(demand, None)
}

/// I15, RELIABILITY F3: a panic costs its group an actor, and nothing else; the slot comes back.
#[actix_rt::test]
async fn a_group_that_panicked_is_rebuilt_and_goes_on() {
    let world = World::new().await;
    let before = world.submit("work").await;
    assert_eq!(world.end("work", &before).await.state, TaskState::Failed);
    for _ in 0..3 {
        let dead = world.find("work").await.addr;
        assert!(dead.send(Panic).await.is_err(), "nobody answers for the dead");
        let after = world.submit("work").await;
        let ended = world.end("work", &after).await;
        assert_eq!(ended.state, TaskState::Failed);
        assert!(ended.ordinal > before.view.task.ordinal);
    }
    let other = world.submit("other").await;
    assert_eq!(world.end("other", &other).await.state, TaskState::Failed, "the slot is free");
}

/// I3: readers learn of frames that were stored by an actor that died before it published them.
#[actix_rt::test]
async fn a_rebuilt_actor_wakes_readers_for_unpublished_frames() {
    let world = World::new().await;
    let task = world.submit("work").await;
    world.end("work", &task).await;
    let GroupHandle { no, addr, feed, .. } = world.find("work").await;
    let standing = world.shared.ledger.read(move |archive| archive.group(no)).await.unwrap();
    let last_seq = standing.unwrap().head.last_seq;
    // As if the last frames had not been published.
    feed.send_replace(Arc::new(Tail { last_seq: last_seq - 2, ..Tail::default() }));
    let mut reader = feed.subscribe();
    assert!(addr.send(Panic).await.is_err());
    let woken = reader.wait_for(|tail| tail.last_seq >= last_seq);
    let tail = timeout(LONG, woken).await.unwrap().unwrap().clone();
    assert!(matches!(tail.after(last_seq - 2), Next::Disk), "{tail:?}");
}

/// I15, F3: a run's actor that panics takes its tree and its group's actor with it, and the group
/// goes on; without that its task would wait for its deadline, and the slot with it.
#[actix_rt::test]
async fn a_group_whose_agents_actor_panicked_is_rebuilt() {
    static WIRE: Tripwire = Tripwire("run started", AtomicBool::new(false));
    log::set_logger(&WIRE).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let test = std::env::current_exe().unwrap();
    let shim = test.ancestors().nth(2).unwrap().join("examples/shim");
    let world = World::with(shim, Profile { command: "/bin/false".into(), ..profile() }).await;
    let task = world.submit("work").await;
    let ended = timeout(LONG, async {
        loop {
            let task = task.view.task.id;
            let found = world.shared.ledger.read(move |archive| archive.task(task)).await;
            let task = found.unwrap().unwrap().task;
            if task.state.is_terminal() {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert_eq!(ended.await.unwrap().state, TaskState::Failed, "made again, as nothing was sent");
    assert!(WIRE.1.load(Ordering::SeqCst), "the actor panicked");
    let other = world.submit("other").await;
    assert_eq!(world.end("other", &other).await.state, TaskState::Failed, "the slot is free");
}

/// I15, F3: a question that panics costs its asker an answer, and nobody else.
#[actix_rt::test]
async fn readers_outlive_a_question_that_panics() {
    let world = World::new().await;
    let ledger = &world.shared.ledger;
    for _ in 0..3 {
        let asked = ledger.read(|_| -> Result<(), StoreError> { panic!("told to") }).await;
        assert!(matches!(asked, Err(StoreError::Stopped)), "{asked:?}");
        ledger.read(|archive| archive.census(&[])).await.unwrap();
    }
}

/// F3: a server without its storage or its supervisor would look alive and take nothing.
#[test]
fn the_process_ends_with_an_actor_that_nobody_rebuilds() {
    for test in ["with_storage_that_panics", "with_a_supervisor_that_panics"] {
        let own = std::env::current_exe().unwrap();
        let ended = Command::new(own).args(["--exact", test, "--ignored"]).output().unwrap();
        let told = String::from_utf8_lossy(&ended.stdout);
        assert_eq!(ended.status.code(), Some(greenroom_actors::vital::EXIT), "{test}: {told}");
    }
}

#[actix_rt::test]
#[ignore = "run by the_process_ends_with_an_actor_that_nobody_rebuilds"]
async fn with_storage_that_panics() {
    let world = World::new().await;
    world.panics.store(true, Ordering::SeqCst);
    world.find("work").await.addr.do_send(turn());
    // Whoever waits for the commit is answered before the process has ended.
    _ = timeout(LONG, std::future::pending::<()>()).await;
}

#[actix_rt::test]
#[ignore = "run by the_process_ends_with_an_actor_that_nobody_rebuilds"]
async fn with_a_supervisor_that_panics() {
    let world = World::new().await;
    world.supervisor.do_send(Panic);
    _ = timeout(LONG, std::future::pending::<()>()).await;
}

/// Storage that works again is found out without anybody writing: a balancer that sends nothing
/// to a server that is not ready would otherwise never send anything again.
#[actix_rt::test]
async fn storage_that_works_again_is_noticed() {
    let world = World::new().await;
    let before = world.submit("work").await;
    world.end("work", &before).await;
    world.broken.store(true, Ordering::SeqCst);
    assert!(world.find("work").await.addr.send(turn()).await.unwrap().is_err());
    assert!(!world.shared.ledger.health.is_good());
    world.broken.store(false, Ordering::SeqCst);
    timeout(LONG, async {
        while !world.shared.ledger.health.is_good() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

/// I2: what could not be stored was not accepted, and what was accepted is still there.
#[actix_rt::test]
async fn a_failed_commit_accepts_nothing_and_loses_nothing() {
    let world = World::new().await;
    let before = world.submit("work").await;
    world.end("work", &before).await;
    world.broken.store(true, Ordering::SeqCst);
    let refused = world.find("work").await.addr.send(turn()).await.unwrap();
    assert!(matches!(refused, Err(GroupError::Storage(_))), "{refused:?}");
    assert!(!world.shared.ledger.health.is_good());
    world.broken.store(false, Ordering::SeqCst);
    let after = world.submit("work").await;
    assert_eq!(after.view.task.ordinal, 2, "the refused one took no place");
    assert_eq!(world.end("work", &after).await.state, TaskState::Failed);
    assert!(world.shared.ledger.health.is_good());
}
