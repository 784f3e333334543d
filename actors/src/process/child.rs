//! The server's side of one process tree: starts the agent through the shim, and follows its end.
//!
//! Owns the creation of the pipes, the heartbeat, and the cleanup at the end of a run. It reads no
//! line of the agent and knows no escalation: its caller closes [`Child::stdin`], then calls
//! [`TreeHandle::terminate`], then [`TreeHandle::kill`], at times of its own.
//!
//! The shim's reports are claims: at the end of every run, the server looks for what is left.
//!
//! Every descriptor created here is close-on-exec from its first moment, and the shim gets the
//! agent's over a socket. So no process that another thread starts at the same time inherits an
//! agent's end of a pipe, which would keep that agent's reader from EOF.

use std::{
    collections::BTreeSet,
    future::pending,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream as BlockingStream,
    },
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Weak, mpsc as blocking},
    thread,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use rustix::{
    net::{SendFlags, Shutdown, send, shutdown},
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
};
use tokio::{
    net::{
        UnixStream,
        unix::pipe::{Receiver, Sender},
    },
    process::{Child as ShimChild, Command},
    sync::mpsc,
    time::sleep,
};

pub use super::control::TreeEvent;
use super::{
    control::{HEARTBEAT, Spec, TreeCommand, send_launch},
    proc::Marker,
    sandbox::Confinement,
    search::{self, Leftovers, SearchError},
    shims::Registered,
    sweep,
};
use crate::{
    awake::{self, Awake},
    profile::Rlimits,
    working_dir::WorkingDir,
};

/// Time between two heartbeats: a third of the silence that a shim tolerates.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);
/// Room in the agent's stdin and stdout, so that one commit does not stop a writing agent.
const PIPE_BYTES: usize = 1024 * 1024;
/// How long the tree may exist after a kill, or after the end of the main process. After that the
/// shim hangs, or its own agent stopped it, and it is killed too.
const SHIM_MAX: Duration = Duration::from_secs(5);
/// If the leftovers of a killed shim could not be found or killed, the server retries at this
/// interval, for at most [`CLEAR_MAX`]. No other run of the group starts before.
const CLEAR_RETRY: Duration = Duration::from_millis(500);
const CLEAR_MAX: Duration = Duration::from_secs(60);
/// The longest report of a shim. The sender of a longer one is no shim.
const REPORT_BYTES_MAX: usize = 64 * 1024;
/// The most reports that a shim sends. A sender of more is no shim, and would keep the thread busy.
const REPORTS_MAX: usize = 4;

/// What to start, and how. Not `Debug`, as it holds the agent's secrets (C16).
#[derive(Clone)]
pub struct Launch {
    /// The program that calls [`super::shim::main`], and the arguments for that.
    pub shim: PathBuf,
    pub shim_args: Vec<String>,
    /// A path, or a name, which is looked up in the `PATH` of `env`.
    pub command: PathBuf,
    pub args: Vec<String>,
    /// The agent's whole environment, except for the two markers.
    pub env: Vec<(String, String)>,
    pub cwd: WorkingDir,
    pub umask: Option<u32>,
    pub no_new_privs: bool,
    pub confinement: Option<Confinement>,
    pub rlimits: Rlimits,
    /// The soft limit of open files, if `rlimits` names none; `None`: unlimited.
    pub open_files: Option<u64>,
    /// The markers by which its processes are found if all else fails; see [`Marker::run`] and
    /// [`Marker::data`].
    pub run: Marker,
    pub data: Marker,
    pub counters: Counters,
}

/// What the ends of runs count.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Processes that outlived their shim and were killed.
    pub reaped: Counter,
    /// Shims that reported the end of all processes of a run while some were left.
    pub refuted: Counter,
}

/// A started agent. Dropping [`Child::stdin`] closes its standard input.
#[derive(Debug)]
pub struct Child {
    pub stdin: Sender,
    pub stdout: Receiver,
    pub stderr: Receiver,
    pub tree: TreeHandle,
}

/// The hold on an agent's processes. Dropping it kills them.
#[derive(Debug)]
pub struct TreeHandle {
    commands: mpsc::UnboundedSender<TreeCommand>,
    events: mpsc::UnboundedReceiver<TreeEvent>,
}

impl TreeHandle {
    /// Sends TERM to every process of the tree: once, however often it is called.
    ///
    /// If the main process ends, the others are killed two seconds later.
    pub fn terminate(&self) {
        // A failed send means that the tree is gone.
        _ = self.commands.send(TreeCommand::Terminate);
    }

    /// Kills every process of the tree at once.
    pub fn kill(&self) {
        _ = self.commands.send(TreeCommand::Kill);
    }

    /// Returns the next event of the tree; [`TreeEvent::Gone`] is the last, and repeats.
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> TreeEvent {
        self.events.recv().await.unwrap_or(TreeEvent::Gone)
    }
}

/// The thread that sends heartbeats to all shims.
///
/// It is a thread of its own, so that no busy runtime looks like a dead server, and it never
/// blocks. It ends with the last clone of this handle.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    shims: blocking::Sender<Weak<UnixStream>>,
}

