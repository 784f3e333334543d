//! Groups whose actors panic or whose storage fails (I2, I15).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix::{Actor as _, Addr, Arbiter, AsyncContext as _, Context, Handler, Message};
use greenroom_actors::{
    acp,
    agent::AgentLauncher,
    changes::ChangeGate,
    group::{Accepted, Await, Group, GroupError, Shared, Submit},
    pool::{AgentPool, PoolRequest, UsageCell},
    process::{
        child::{HEARTBEAT_EVERY, Heartbeat},
        environment::Environment,
        proc::Marker,
    },
    profile::{Capacity, CompactionMethod, Defaults, Profile, Rlimits, Sandbox},
    quota::{QuotaMax, Quotas},
    storage::{StoreError, WorkDir, sqlite::Database},
    supervisor::{Boot, FindOwner, GroupHandle, KnownGroup, LookUp, Supervisor},
    transcript::feed::{Next, Tail},
    unsettled::UnsettledGroups,
};
use greenroom_core::{
    Limits, OnInterrupt, Policy, RetryPolicy, RunId, Submission, Task, TaskState, lock::Ttl,
};
use greenroom_testing::world::Action;
use tempfile::TempDir;
use tokio::time::timeout;
use uuid::Uuid;

use crate::storage::{
    actor::{Actor, READY, SUBMIT, commit},
    gated::{self, Call, Gated},
};

const LONG: Duration = Duration::from_secs(20);

/// Makes an actor panic, as a bug would.
#[derive(Message)]
#[rtype(result = "()")]
struct Panic;

impl Handler<Panic> for Group {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Context<Self>) {
        panic!("on demand");
    }
}

impl Handler<Panic> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Context<Self>) {
        panic!("on demand");
    }
}

