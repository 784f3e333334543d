//! `greenroom serve`: builds the actors, serves HTTP, shuts everything down in order.

mod refusal;
mod signals;

use std::{
    env,
    error::Error,
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use actix::{Actor as _, Addr, Arbiter, SyncArbiter, System};
use actix_web::{App, HttpServer, dev::ServerHandle, middleware::from_fn};
use greenroom_actors::{
    agent::{AgentLauncher, confine::Sandboxes},
    changes::ChangeGate,
    clock,
    group::Shared,
    metrics::Metrics,
    pool::AgentPool,
    process::{
        child::{HEARTBEAT_EVERY, Heartbeat},
        environment::Environment,
        leftovers::Leftovers,
        proc::{self, Marker},
        sandbox::Kernel,
    },
    profile::Capacity,
    projections::retention,
    quota::Quotas,
    storage::{
        Db, ReadStore as _, Reader, StorageHealth, StoreError, WorkDir, Writer, chain,
        sqlite::{CheckpointSchedule, Database, SqliteStore},
        stall,
    },
    supervisor::{Boot, ShutDown, Supervisor},
    unsettled::UnsettledGroups,
    watchdog::Watchdog,
};
pub use refusal::Refusal;
use rustix::process::{Resource, Rlimit, Signal as Number, getrlimit, setrlimit};
use signals::Signals;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    config::Config,
    http::{self, AllowedHosts, AppState, Meters, Phase, Unread, WorkerCache},
    otlp,
};

/// Threads that read from the database.
const READERS: usize = 2;
/// How long a client may take to send its headers (F30).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A second signal within this time counts as a repeat of the first.
const SAME_SIGNAL: Duration = Duration::from_millis(500);
/// How long open requests may still take after all streams have been closed.
const ANSWER_SECONDS: u64 = 5;

/// The server cannot bind its address.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
struct CannotListen {
    address: SocketAddr,
    source: io::Error,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
///
/// The server could not start, and started nothing: another server uses the data directory, the
/// port is taken, or the database is unusable or, as a [`Refusal`], of a later version.
pub fn run(config: Config, environment: Environment) -> Result<(), Box<dyn Error>> {
    let address = config.server.listen;
    let listener = TcpListener::bind(address).map_err(|source| CannotListen { address, source })?;
    let system = System::new();
    system.block_on(async { outlive_file_size_limit() })?;
    let database = Database::open(&config.storage.path).map_err(cannot_open)?;
    let open_files = raise_open_files();
    proc::become_subreaper()?;
    let reaped = sweep(&database)?;
    let inherited = (environment, open_files);
    system.block_on(serve(config, listener, database, inherited, reaped))
}

fn cannot_open(err: StoreError) -> Box<dyn Error> {
    match err {
        StoreError::TooNew { .. } => Refusal::TooNew(err).into(),
        err => chain(&err).into(),
    }
}

/// Starts all actors and the HTTP server, waits for a signal, shuts down.
async fn serve(
    config: Config,
    listener: TcpListener,
    database: Database,
    inherited: (Environment, Option<u64>),
    reaped: usize,
) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let mut signals = Signals::catch()?;
    let port = listener.local_addr()?.port();
    let (supervisor, shared) = start_actors(&config, &database, inherited, port)?;
    shared.metrics.ends.reaped.inc_by(reaped as u64);
    let db = shared.db.clone();
    // Before any group is loaded: tasks that this start ends are not history.
    let spans = otlp::Totals::default();
    let export = otlp::start(&config.otlp, db.clone(), spans.clone())?;
    let (phase, on_phase) = watch::channel(Phase::Serving);
    let state = AppState {
        shared,
        supervisor: supervisor.clone(),
        phase: on_phase,
        started,
        data_dir: database.dir().to_path_buf(),
        body_bytes_max: config.server.max_body,
        hosts: Arc::new(AllowedHosts::new(&config.server.allowed_hosts)),
        meters: Meters::new(clock::now()),
        unread: Unread::default(),
        spans,
        cache: WorkerCache::default(),
    };
    // Before the first request: no reader gets the rows of a group that has to be recovered. Until
    // then connections wait.
    let groups = supervisor.send(Boot).await?.map_err(|err| chain(&database.refusal(err)))?;
    let address = listener.local_addr()?;
    let for_ready = state.clone();
    let workers = std::thread::available_parallelism().map_or(2, |cores| cores.get().min(8));
    let server = HttpServer::new(move || {
        App::new()
            .configure(http::configure(state.clone()))
            .wrap(from_fn(http::pieces))
            .wrap(from_fn(http::guard))
            .wrap(from_fn(http::count))
            .wrap(from_fn(http::answer))
    })
    .on_connect(http::Connection::note)
    .workers(workers)
    .client_request_timeout(REQUEST_TIMEOUT)
    .tcp_nodelay(true)
    .disable_signals()
    .shutdown_timeout(ANSWER_SECONDS)
    .listen(listener)?
    .run();
    let handle = server.handle();
    let answering = actix_rt::spawn(server);
    http::count_locks(&for_ready).await;
    for_ready.until_settled(None).await;
    log::info!(
        target: "greenroom",
        address:%, database:% = database.path().display(), groups,
        ms = started.elapsed().as_millis();
        "ready; no tokens are configured, so only loopback clients are served"
    );
    let days = config.storage.retention_days;
    let retention = (days > 0).then(|| actix_rt::spawn(retention::run(db, days)));
    let signal = signals.next().await;
    if let Some(retention) = retention {
        retention.abort();
    }
    log::info!(target: "greenroom", signal; "draining: running turns may finish");
    actix_rt::spawn(async move {
        // Some process managers send their signal twice in quick succession.
        tokio::time::sleep(SAME_SIGNAL).await;
        signals.drain();
        let signal = signals.next().await;
        log::warn!(target: "greenroom", signal; "second signal: exiting at once");
        // All accepted work is durable, and the shims kill their process trees when this process
        // exits.
        log::logger().flush();
        std::process::exit(0);
    });
    shut_down(&supervisor, &phase, &handle).await;
    answering.await??;
    if let Some(export) = export {
        export.finish().await;
    }
    log::info!(target: "greenroom", "stopped");
    Ok(())
}