impl Heartbeat {
    /// Starts the thread, which beats at this interval: [`HEARTBEAT_EVERY`], except in tests.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub fn start(every: Duration) -> io::Result<Self> {
        let (shims, joining) = blocking::channel();
        thread::Builder::new().name("heartbeat".into()).spawn(move || beat(&joining, every))?;
        Ok(Self { shims })
    }
}

fn beat(joining: &blocking::Receiver<Weak<UnixStream>>, every: Duration) {
    let mut shims: Vec<Weak<UnixStream>> = Vec::new();
    let mut next = Instant::now() + every;
    loop {
        match joining.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(shim) => shims.push(shim),
            Err(blocking::RecvTimeoutError::Timeout) => {
                shims.retain(|shim| shim.upgrade().is_some_and(|shim| send_byte(&shim, HEARTBEAT)));
                next = Instant::now() + every;
            }
            Err(blocking::RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Sends one byte without waiting. Returns false if the shim is gone.
///
/// A full socket belongs to a stopped shim, which will read the earlier bytes.
fn send_byte(shim: &UnixStream, byte: u8) -> bool {
    match send(shim, &[byte], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => true,
        Err(_) => false,
    }
}

/// Starts an agent. The first event of [`Child::tree`] reports whether it runs.
///
/// Call it in a tokio runtime; the tree lives no longer than that runtime. `guard` is dropped when
/// the tree is gone, or if it cannot be started.
///
/// # Errors
///
/// The shim cannot be started, no descriptor is left, or the launch is not valid UTF-8. No process
/// is left behind.
pub fn spawn(
    launch: Launch,
    heartbeat: &Heartbeat,
    guard: impl Send + 'static,
) -> io::Result<Child> {
    let markers = [launch.run.entry(), launch.data.entry()];
    let spec = spec(&launch)?;
    let (stdin, to_agent) = pipe_with(PipeFlags::CLOEXEC)?;
    let (from_agent, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (errors, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    for pipe in [&to_agent, &from_agent] {
        // Refused to a user with many pipes; a smaller pipe is slower, not wrong.
        _ = fcntl_setpipe_size(pipe, PIPE_BYTES);
    }
    // The shim's end stays blocking; this one is tokio's.
    let (control, shims_end) = BlockingStream::pair()?;
    control.set_nonblocking(true)?;
    let control = Arc::new(UnixStream::from_std(control)?);
    let shim = Command::new(&launch.shim)
        .args(&launch.shim_args)
        // Its environment is readable for root only: see `Entry::markers`.
        .args([&launch.run, &launch.data].map(Marker::argument))
        .env_clear()
        .envs(markers)
        .stdin(Stdio::from(OwnedFd::from(shims_end)))
        .stdout(Stdio::null())
        .spawn()?;
    // From here on, an error drops the last end of the socket, and then the shim exits.
    let registered = shim.id().map(|pid| Registered::new(pid, &launch.run)).transpose()?;
    send_launch(&control, [stdin, stdout, stderr, spec], launch.cwd.as_fd())?;
    _ = heartbeat.shims.send(Arc::downgrade(&control));
    let (commands, received) = mpsc::unbounded_channel();
    let (report, events) = mpsc::unbounded_channel();
    let child = Child {
        stdin: Sender::from_owned_fd(to_agent)?,
        stdout: Receiver::from_owned_fd(from_agent)?,
        stderr: Receiver::from_owned_fd(errors)?,
        tree: TreeHandle { commands, events },
    };
    let ended = (launch.run, launch.counters);
    let watched = watch(Reports::new(control), shim, received, report, ended);
    tokio::spawn(async move {
        let _guard = (guard, registered);
        watched.await;
    });
    Ok(child)
}

/// Describes the agent to its shim.
fn spec(launch: &Launch) -> io::Result<OwnedFd> {
    let markers = [launch.run.entry(), launch.data.entry()];
    let markers = markers.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Spec {
        command: launch.command.clone(),
        args: launch.args.clone(),
        env: launch.env.iter().cloned().chain(markers).collect(),
        cwd: launch.cwd.path().to_owned(),
        umask: launch.umask,
        no_new_privs: launch.no_new_privs,
        confinement: launch.confinement.clone(),
        rlimits: launch.rlimits.clone(),
        open_files: launch.open_files,
    }
    .write()
}

/// Watches the tree to its end, also after the [`TreeHandle`] is dropped.
async fn watch(
    mut reports: Reports,
    mut shim: ShimChild,
    mut commands: mpsc::UnboundedReceiver<TreeCommand>,
    events: mpsc::UnboundedSender<TreeEvent>,
    (run, counters): (Marker, Counters),
) {
    let end_by = || awake::now() + SHIM_MAX;
    let mut deadline = None;
    let mut is_held = true;
    let gone = loop {
        tokio::select! {
            report = reports.next() => match report {
                Some(TreeEvent::Gone) => break true,
                Some(event) => {
                    if !matches!(event, TreeEvent::Started { .. }) {
                        deadline.get_or_insert_with(end_by);
                    }
                    _ = events.send(event);
                }
                None => break false,
            },
            command = commands.recv(), if is_held => match command {
                Some(command) => {
                    if command == TreeCommand::Kill {
                        deadline.get_or_insert_with(end_by);
                    }
                    send_byte(&reports.control, command as u8);
                }
                None => {
                    is_held = false;
                    deadline.get_or_insert_with(end_by);
                    // To the shim this is the end of the server.
                    _ = shutdown(&*reports.control, Shutdown::Write);
                }
            },
            () = passed(deadline) => {
                log::error!(run = run.entry().1; "shim does not end; killing it");
                break false;
            }
        }
    };
    // It has sent its last report, has ended, or hangs: no report follows.
    _ = shim.start_kill();
    _ = shim.wait().await;
    if !gone {
        log::warn!(run = run.entry().1; "shim died");
    }
    if !(gone && nothing_is_left(&run, &counters).await)
        && let Err(why) = clear(run, counters.reaped).await
    {
        _ = events.send(TreeEvent::Left { why });
    }
    _ = events.send(TreeEvent::Gone);
}

/// Whether a shim was right that no process of its run is left; false if that is unknown.
async fn nothing_is_left(run: &Marker, counters: &Counters) -> bool {
    let run_id = run.entry().1;
    match search::left_by(run).await {
        Ok(Leftovers { pids, of_others }) if pids.is_empty() => of_others.is_empty(),
        Ok(Leftovers { pids, .. }) => {
            log::warn!(run = run_id, pids:?; "shim reported the end of a run that left processes");
            counters.refuted.inc();
            false
        }
        Err(err) => {
            log::warn!(run = run_id, err:%; "cannot check what a run left; searching again");
            false
        }
    }
}

async fn passed(deadline: Option<Awake>) {
    match deadline {
        Some(deadline) => awake::sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Kills the leftovers of a dead shim: the agent is dead by its parent-death signal; its
/// descendants were adopted by the server, if that is a subreaper, else by init.
///
/// # Errors
///
/// The processes could not be found or killed within [`CLEAR_MAX`].
async fn clear(run: Marker, reaped: Counter) -> Result<(), String> {
    let give_up = awake::now() + CLEAR_MAX;
    loop {
        let (run, reaped) = (run.clone(), reaped.clone());
        // A scan of /proc blocks for milliseconds, or as long as a process hangs.
        let clearing = tokio::task::spawn_blocking(move || clear_once(&run, &reaped));
        let Ok(cleared) = awake::timeout_at(give_up, clearing).await else {
            return Err("the search for leftover processes hangs".into());
        };
        // The task fails only by a panic.
        let cleared = cleared.unwrap_or(Ok(()));
        if cleared.is_ok() || give_up.has_passed() || search::hangs() {
            return cleared;
        }
        sleep(CLEAR_RETRY).await;
    }
}

fn clear_once(run: &Marker, reaped: &Counter) -> Result<(), String> {
    // First the adopted, whose search reads no environment, and so never hangs.
    let adopted = sweep::sweep_adopted();
    let marked = if search::hangs() { None } else { Some(sweep::sweep_run(run)) };
    let unsearched = marked.is_none();
    let run = run.entry().1;
    let (mut killed, mut cleared) = (BTreeSet::new(), Ok(()));
    for swept in marked.into_iter().chain([adopted]) {
        match swept {
            Ok(pids) => {
                if !pids.is_empty() {
                    log::warn!(run, pids:?; "killed what a run left");
                }
                // A marked process may be adopted as well.
                killed.extend(pids);
            }
            Err(err) => {
                log::error!(run, err:%; "cannot kill what a run left");
                cleared = Err(err.to_string());
            }
        }
    }
    reaped.inc_by(killed.len() as u64);
    if unsearched { cleared.and(Err(SearchError::Hangs.to_string())) } else { cleared }
}

/// The reports that a shim sends.
struct Reports {
    control: Arc<UnixStream>,
    unread: Vec<u8>,
    count: usize,
}

impl Reports {
    fn new(control: Arc<UnixStream>) -> Self {
        Self { control, unread: Vec::new(), count: 0 }
    }

    /// Returns the next report; `None` if the shim is gone, or breaks the protocol. Cancel safe.
    async fn next(&mut self) -> Option<TreeEvent> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.unread) {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                self.count += 1;
                if REPORTS_MAX < self.count {
                    return None;
                }
                return serde_json::from_slice(&line).ok();
            }
            let mut bytes = [0; 1024];
            self.control.readable().await.ok()?;
            match self.control.try_read(&mut bytes) {
                Ok(0) => return None,
                Ok(_) if REPORT_BYTES_MAX <= self.unread.len() => return None,
                Ok(count) => self.unread.extend(&bytes[..count]),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => (),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => (),
                Err(_) => return None,
            }
        }
    }
}
