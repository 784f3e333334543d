//! `greenroom serve`: puts the actors together, answers HTTP, and ends everything in order.

use std::{
    collections::HashMap,
    error::Error,
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use actix::{Actor as _, Addr, Arbiter, SyncArbiter, System};
use actix_web::{App, HttpServer, dev::ServerHandle, middleware::from_fn};
use greenroom_actors::{
    agent::{
        Nursery,
        child::{HEARTBEAT_EVERY, Heartbeat},
        tree::{self, Marker, SweepError},
    },
    changes::Watched,
    group::Shared,
    metrics::Metrics,
    profile::{self, Compacts, Limits, Profile},
    residents::Residents,
    retention,
    storage::{
        Ledger, Reader, Storage, StorageHealth, WORK_DIR, chain,
        sqlite::{Database, Rhythm, SqliteStore},
    },
    supervisor::{Boot, ShutDown, Supervisor},
    watchdog::Watchdog,
};
use greenroom_core::Patience;
use rustix::process::{Resource, Rlimit, Signal as Number, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::{
    config::{self, Agent, Compaction, Config},
    http::{self, AllowedHosts, Edge, Meters, Phase},
    otlp,
};

/// Threads that read from the database.
const READERS: usize = 2;
/// Bytes of the prompts that wait in one group.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// A client takes no longer than this to send its headers (RELIABILITY F30).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A second signal within this time is the first one again.
const SAME_SIGNAL: Duration = Duration::from_millis(500);
/// What is still being answered when all streams were ended.
const ANSWER_SECONDS: u64 = 5;

/// The address cannot be served on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
struct CannotListen {
    address: SocketAddr,
    source: io::Error,
}

/// Serves until it is told to stop.
///
/// # Errors
///
/// What kept it from starting: the data directory is another server's, the port is taken, or the
/// database cannot be used. Then nothing was started.
pub fn run(config: Config) -> Result<(), Box<dyn Error>> {
    let address = config.server.listen;
    let listener = TcpListener::bind(address).map_err(|source| CannotListen { address, source })?;
    let system = System::new();
    system.block_on(async { outlive_file_size_limit() })?;
    let database = Database::open(&config.storage.path).map_err(|err| chain(&err))?;
    let open_files = raise_open_files();
    tree::become_subreaper()?;
    let reaped = sweep(&database)?;
    system.block_on(serve(config, listener, database, (open_files, reaped)))
}

async fn serve(
    config: Config,
    listener: TcpListener,
    database: Database,
    (open_files, reaped): (Option<u64>, usize),
) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let mut signals = Signals::new()?;
    let (supervisor, shared) = start_actors(&config, &database, open_files)?;
    shared.metrics.orphans_reaped.inc_by(reaped as u64);
    let ledger = shared.ledger.clone();
    // Before anything goes on: what ends by this start is not history.
    let spans = otlp::Totals::default();
    let export = otlp::start(&config.otlp, ledger.clone(), spans.clone())?;
    let (phase, on_phase) = watch::channel(Phase::Serving);
    let edge = Edge {
        shared,
        supervisor: supervisor.clone(),
        phase: on_phase,
        started,
        body_bytes_max: usize::try_from(config.server.max_body)?,
        hosts: Arc::new(AllowedHosts::new(&config.server.allowed_hosts)),
        meters: Meters::new(database.dir().to_path_buf()),
        spans,
    };
    let address = listener.local_addr()?;
    let workers = std::thread::available_parallelism().map_or(2, |cores| cores.get().min(8));
    let server = HttpServer::new(move || {
        App::new()
            .configure(http::configure(edge.clone()))
            .wrap(from_fn(http::guard))
            .wrap(from_fn(http::count))
    })
    .workers(workers)
    .client_request_timeout(REQUEST_TIMEOUT)
    .tcp_nodelay(true)
    .disable_signals()
    .shutdown_timeout(ANSWER_SECONDS)
    .listen(listener)?
    .run();
    let handle = server.handle();
    let answering = actix_rt::spawn(server);
    let groups = supervisor.send(Boot).await?.map_err(|err| chain(&database.refusal(err)))?;
    log::info!(
        target: "greenroom",
        address:%, database:% = database.path().display(), groups,
        ms = started.elapsed().as_millis();
        "ready; no tokens are configured, so only this machine is served"
    );
    let days = config.storage.retention_days;
    let retention = (days > 0).then(|| actix_rt::spawn(retention::keep(ledger, days)));
    let end = signals.next().await;
    if let Some(retention) = retention {
        retention.abort();
    }
    log::info!(target: "greenroom", signal = end; "draining: running turns may finish");
    actix_rt::spawn(async move {
        // Some programs that stop others send their signal twice at once.
        tokio::time::sleep(SAME_SIGNAL).await;
        signals.drain();
        let again = signals.next().await;
        log::warn!(target: "greenroom", signal = again; "told twice to stop: ending at once");
        // Everything accepted is durable, and the shims kill their trees when this process ends.
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

async fn shut_down(
    supervisor: &Addr<Supervisor>,
    phase: &watch::Sender<Phase>,
    server: &ServerHandle,
) {
    phase.send_replace(Phase::Draining);
    if let Err(err) = supervisor.send(ShutDown).await {
        log::error!(err:%; "the supervisor ended before its groups");
    }
    phase.send_replace(Phase::Closing);
    server.stop(true).await;
}

fn start_actors(
    config: &Config,
    database: &Database,
    open_files: Option<u64>,
) -> Result<(Addr<Supervisor>, Arc<Shared>), Box<dyn Error>> {
    let metrics = Arc::<Metrics>::default();
    let watchdog =
        Watchdog::start(metrics.arbiters_stalled.clone(), metrics.arbiter_stalls.clone())?;
    let ledger = start_storage(database, &watchdog)?;
    let data = database.dir().to_path_buf();
    let nursery = Nursery {
        shim: "/proc/self/exe".into(),
        shim_args: vec!["shim".into()],
        heartbeat: Heartbeat::start(HEARTBEAT_EVERY)?,
        data: Marker::data(data.display()),
        line_bytes_max: usize::try_from(config.limits.line)?,
        open_files,
        residents: Residents::start(usize::try_from(config.limits.resident_agents)?),
        reaped: metrics.orphans_reaped.clone(),
    };
    let profiles = profiles(config);
    let limits = limits(config)?;
    let config::Limits { running_groups, resident_agents, .. } = config.limits;
    if resident_agents < running_groups {
        log::warn!(
            target: "greenroom", running_groups, resident_agents;
            "no more tasks run at once than resident_agents allows agents"
        );
    }
    let slots = Arc::new(tokio::sync::Semaphore::new(limits.running_groups));
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().min(4));
    let arbiters: Vec<Arbiter> = (0..threads).map(|_| Arbiter::new()).collect();
    for (number, arbiter) in arbiters.iter().enumerate() {
        watchdog.watch(format!("groups-{number}"), &arbiter.handle());
    }
    let mut made = None;
    let supervisor = Supervisor::create(|ctx| {
        let address = actix::AsyncContext::address(ctx);
        let shared = Arc::new(Shared {
            ledger,
            slots,
            nursery,
            metrics,
            profiles,
            limits,
            work_dir: data.join(WORK_DIR),
            default_agent: config.defaults.agent.clone(),
            status: address.clone().recipient(),
            watched: Watched::default(),
            draining: AtomicBool::new(false),
            died: address.clone().recipient(),
            forget: address.recipient(),
        });
        made = Some(shared.clone());
        Supervisor::new(shared, arbiters)
    });
    // Until here it was busy with the database.
    watchdog.watch("main", &Arbiter::current());
    Ok((supervisor, made.ok_or("the supervisor was not made")?))
}

fn start_storage(database: &Database, watchdog: &Watchdog) -> Result<Ledger, Box<dyn Error>> {
    let health = StorageHealth::default();
    let refused = |err| chain(&database.refusal(err));
    let store = database.store().map_err(refused)?;
    let checkpointer = database.checkpointer(Rhythm::default()).map_err(refused)?;
    let writer = {
        let health = health.clone();
        let arbiter = Arbiter::new();
        watchdog.watch("storage", &arbiter.handle());
        Storage::<SqliteStore>::start_in_arbiter(&arbiter.handle(), move |_| {
            Storage::new(store, health)
        })
    };
    let opener = database.opener();
    let readers = SyncArbiter::start(READERS, move || {
        let opener = opener.clone();
        Reader::new(move || opener.archive())
    });
    checkpointer.start(health.clone(), writer.clone().recipient())?;
    Ok(Ledger::new(writer, readers, health))
}

fn profiles(config: &Config) -> HashMap<String, Arc<Profile>> {
    let profile = |(name, agent): (&String, &Agent)| {
        let passed = agent.env_pass.iter().filter_map(|key| {
            let value = std::env::var(key).ok()?;
            (!agent.env.contains_key(key)).then(|| (key.clone(), value))
        });
        let set = agent.env.iter().map(|(key, value)| (key.clone(), value.clone()));
        let profile = Profile {
            name: name.clone(),
            command: PathBuf::from(&agent.command),
            args: agent.args.clone(),
            env: set.chain(passed).collect(),
            cwd_roots: agent.cwd_roots.clone(),
            auth_method: agent.auth_method.clone(),
            start_timeout: agent.start_timeout,
            compaction: match &agent.compaction {
                Compaction::Command { command } => Compacts::ByCommand(command.clone()),
                Compaction::Rotate => Compacts::ByRotation,
                Compaction::None => Compacts::Not,
            },
            auto_compact: agent.auto_compact,
            signals: profile::Signals {
                hermes_meta: agent.signals.contains(&config::Signal::HermesMeta),
                hermes_stderr: agent.signals.contains(&config::Signal::HermesStderr),
            },
            umask: agent.umask,
            no_new_privs: agent.no_new_privs,
            rlimits: profile::Rlimits {
                open_files: agent.rlimits.open_files.map(u64::from),
                processes: agent.rlimits.processes.map(u64::from),
                core_bytes: agent.rlimits.core_size.unwrap_or(0),
                file_bytes: agent.rlimits.file_size,
                cpu_seconds: agent.rlimits.cpu_seconds,
            },
        };
        (name.clone(), Arc::new(profile))
    };
    config.agents.iter().map(profile).collect()
}

fn limits(config: &Config) -> Result<Limits, std::num::TryFromIntError> {
    let config::Limits { running_groups, resident_agents, .. } = config.limits;
    Ok(Limits {
        // A task with a slot then never waits for a busy agent to end, but for an idle one: who
        // runs next is decided in one line, that of the slots (SEEDS DQ-10).
        running_groups: usize::try_from(running_groups.min(resident_agents))?,
        patience: Patience {
            turn_ms: u64::try_from(config.defaults.turn_timeout.as_millis())?,
            compaction_ms: u64::try_from(config.defaults.compaction_timeout.as_millis())?,
            idle_ms: u64::try_from(config.defaults.idle_timeout.as_millis())?,
            permission_ms: u64::try_from(config.defaults.permission_timeout.as_millis())?,
            retry_base_ms: u64::try_from(config.defaults.retry_base.as_millis())?,
            queue_max: usize::try_from(config.limits.queue)?,
            queue_bytes_max: QUEUE_BYTES_MAX,
        },
        auto_compact: config.defaults.auto_compact,
        lock_ttl: config.defaults.lock_ttl,
        retry: config.defaults.retry,
        on_interrupt: config.defaults.on_interrupt,
        permissions: config.defaults.permission_policy.clone(),
        drain: config.server.drain_timeout,
    })
}

/// Kills what earlier servers of this data directory left running, before anything is claimed;
/// gives how many processes that were.
fn sweep(database: &Database) -> Result<usize, SweepError> {
    let pids = tree::sweep(&Marker::data(database.dir().display()))?;
    if !pids.is_empty() {
        log::warn!(target: "greenroom", pids:?; "leftover processes of an earlier server killed");
    }
    Ok(pids.len())
}

/// Lets a write beyond the limit of file sizes be an error like any other (RELIABILITY F19). The
/// signal is caught, not ignored: so agents, which are exec'd, have it as it was.
fn outlive_file_size_limit() -> io::Result<()> {
    let _caught_from_now_on = signal(SignalKind::from_raw(Number::XFSZ.as_raw()))?;
    Ok(())
}

/// As many open files as the system lets this process have: each agent takes five, each reader one.
/// Gives the limit from before, which is the agents'.
fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(err) = setrlimit(Resource::Nofile, raised) {
        log::warn!(target: "greenroom", err:%; "the limit of open files stays as it is");
    }
    limit.current
}

/// What tells the server to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Nobody waits for it. Where it is ignored, as whoever started the server may have it,
    /// children vanish unread, and their process ids may be others' when they are signalled.
    _child: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _child: signal(SignalKind::child())?,
        })
    }

    /// Forgets the signals that came so far.
    fn drain(&mut self) {
        let mut nothing = std::task::Context::from_waker(std::task::Waker::noop());
        while self.terminate.poll_recv(&mut nothing).is_ready() {}
        while self.interrupt.poll_recv(&mut nothing).is_ready() {}
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