/// Stops the groups, then the streams, then the HTTP server.
async fn shut_down(
    supervisor: &Addr<Supervisor>,
    phase: &watch::Sender<Phase>,
    server: &ServerHandle,
) {
    phase.send_replace(Phase::Draining);
    if let Err(err) = supervisor.send(ShutDown).await {
        log::error!(err:%; "the supervisor stopped before its groups");
    }
    phase.send_replace(Phase::Closing);
    server.stop(true).await;
}

/// Starts storage, agent pool and supervisor; returns the supervisor and the state of all groups.
fn start_actors(
    config: &Config,
    database: &Database,
    (environment, open_files): (Environment, Option<u64>),
    port: u16,
) -> Result<(Addr<Supervisor>, Arc<Shared>), Box<dyn Error>> {
    let metrics = Arc::<Metrics>::default();
    let watchdog =
        Watchdog::start(metrics.arbiters_stalled.clone(), metrics.arbiter_stalls.clone())?;
    let db = start_storage(database, &watchdog)?;
    let capacity = config.capacity;
    let launcher = AgentLauncher {
        shim: "/proc/self/exe".into(),
        shim_args: vec!["shim".into()],
        heartbeat: Heartbeat::start(HEARTBEAT_EVERY)?,
        data: Marker::data(database.dir().display()),
        line_bytes_max: capacity.line_bytes_max,
        environment,
        open_files,
        pool: AgentPool::start(capacity.resident_agents),
        counters: metrics.ends.clone(),
        sandboxes: Arc::new(sandboxes(config, database, port)),
    };
    let Capacity { running_groups, resident_agents, .. } = capacity;
    if resident_agents < running_groups {
        log::warn!(
            target: "greenroom", running_groups, resident_agents;
            "running_groups is above resident_agents, which limits the tasks that run at once"
        );
    }
    let slots = Arc::new(tokio::sync::Semaphore::new(capacity.slots()));
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().min(4));
    let arbiters: Vec<Arbiter> = (0..threads).map(|_| Arbiter::new()).collect();
    for (number, arbiter) in arbiters.iter().enumerate() {
        watchdog.watch(format!("groups-{number}"), &arbiter.handle());
    }
    let work_dir = WorkDir::open(database.dir())?;
    let mut created = None;
    let supervisor = Supervisor::create(|ctx| {
        let address = actix::AsyncContext::address(ctx);
        let shared = Arc::new(Shared {
            db,
            slots,
            launcher,
            metrics,
            profiles: config.agents.clone(),
            capacity,
            defaults: config.defaults.clone(),
            quotas: Quotas::new(config.quotas),
            drain_timeout: config.server.drain_timeout,
            work_dir,
            status: address.clone().recipient(),
            change_gate: ChangeGate::default(),
            draining: AtomicBool::new(false),
            unsettled: UnsettledGroups::default(),
            died: address.clone().recipient(),
            forget: address.recipient(),
        });
        created = Some(shared.clone());
        Supervisor::new(shared, arbiters)
    });
    // Until here the main thread was busy with the database.
    watchdog.watch("main", &Arbiter::current());
    Ok((supervisor, created.ok_or("the supervisor was not created")?))
}

