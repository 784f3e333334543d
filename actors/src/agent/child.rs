//! The server's side of one agent: starts it through the shim, and hears how it ends.
//!
//! Owns the pipes' making, the heartbeat, and what is left when the shim itself was killed. It
//! reads no line of the agent's and knows no ladder: the agent's actor closes [`Child::stdin`],
//! then calls [`Keeper::terminate`], then [`Keeper::kill`], at times of its own.
//!
//! Every descriptor made here is close-on-exec from its first moment, and the shim gets the
//! agent's over a socket. So no process that is started at the same time, on whichever thread, can
//! inherit another agent's end of a pipe, which would keep it from ever seeing EOF.

use std::{
    collections::BTreeSet,
    fs::File,
    future::pending,
    io::{self, IoSlice, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
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
    fs::{MemfdFlags, memfd_create},
    net::{
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, send, sendmsg, shutdown,
    },
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

pub use super::shim::TreeEvent;
use super::{
    shim::{HEARTBEAT, KILL, LAUNCH, Spec, TERMINATE},
    tree::{self, Marker},
};
use crate::{
    awake::{self, Awake},
    profile::Rlimits,
};

/// Time between two heartbeats: a third of the silence that a shim bears.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);
/// Room in the agent's stdin and stdout, so that one commit does not stop a writing agent.
const PIPE_BYTES: usize = 1024 * 1024;
/// After a kill, or the end of the main process, the tree has this long to be gone; then the shim
/// is hung, or was stopped by its own agent, and is killed too.
const SHIM_MAX: Duration = Duration::from_secs(5);
/// If what a killed shim left could not be looked for, or not be killed, that is tried again at
/// this interval, for so long. No other run of the group begins before.
const CLEAR_AGAIN: Duration = Duration::from_millis(500);
const CLEAR_MAX: Duration = Duration::from_secs(60);
/// The longest report of a shim. What is longer comes from something that is no shim.
const REPORT_BYTES_MAX: usize = 64 * 1024;
/// A shim sends four reports at most. What sends more is no shim, and would keep the thread busy.
const REPORTS_MAX: usize = 4;

/// What to start, and as what. Not `Debug`, as it holds the agent's secrets (C16).
#[derive(Clone)]
pub struct Launch {
    /// The program that calls [`super::shim::main`], and the arguments that make it do so.
    pub shim: PathBuf,
    pub shim_args: Vec<String>,
    /// By path, or by name, which is then looked up in the `PATH` of `env`.
    pub command: PathBuf,
    pub args: Vec<String>,
    /// All that the agent finds in its environment, but for the two markers.
    pub env: Vec<(String, String)>,
    pub cwd: PathBuf,
    pub umask: Option<u32>,
    pub no_new_privs: bool,
    pub rlimits: Rlimits,
    /// The soft limit of open files, if `rlimits` names none; `None`: unlimited.
    pub open_files: Option<u64>,
    /// By these its processes are found when all else failed; see [`Marker::run`] and
    /// [`Marker::data`].
    pub run: Marker,
    pub data: Marker,
    /// Counts what outlived its shim and was killed.
    pub reaped: Counter,
}

/// A started agent. Dropping [`Child::stdin`] closes its standard input.
#[derive(Debug)]
pub struct Child {
    pub stdin: Sender,
    pub stdout: Receiver,
    pub stderr: Receiver,
    pub keeper: Keeper,
}

/// The hold on an agent's processes. Dropping it has them killed.
#[derive(Debug)]
pub struct Keeper {
    orders: mpsc::UnboundedSender<Order>,
    events: mpsc::UnboundedReceiver<TreeEvent>,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Terminate,
    Kill,
}

impl Keeper {
    /// Asks every process of the tree to end (TERM), once however often it is called.
    ///
    /// When the main process has ended of it, the others are killed two seconds later.
    pub fn terminate(&self) {
        // A failed send means that the tree is gone.
        let _ = self.orders.send(Order::Terminate);
    }

    /// Has every process of the tree killed at once.
    pub fn kill(&self) {
        let _ = self.orders.send(Order::Kill);
    }

    /// The next thing that happened to the tree; [`TreeEvent::Gone`] is the last, and repeats.
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> TreeEvent {
        self.events.recv().await.unwrap_or(TreeEvent::Gone)
    }
}

/// The thread that tells all shims that the server lives.
///
/// A thread of its own, so that no busy runtime looks like a dead server, and one that never
/// blocks. It ends with the last clone of this handle.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    shims: blocking::Sender<Weak<UnixStream>>,
}

impl Heartbeat {
    /// Starts the thread, which beats at this interval: [`HEARTBEAT_EVERY`], tests apart.
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
                shims.retain(|shim| shim.upgrade().is_some_and(|shim| order(&shim, HEARTBEAT)));
                next = Instant::now() + every;
            }
            Err(blocking::RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Sends one byte, without waiting. False if nobody is left to hear it.
///
/// A socket that is full belongs to a shim that is stopped: it will find the bytes before.
fn order(shim: &UnixStream, order: u8) -> bool {
    match send(shim, &[order], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => true,
        Err(_) => false,
    }
}

/// Starts an agent. Whether it runs is told by the first event of [`Child::keeper`].
///
/// Call it inside a tokio runtime; the tree lives no longer than that runtime. `held` is dropped
/// when nothing of the tree is left, or it cannot be started.
///
/// # Errors
///
/// The shim cannot be started, no descriptor is left, or the launch is not valid UTF-8. No process
/// is left behind.
pub fn spawn(
    launch: Launch,
    heartbeat: &Heartbeat,
    held: impl Send + 'static,
) -> io::Result<Child> {
    let markers = [launch.run.entry(), launch.data.entry()];
    let spec = spec(&launch)?;
    let (stdin, to_agent) = pipe_with(PipeFlags::CLOEXEC)?;
    let (from_agent, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (errors, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    for pipe in [&to_agent, &from_agent] {
        // Refused to a user who has many pipes already; a smaller one is slower, not wrong.
        let _ = fcntl_setpipe_size(pipe, PIPE_BYTES);
    }
    // The shim's end stays blocking; this one is tokio's.
    let (control, shims_end) = BlockingStream::pair()?;
    control.set_nonblocking(true)?;
    let control = Arc::new(UnixStream::from_std(control)?);
    let shim = Command::new(&launch.shim)
        .args(&launch.shim_args)
        .env_clear()
        .envs(markers)
        .stdin(Stdio::from(OwnedFd::from(shims_end)))
        .stdout(Stdio::null())
        .spawn()?;
    // From here on, an error drops the last end of the socket, at which the shim leaves.
    hand_over(&control, [stdin, stdout, stderr, spec])?;
    let _ = heartbeat.shims.send(Arc::downgrade(&control));
    let (orders, ordered) = mpsc::unbounded_channel();
    let (happened, events) = mpsc::unbounded_channel();
    let child = Child {
        stdin: Sender::from_owned_fd(to_agent)?,
        stdout: Receiver::from_owned_fd(from_agent)?,
        stderr: Receiver::from_owned_fd(errors)?,
        keeper: Keeper { orders, events },
    };
    let watched = watch(Reports::of(control), shim, ordered, happened, (launch.run, launch.reaped));
    tokio::spawn(async move {
        let _held = held;
        watched.await;
    });
    Ok(child)
}

/// The agent's description in a memory file: of any length, and read by the shim alone.
fn spec(launch: &Launch) -> io::Result<OwnedFd> {
    let markers = [launch.run.entry(), launch.data.entry()];
    let markers = markers.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let spec = Spec {
        command: launch.command.clone(),
        args: launch.args.clone(),
        env: launch.env.iter().cloned().chain(markers).collect(),
        cwd: launch.cwd.clone(),
        umask: launch.umask,
        no_new_privs: launch.no_new_privs,
        rlimits: launch.rlimits.clone(),
        open_files: launch.open_files,
    };
    let mut file = File::from(memfd_create("launch", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(&spec)?)?;
    Ok(file.into())
}

/// Sends the launch with its descriptors, whose copies here are closed.
fn hand_over(control: &UnixStream, fds: [OwnedFd; 4]) -> io::Result<()> {
    let borrowed = fds.each_ref().map(|fd| fd.as_fd());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(control, &[IoSlice::new(&[LAUNCH])], &mut ancillary, flags)?;
    Ok(())
}

/// Stays with the tree to its end, also when nobody listens any more.
async fn watch(
    mut reports: Reports,
    mut shim: ShimChild,
    mut orders: mpsc::UnboundedReceiver<Order>,
    events: mpsc::UnboundedSender<TreeEvent>,
    (run, reaped): (Marker, Counter),
) {
    let end_by = || awake::now() + SHIM_MAX;
    let mut deadline = None;
    let mut listened_to = true;
    let gone = loop {
        tokio::select! {
            report = reports.next() => match report {
                Some(TreeEvent::Gone) => break true,
                Some(event) => {
                    if !matches!(event, TreeEvent::Started { .. }) {
                        deadline.get_or_insert_with(end_by);
                    }
                    let _ = events.send(event);
                }
                None => break false,
            },
            ordered = orders.recv(), if listened_to => match ordered {
                Some(Order::Terminate) => {
                    order(&reports.control, TERMINATE);
                }
                Some(Order::Kill) => {
                    deadline.get_or_insert_with(end_by);
                    order(&reports.control, KILL);
                }
                None => {
                    listened_to = false;
                    deadline.get_or_insert_with(end_by);
                    // To the shim, the end of the server.
                    let _ = shutdown(&*reports.control, Shutdown::Write);
                }
            },
            () = passed(deadline) => {
                log::error!(run = run.entry().1; "shim does not end; killing it");
                break false;
            }
        }
    };
    // It has said its last word, has ended, or is hung: in no case is there more to wait for.
    let _ = shim.start_kill();
    let _ = shim.wait().await;
    if !gone && let Err(why) = clear(run, reaped).await {
        let _ = events.send(TreeEvent::Left { why });
    }
    let _ = events.send(TreeEvent::Gone);
}

async fn passed(deadline: Option<Awake>) {
    match deadline {
        Some(deadline) => awake::sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Ends what a killed shim left: the agent is dead by its parent-death signal, and what it started
/// was adopted by the server, if that is a subreaper, else by init.
///
/// # Errors
///
/// What could not be killed, or not be looked for, within [`CLEAR_MAX`].
async fn clear(run: Marker, reaped: Counter) -> Result<(), String> {
    let give_up = awake::now() + CLEAR_MAX;
    loop {
        let (run, reaped) = (run.clone(), reaped.clone());
        // A look through all of /proc blocks for milliseconds.
        let cleared = tokio::task::spawn_blocking(move || clear_once(&run, &reaped)).await;
        // The task cannot fail but by a panic.
        let cleared = cleared.unwrap_or(Ok(()));
        if cleared.is_ok() || give_up.has_passed() {
            return cleared;
        }
        sleep(CLEAR_AGAIN).await;
    }
}

fn clear_once(run: &Marker, reaped: &Counter) -> Result<(), String> {
    let (marked, adopted) = (tree::sweep_run(run), tree::sweep_adopted());
    let run = run.entry().1;
    let (mut killed, mut cleared) = (BTreeSet::new(), Ok(()));
    for swept in [marked, adopted] {
        match swept {
            Ok(pids) => {
                log::warn!(run, pids:?; "shim died; killed the rest");
                // What was marked may be adopted as well.
                killed.extend(pids);
            }
            Err(err) => {
                log::error!(run, err:%; "cannot clear up after shim");
                cleared = Err(err.to_string());
            }
        }
    }
    reaped.inc_by(killed.len() as u64);
    cleared
}

/// The lines that a shim sends.
struct Reports {
    control: Arc<UnixStream>,
    unread: Vec<u8>,
    count: usize,
}

impl Reports {
    fn of(control: Arc<UnixStream>) -> Self {
        Self { control, unread: Vec::new(), count: 0 }
    }

    /// The next report; none when the shim is gone, or says what no shim says. Cancel safe.
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