/// Makes the actor that logs this line panic, once, at that point.
struct Tripwire(&'static str, AtomicBool);

impl log::Log for Tripwire {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.args().to_string() == self.0 && !self.1.swap(true, Ordering::SeqCst) {
            panic!("on demand");
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
    /// Starts a server without HTTP, with one slot, whose agent cannot start: its tasks fail.
    async fn new() -> Self {
        Self::with("/bin/false".into(), profile()).await
    }

    /// Starts such a server with this shim and this profile.
    async fn with(shim: PathBuf, profile: Profile) -> Self {
        Self::on(open(), shim, profile, false).await
    }

    /// Starts such a server on this database, whose writes fail if `is_broken`.
    async fn on(
        (dir, database): (TempDir, Database),
        shim: PathBuf,
        profile: Profile,
        is_broken: bool,
    ) -> Self {
        let broken = Arc::new(AtomicBool::new(is_broken));
        let panics = Arc::<AtomicBool>::default();
        let (fails, bug) = (broken.clone(), panics.clone());
        let gate = move |call| {
            assert!(call != Call::Commit || !bug.load(Ordering::SeqCst), "on demand");
            let works = !fails.load(Ordering::SeqCst);
            works.then_some(()).ok_or_else(gated::failure)
        };
        let db = gated::start(&database, Gated(database.store().unwrap(), gate));
        let mut started = None;
        let supervisor = Supervisor::create(|ctx| {
            let address = ctx.address();
            let shared = Arc::new(Shared {
                db,
                slots: Arc::new(tokio::sync::Semaphore::new(1)),
                launcher: AgentLauncher {
                    shim,
                    shim_args: Vec::new(),
                    heartbeat: Heartbeat::start(HEARTBEAT_EVERY).unwrap(),
                    data: Marker::data(dir.path().display()),
                    line_bytes_max: 1 << 20,
                    open_files: None,
                    pool: AgentPool::start(1),
                    counters: Default::default(),
                    environment: Environment::current(),
                    sandboxes: Arc::default(),
                },
                metrics: Arc::default(),
                profiles: BTreeMap::from([("absent".into(), Arc::new(profile))]),
                capacity: Capacity {
                    running_groups: 1,
                    resident_agents: 1,
                    line_bytes_max: 1 << 20,
                },
                defaults: defaults(),
                quotas: Quotas::new(QuotaMax { groups: 3, ..QuotaMax::default() }),
                drain_timeout: LONG,
                work_dir: WorkDir::open(dir.path()).unwrap(),
                status: address.clone().recipient(),
                change_gate: ChangeGate::default(),
                draining: AtomicBool::new(false),
                unsettled: UnsettledGroups::default(),
                died: address.clone().recipient(),
                forget: address.recipient(),
            });
            started = Some(shared.clone());
            Supervisor::new(shared, vec![Arbiter::new()])
        });
        supervisor.send(Boot).await.unwrap().unwrap();
        let shared = started.unwrap();
        Self { supervisor, shared, broken, panics, _database: database, _dir: dir }
    }

    async fn find(&self, group: &str) -> GroupHandle {
        let find = FindOwner { group: group.parse().unwrap(), create: true };
        self.supervisor.send(find).await.unwrap().unwrap().unwrap()
    }

    async fn look_up(&self, group: &str) -> Option<KnownGroup> {
        self.supervisor.send(LookUp(group.parse().unwrap())).await.unwrap()
    }

    /// Submits a turn, and retries while the group's actor is rebuilt.
    async fn submit(&self, group: &str) -> Accepted {
        timeout(LONG, async {
            loop {
                let submitted = self.find(group).await.addr.send(turn()).await;
                match submitted {
                    Ok(Ok(accepted)) => return accepted,
                    Ok(Err(err)) => panic!("{err}"),
                    // No event to wait for: the supervisor rebuilds it by itself.
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
        self.shared.db.read(move |read_store| read_store.task(task)).await.unwrap().unwrap().task
    }
}

/// Opens a database in a new directory.
fn open() -> (TempDir, Database) {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
    (dir, database)
}

fn profile() -> Profile {
    Profile {
        name: "absent".into(),
        command: Path::new("/nonexistent/agent").into(),
        args: Vec::new(),
        env: BTreeMap::new(),
        env_pass: Vec::new(),
        cwd_roots: Vec::new(),
        auth_method: None,
        start_timeout: LONG,
        compaction: CompactionMethod::None,
        auto_compact: None,
        signals: Vec::new(),
        umask: None,
        no_new_privs: false,
        rlimits: Rlimits::default(),
        sandbox: Sandbox::default(),
    }
}

fn defaults() -> Defaults {
    Defaults {
        agent: "absent".into(),
        auto_compact: 0.0,
        lock_ttl: Ttl::from_ms(300_000).unwrap(),
        limits: Limits {
            compaction_ms: 60_000,
            turn_ms: 60_000,
            idle_ms: 60_000,
            permission_ms: 60_000,
            retry_base_ms: 1,
            queue_max: 10,
            queue_bytes_max: 1 << 20,
        },
        retry: RetryPolicy::Never,
        on_interrupt: OnInterrupt::Continue,
        permission_policy: Policy::Reject.into(),
    }
}

fn turn() -> Submit {
    let submission = Submission::turn(acp::text_prompt("hello").unwrap());
    Submit { submission, key: None, wait: false }
}

/// I15, F3: a panic costs its group only its actor; the slot is free again.
#[actix_rt::test]
async fn a_group_whose_actor_panicked_is_rebuilt() {
    let world = World::new().await;
    let before = world.submit("work").await;
    assert_eq!(world.end("work", &before).await.state(), TaskState::Failed);
    for _ in 0..3 {
        let dead = world.find("work").await.addr;
        assert!(dead.send(Panic).await.is_err(), "a dead actor does not answer");
        let after = world.submit("work").await;
        let ended = world.end("work", &after).await;
        assert_eq!(ended.state(), TaskState::Failed);
        assert!(ended.ordinal > before.view.task.ordinal);
    }
    let other = world.submit("other").await;
    assert_eq!(world.end("other", &other).await.state(), TaskState::Failed, "the slot is free");
}

/// Readers keep one feed, whether an actor fills it yet or not, until the group is purged.
#[actix_rt::test]
async fn a_group_has_one_feed_from_its_first_reader_on() {
    let world = World::new().await;
    let task = world.submit("work").await;
    world.end("work", &task).await;
    assert!(world.look_up("absent").await.is_none(), "a reader creates no group");
    let slept = Supervisor::new(world.shared.clone(), vec![Arbiter::new()]).start();
    slept.send(Boot).await.unwrap().unwrap();
    let look_up = || slept.send(LookUp("work".parse().unwrap()));
    let before = look_up().await.unwrap().unwrap();
    assert_eq!(before.feed.borrow().last_seq, 0, "no actor has filled it");
    let mut reader = before.feed.subscribe();
    let find = FindOwner { group: "work".parse().unwrap(), create: false };
    let owner = slept.send(find).await.unwrap().unwrap();
    assert_eq!(owner.unwrap().no, before.no);
    timeout(LONG, reader.wait_for(|tail| tail.last_seq > 0)).await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&look_up().await.unwrap().unwrap().feed, &before.feed));
}

/// I3: readers get frames that an actor stored and did not publish before it died.
#[actix_rt::test]
async fn a_rebuilt_actor_wakes_readers_for_unpublished_frames() {
    let world = World::new().await;
    let task = world.submit("work").await;
    world.end("work", &task).await;
    let addr = world.find("work").await.addr;
    let KnownGroup { no, feed, .. } = world.look_up("work").await.unwrap();
    let summary = world.shared.db.read(move |read_store| read_store.group(no)).await.unwrap();
    let last_seq = summary.unwrap().state.last_seq;
    // As if the last frames had not been published.
    feed.send_replace(Arc::new(Tail { last_seq: last_seq - 2, ..Tail::default() }));
    let mut reader = feed.subscribe();
    assert!(addr.send(Panic).await.is_err());
    let woken = reader.wait_for(|tail| tail.last_seq >= last_seq);
    let tail = timeout(LONG, woken).await.unwrap().unwrap().clone();
    assert!(matches!(tail.after(last_seq - 2), Next::Disk), "{tail:?}");
}

/// I15, F3: a panic of a run's actor ends its process tree and its group's actor, and the group
/// continues; otherwise its task would hold the slot until its deadline.
#[actix_rt::test]
async fn a_group_whose_agent_actor_panicked_is_rebuilt() {
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
            let found = world.shared.db.read(move |read_store| read_store.task(task)).await;
            let task = found.unwrap().unwrap().task;
            if task.state().is_terminal() {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert_eq!(
        ended.await.unwrap().state(),
        TaskState::Failed,
        "the task failed, as no prompt was sent"
    );
    assert!(WIRE.1.load(Ordering::SeqCst), "the actor panicked");
    let other = world.submit("other").await;
    assert_eq!(world.end("other", &other).await.state(), TaskState::Failed, "the slot is free");
}

/// I5, AM-27: a group that a server left in the middle of a turn is unsettled until a recovery has
/// read it: one that failed settles nothing.
#[actix_rt::test]
async fn a_group_that_could_not_be_read_stays_unsettled() {
    let (dir, database) = open();
    let mut left = Actor::new(1);
    commit(&mut database.store().unwrap(), &left.play_all(&[SUBMIT, Action::GrantSlot, READY]));
    let task = left.world.group.current().unwrap().id;
    let world = World::on((dir, database), "/bin/false".into(), profile(), true).await;
    let first = world.find(left.id.as_str()).await.addr;
    assert!(first.send(turn()).await.is_err(), "its actor ended without an answer");
    assert!(world.shared.unsettled.contains(left.no));
    world.broken.store(false, Ordering::SeqCst);
    timeout(LONG, world.shared.unsettled.until_settled(Some(left.no))).await.unwrap();
    let found = world.shared.db.read(move |read_store| read_store.task(task)).await;
    assert_eq!(found.unwrap().unwrap().task.state(), TaskState::Interrupted);
}

/// I15, F3: a query that panics fails for its caller alone.
#[actix_rt::test]
async fn readers_survive_a_query_that_panics() {
    let world = World::new().await;
    let db = &world.shared.db;
    for _ in 0..3 {
        let asked = db.read(|_| -> Result<(), StoreError> { panic!("on demand") }).await;
        assert!(matches!(asked, Err(StoreError::Stopped)), "{asked:?}");
        db.read(|read_store| read_store.status_counts(&[])).await.unwrap();
    }
}

/// F3: a server without its storage, its supervisor or its pool would look alive and do nothing, so
/// the process ends.
#[test]
fn the_process_ends_with_an_actor_that_is_not_rebuilt() {
    let tests = ["storage", "a_supervisor", "a_pool"]
        .map(|what| format!("supervisor::with_{what}_that_panics"));
    for test in tests {
        let program = std::env::current_exe().unwrap();
        let ended = Command::new(program).args(["--exact", &test, "--ignored"]).output().unwrap();
        let output = String::from_utf8_lossy(&ended.stdout);
        assert_eq!(
            ended.status.code(),
            Some(greenroom_actors::abort_on_panic::EXIT),
            "{test}: {output}"
        );
    }
}

#[actix_rt::test]
#[ignore = "run by the_process_ends_with_an_actor_that_is_not_rebuilt"]
async fn with_storage_that_panics() {
    let world = World::new().await;
    world.panics.store(true, Ordering::SeqCst);
    world.find("work").await.addr.do_send(turn());
    // The waiting caller gets its answer before the process has ended.
    _ = timeout(LONG, std::future::pending::<()>()).await;
}

#[actix_rt::test]
#[ignore = "run by the_process_ends_with_an_actor_that_is_not_rebuilt"]
async fn with_a_supervisor_that_panics() {
    let world = World::new().await;
    world.supervisor.do_send(Panic);
    _ = timeout(LONG, std::future::pending::<()>()).await;
}

#[actix_rt::test]
#[ignore = "run by the_process_ends_with_an_actor_that_is_not_rebuilt"]
async fn with_a_pool_that_panics() {
    static WIRE: Tripwire =
        Tripwire("all places for agents are taken; a run waits for one", AtomicBool::new(false));
    log::set_logger(&WIRE).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let world = World::new().await;
    let pool = AgentPool::start(1);
    let group = world.find("work").await.addr;
    let acquire = || {
        let request = PoolRequest { usage: UsageCell::default(), group: group.clone().recipient() };
        pool.acquire(RunId(Uuid::now_v7()), request)
    };
    let _places = (acquire(), acquire());
    _ = timeout(LONG, std::future::pending::<()>()).await;
}

/// I2: a task that could not be stored is not accepted, and accepted tasks stay. The server detects
/// recovered storage without a write: a load balancer sends no request to one that is not ready.
#[actix_rt::test]
async fn a_failed_commit_accepts_no_task_and_loses_none() {
    let world = World::new().await;
    let before = world.submit("work").await;
    world.end("work", &before).await;
    world.broken.store(true, Ordering::SeqCst);
    let refused = world.find("work").await.addr.send(turn()).await.unwrap();
    assert!(matches!(refused, Err(GroupError::Storage(_))), "{refused:?}");
    assert!(!world.shared.db.health.is_good());
    world.broken.store(false, Ordering::SeqCst);
    timeout(LONG, async {
        while !world.shared.db.health.is_good() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let after = world.submit("work").await;
    assert_eq!(after.view.task.ordinal, 2, "the refused task took no number");
    assert_eq!(world.end("work", &after).await.state(), TaskState::Failed);
}