/// Returns what all sandboxes have in common. Logs which profiles cannot have theirs, or not all
/// of it.
fn sandboxes(config: &Config, database: &Database, port: u16) -> Sandboxes {
    let path = env::var_os("PATH").unwrap_or_default();
    let kernel = Kernel::probe(path, config.agents.values().map(|profile| &**profile));
    for profile in config.agents.values() {
        let (agent, report) = (&profile.name, kernel.report(profile));
        if let Some(problem) = report.problem {
            log::error!(
                target: "greenroom", agent, problem;
                "an agent cannot start without its sandbox"
            );
        } else if !report.missing.is_empty() {
            log::warn!(
                target: "greenroom", agent, missing = report.missing.join(",");
                "this kernel cannot hold all of an agent's sandbox"
            );
        }
    }
    Sandboxes {
        kernel,
        data: database.dir().to_path_buf(),
        hidden: [database.path().to_path_buf()].into_iter().chain(config.hidden()).collect(),
        ports: [port].into(),
        home: env::home_dir(),
    }
}

/// Starts the writer, the readers and the checkpointer of the database.
fn start_storage(database: &Database, watchdog: &Watchdog) -> Result<Db, Box<dyn Error>> {
    let health = StorageHealth::default();
    stall::watch(health.clone(), stall::TICK)?;
    let refused = |err| chain(&database.refusal(err));
    let store = database.store().map_err(refused)?;
    let checkpointer = database.checkpointer(CheckpointSchedule::default()).map_err(refused)?;
    let writer = {
        let health = health.clone();
        let arbiter = Arbiter::new();
        watchdog.watch("storage", &arbiter.handle());
        Writer::<SqliteStore>::start_in_arbiter(&arbiter.handle(), move |_| {
            Writer::new(store, health)
        })
    };
    let opener = database.opener();
    let readers = SyncArbiter::start(READERS, move || {
        let opener = opener.clone();
        Reader::new(move || opener.read_store())
    });
    checkpointer.start(health.clone(), writer.clone().recipient())?;
    Ok(Db::new(writer, readers, health))
}

/// Kills the processes that earlier servers of this data directory left running, before any task is
/// claimed; returns their number.
fn sweep(database: &Database) -> Result<usize, Box<dyn Error>> {
    let rows = database.opener().read_store().map_err(|err| chain(&database.refusal(err)))?;
    let leftovers = Leftovers {
        dir: database.dir(),
        // A run whose row cannot be read is one of the database, too.
        knows_run: &|run| {
            let found = run.parse().map(|run| rows.run_digest(run));
            found.is_ok_and(|found| found.map_or(true, |row| row.is_some()))
        },
        is_in_use: &|dir| database.is_in_use(dir),
    };
    let pids = leftovers.sweep()?;
    if !pids.is_empty() {
        log::warn!(target: "greenroom", pids:?; "killed leftover processes of an earlier server");
    }
    Ok(pids.len())
}

/// Turns a write beyond the file size limit into an ordinary error (F19). The signal is
/// caught, not ignored, so that exec resets it to the default for agents.
fn outlive_file_size_limit() -> io::Result<()> {
    _ = signal(SignalKind::from_raw(Number::XFSZ.as_raw()))?;
    Ok(())
}

/// Raises the soft limit of open files to the hard limit: each agent takes five, each client two.
/// Returns the previous soft limit, which agents get.
fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(err) = setrlimit(Resource::Nofile, raised) {
        log::warn!(target: "greenroom", err:%; "cannot raise the limit of open files");
    }
    limit.current
}
