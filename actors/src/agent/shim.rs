//! The process-tree keeper: the program between the server and one agent (`greenroom shim`).
//!
//! Owns the agent's processes: it starts the agent in a clean place, adopts every orphan below it
//! as a subreaper, and leaves only when all are dead and reaped (I10, AM-42). It refuses the rest:
//! no data passes through it (the agent gets the server's pipes), it takes no decision about a
//! stop except that a silent server is a dead one, and it has one thread and no runtime, because
//! a parent-death signal is bound to the *thread* that forked.
//!
//! Its standard input is a socket to the server. First comes `LAUNCH` with four descriptors: the
//! agent's three streams, and a memory file with the `Spec`; so secrets stand in no command line
//! and no environment but the agent's. After that, one byte an order. Back go [`TreeEvent`]s, one
//! line of JSON each.

#![allow(unsafe_code)]

use std::{
    ffi::OsString,
    fs,
    io::{self, IoSliceMut, Read, Seek},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Access, Mode, access},
    io::{Errno, FdFlags, fcntl_setfd, retry_on_intr, write},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send},
    process::{
        PidfdFlags, Resource, Rlimit, Signal, WaitOptions, getpid, getppid, getrlimit, pidfd_open,
        set_parent_process_death_signal, setrlimit, setsid, umask, wait,
    },
    thread::{set_name, set_no_new_privs},
};
use serde::{Deserialize, Serialize};

use super::{
    cgroup::Cgroup,
    tree::{self, Marker, Process, SHIM_NAME},
};
use crate::profile::Rlimits;

/// The server's orders. `LAUNCH` is the first, and carries the descriptors.
pub(super) const LAUNCH: u8 = b'L';
pub(super) const HEARTBEAT: u8 = b'.';
pub(super) const TERMINATE: u8 = b'T';
pub(super) const KILL: u8 = b'K';

/// How long a server may be silent before it counts as dead, unless `--silence-ms` says otherwise.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Silence is counted in waits, of which this many make it up, so that time in which the shim
/// itself was stopped (a frozen container, a suspended machine) counts as one wait at most.
const SILENT_WAITS_MAX: u32 = 5;
/// After a TERM, what the agent's main process leaves behind has this long to end by itself: an
/// `npx` dies at once, the agent below it may still be saving its session. Two seconds, counted in
/// looks.
const LINGER_EVERY: Duration = Duration::from_millis(5);
const LINGER_LOOKS_MAX: u32 = 400;
/// How long the shim kills before it leaves the rest to the server: with [`LINGER_LOOKS_MAX`], less
/// than the server lets a shim take (`child::SHIM_MAX`). A round counts no more than
/// [`KILL_ROUND_MAX`], however long the machine was frozen meanwhile.
const KILL_MAX: Duration = Duration::from_millis(2_500);
const KILL_ROUND_MAX: Duration = Duration::from_secs(1);
/// Between two reapings, while orphans end one after the other.
const REAP_PAUSE: Duration = Duration::from_millis(5);
/// Signals are numbered up to this.
const SIGNAL_MAX: i32 = 64;

/// What the agent is, as the server tells the shim.
#[derive(Serialize, Deserialize)]
pub(super) struct Spec {
    pub command: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: PathBuf,
    pub umask: Option<u32>,
    pub no_new_privs: bool,
    pub rlimits: Rlimits,
    pub open_files: Option<u64>,
}

/// What happened to an agent's processes, in this order: `Started` then `Exited`, or
/// `SpawnFailed`; then `Gone`. A killed shim leaves out all but `Gone`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TreeEvent {
    /// The agent's main process runs. `start_time` is in clock ticks since boot.
    Started { pid: u32, start_time: u64 },
    /// It could not be started; `errno` is absent if the system was not even asked.
    SpawnFailed { errno: Option<i32>, message: String },
    /// The main process ended, by `exit(code)` or by a signal; others may still hold its pipes.
    Exited { code: Option<i32>, signal: Option<i32> },
    /// The server's own word, never a shim's: processes may be left, for this reason.
    #[serde(skip)]
    Left { why: String },
    /// No process of the run is left, unless `Left` came before.
    Gone,
}

/// Runs the shim; `args` come after the subcommand: `--silence-ms N`, and `--no-cgroup` for one
/// that makes no control group. Both are for tests.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match options(args).and_then(|options| run(io::stdin().as_fd(), &options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("greenroom shim: {err}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    silence_max: Duration,
    groups: bool,
}

fn options(args: impl IntoIterator<Item = OsString>) -> io::Result<Options> {
    let wrong = || io::Error::other("arguments: [--silence-ms N] [--no-cgroup]");
    let mut options = Options { silence_max: SILENCE_MAX, groups: true };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--silence-ms") => {
                let ms = args.next().and_then(|ms| ms.to_str()?.parse().ok());
                options.silence_max = Duration::from_millis(ms.ok_or_else(wrong)?);
            }
            Some("--no-cgroup") => options.groups = false,
            _ => return Err(wrong()),
        }
    }
    Ok(options)
}

fn run(control: BorrowedFd<'_>, options: &Options) -> io::Result<()> {
    close_inherited_on_exec()?;
    reset_signals();
    // The name comes before the session, see `tree::sweep_adopted`.
    set_name(SHIM_NAME)?;
    setsid()?;
    tree::become_subreaper()?;
    let wait = options.silence_max / SILENT_WAITS_MAX;
    let Some((spec, streams)) = receive(control, wait)? else {
        return Ok(());
    };
    let run = spec.env.iter().find(|(key, _)| key == Marker::RUN).map(|(_, run)| run.as_str());
    let group = run.filter(|_| options.groups).and_then(Cgroup::make);
    match start(&spec, streams, group.as_ref()) {
        Ok(agent) => Keeper { control, agent, group, ended: false, terminated: false }.keep(wait),
        Err(err) => {
            group.inspect(Cgroup::remove);
            let message = explain(&spec, &err);
            report(control, &TreeEvent::SpawnFailed { errno: err.raw_os_error(), message });
            report(control, &TreeEvent::Gone);
            Ok(())
        }
    }
}

/// Waits for the launch. `None` if the server went away, or silent, before it came.
fn receive(control: BorrowedFd<'_>, wait: Duration) -> io::Result<Option<(Spec, [OwnedFd; 3])>> {
    let mut fds = [PollFd::from_borrowed_fd(control, PollFlags::IN)];
    let limit = timespec(wait)?;
    let mut silent_waits = 0;
    while retry_on_intr(|| poll(&mut fds, Some(&limit)))? == 0 {
        silent_waits += 1;
        if silent_waits == SILENT_WAITS_MAX {
            return Ok(None);
        }
    }
    let mut order = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let iov = &mut [IoSliceMut::new(&mut order)];
    if recvmsg(control, iov, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes == 0 {
        return Ok(None);
    }
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    match (order, <[OwnedFd; 4]>::try_from(rights.flatten().collect::<Vec<_>>())) {
        ([LAUNCH], Ok([stdin, stdout, stderr, spec])) => {
            let (mut spec, mut json) = (fs::File::from(spec), Vec::new());
            spec.rewind()?;
            spec.read_to_end(&mut json)?;
            Ok(Some((serde_json::from_slice(&json)?, [stdin, stdout, stderr])))
        }
        _ => Err(io::Error::other("the first order is not a launch")),
    }
}

/// Sees to it that nothing this process inherited by accident is inherited by the agent (C13).
///
/// The server opens all its descriptors close-on-exec; those that the server itself inherited,
/// or that a library opened otherwise, are not.
fn close_inherited_on_exec() -> io::Result<()> {
    let listed: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&fd| 2 < fd)
        .collect();
    for fd in listed {
        // SAFETY: only a flag is set, which changes nothing for an owner of the descriptor in
        // this process. One of them, the listing's own, is closed by now: an error, not misuse.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
    }
    Ok(())
}

/// Undoes what the server, or whoever started it, ignores and blocks: both outlive an exec, a
/// program that never thought of SIGXFSZ would go on after it, one with SIGTERM blocked would not
/// heed it, and who ignores SIGCHLD gets no exit status.
///
/// SIGPIPE stays ignored here; `Command` undoes that in the agent.
fn reset_signals() {
    for signal in (1..=SIGNAL_MAX).filter(|&signal| signal != libc::SIGPIPE) {
        // SAFETY: no handler is installed, and this process has one thread and none of its own.
        // KILL, STOP and what the C library keeps for itself are refused, which is as well.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is written by the first call before the second one reads it, and no pointer
    // outlives the call. No signal that comes now has a handler.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// Has each end of a child interrupt a wait. Otherwise a chain of processes that fork and end
/// leaves thousands of dead ones between two heartbeats, and the machine runs out of pids.
fn wake_for_children() {
    extern "C" fn nothing(_: libc::c_int) {}
    let nothing = nothing as extern "C" fn(libc::c_int);
    // SAFETY: the handler does nothing, and an exec takes it away again.
    unsafe { libc::signal(libc::SIGCHLD, nothing as libc::sighandler_t) };
}

/// Starts the agent on `streams`, of which no copy stays here (else there would be no EOF).
fn start(spec: &Spec, streams: [OwnedFd; 3], group: Option<&Cgroup>) -> io::Result<Process> {
    limit(spec).map_err(io::Error::other)?;
    // Both are inherited, and mean nothing to the shim itself: it makes no file and runs nothing.
    if let Some(mask) = spec.umask {
        umask(Mode::from_raw_mode(mask));
    }
    if spec.no_new_privs {
        set_no_new_privs(true)?;
    }
    let [stdin, stdout, stderr] = streams;
    let mut command = Command::new(&spec.command);
    command
        .args(&spec.args)
        .env_clear()
        .envs(spec.env.iter().map(|(key, value)| (key, value)))
        .current_dir(&spec.cwd)
        .process_group(0)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    let shim = getpid();
    let entrance = group.and_then(|group| group.entrance().ok());
    let cpu = spec.rlimits.cpu_seconds;
    let last_steps = move || {
        // An agent that may not enter its control group is kept without one.
        if let Some(entrance) = &entrance {
            let _ = write(entrance, b"0");
        }
        // Not in the shim, which lives as long as all that the agent starts.
        if cpu.is_some() {
            setrlimit(Resource::Cpu, Rlimit { current: cpu, maximum: cpu })?;
        }
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // A shim that died before the signal was set would not be noticed.
        if getppid() == Some(shim) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec it makes a few system calls and neither allocates nor locks;
    // and the shim has one thread, so that no lock can be held by another.
    unsafe { command.pre_exec(last_steps) };
    // The child is reaped by `Keeper::reap`, with all others.
    Process::now(command.spawn()?.id())
}

/// Sets the limits of the profile, soft and hard ones alike; else an ordinary soft limit of open
/// files, whatever the server needs itself, which the agent may raise.
fn limit(spec: &Spec) -> Result<(), String> {
    let limits = &spec.rlimits;
    let set = [
        ("open_files", Resource::Nofile, limits.open_files),
        ("processes", Resource::Nproc, limits.processes),
        ("core_size", Resource::Core, Some(limits.core_bytes)),
        ("file_size", Resource::Fsize, limits.file_bytes),
    ];
    for (key, resource, most) in set {
        if most.is_some() {
            let limit = Rlimit { current: most, maximum: most };
            setrlimit(resource, limit).map_err(|err| refused(key, resource, most, err))?;
        }
    }
    let most = getrlimit(Resource::Cpu).maximum;
    if limits.cpu_seconds.zip(most).is_some_and(|(wanted, most)| most < wanted) {
        return Err(refused("cpu_time", Resource::Cpu, limits.cpu_seconds, Errno::PERM));
    }
    if limits.open_files.is_none() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let current = [spec.open_files, maximum].into_iter().flatten().min();
        setrlimit(Resource::Nofile, Rlimit { current, maximum })
            .map_err(|err| refused("open_files", Resource::Nofile, current, err))?;
    }
    Ok(())
}

fn refused(key: &str, resource: Resource, most: Option<u64>, err: Errno) -> String {
    let named = |limit: Option<u64>| limit.map_or("unlimited".into(), |limit| limit.to_string());
    let (most, maximum) = (named(most), named(getrlimit(resource).maximum));
    format!("the limit {key} cannot be {most}, the system allows {maximum}: {err}")
}

/// Says which part of the launch was wrong: the system gives one error for several.
fn explain(spec: &Spec, err: &io::Error) -> String {
    let (command, cwd) = (spec.command.display(), spec.cwd.display());
    let by_path = spec.command.components().count() != 1;
    match err.kind() {
        _ if !spec.cwd.is_dir() => format!("working directory {cwd} is missing or no directory"),
        _ if access(&spec.cwd, Access::EXEC_OK).is_err() => {
            format!("working directory {cwd} may not be entered")
        }
        io::ErrorKind::NotFound if by_path && spec.cwd.join(&spec.command).is_file() => {
            format!("the interpreter that {command} names was not found")
        }
        io::ErrorKind::NotFound => format!("command {command} was not found"),
        io::ErrorKind::PermissionDenied => format!("command {command} is not executable"),
        _ => format!("command {command} cannot be started: {err}"),
    }
}

/// Tells the server. It may be gone, and a full socket belongs to a server that is stopped: the
/// tree's end must wait for neither.
fn report(control: BorrowedFd<'_>, event: &TreeEvent) {
    if let Ok(mut line) = serde_json::to_vec(event) {
        line.push(b'\n');
        let _ = send(control, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

fn timespec(duration: Duration) -> io::Result<Timespec> {
    Timespec::try_from(duration).map_err(io::Error::other)
}

/// What goes on after an order.
#[derive(PartialEq, Eq)]
enum Next {
    Wait,
    Kill,
}

/// One running agent and all that it started.
struct Keeper<'c> {
    control: BorrowedFd<'c>,
    agent: Process,
    group: Option<Cgroup>,
    /// The main process was reaped; its pid may be another's by now.
    ended: bool,
    /// TERM went out; it goes out once, as some programs take a second one for impatience.
    terminated: bool,
}

impl Keeper<'_> {
    fn keep(mut self, wait: Duration) -> io::Result<()> {
        let Process { pid, start_time } = self.agent;
        report(self.control, &TreeEvent::Started { pid, start_time });
        wake_for_children();
        // Whatever fails from here on, the tree is killed.
        let watched = self.watch(wait);
        if self.ended && self.terminated {
            self.linger();
        }
        self.kill_all()?;
        report(self.control, &TreeEvent::Gone);
        watched
    }

    /// Returns when the tree has to go: its main process ended, or the server is gone or says so.
    fn watch(&mut self, wait: Duration) -> io::Result<()> {
        let pidfd = pidfd_open(self.agent.id()?, PidfdFlags::empty())?;
        let silence_max = wait * SILENT_WAITS_MAX;
        let mut silence = Duration::ZERO;
        while silence < silence_max {
            let began = Instant::now();
            let limit = timespec(wait.min(silence_max - silence))?;
            let mut fds = [
                PollFd::from_borrowed_fd(self.control, PollFlags::IN),
                PollFd::new(&pidfd, PollFlags::IN),
            ];
            match poll(&mut fds, Some(&limit)) {
                Ok(1..) if !fds[0].revents().is_empty() => {
                    silence = Duration::ZERO;
                    if self.obey() == Next::Kill {
                        break;
                    }
                }
                // A child's end breaks no silence.
                Ok(_) => silence += began.elapsed().min(wait),
                Err(Errno::INTR) => {
                    thread::sleep(REAP_PAUSE);
                    silence += began.elapsed().min(wait);
                }
                Err(err) => return Err(err.into()),
            }
            // At each turn, as orphans that ended are this process's to reap.
            self.reap();
            if self.ended {
                break;
            }
        }
        Ok(())
    }

    /// Takes what the server sent.
    fn obey(&mut self) -> Next {
        let mut orders = [0; 64];
        match recv(self.control, &mut orders[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Next::Kill,
            Ok((count, _)) => {
                for &order in &orders[..count] {
                    match order {
                        KILL => return Next::Kill,
                        TERMINATE => self.terminate(),
                        // A heartbeat has done its work by coming.
                        _ => (),
                    }
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => (),
            Err(_) => return Next::Kill,
        }
        Next::Wait
    }

    fn terminate(&mut self) {
        if !self.terminated {
            self.terminated = true;
            // What cannot be listed or signalled now is killed in the end.
            for process in tree::descendants(std::process::id()).unwrap_or_default() {
                let _ = process.signal(Signal::TERM);
            }
        }
    }

    /// After TERM, and the end of the main process: waits for the others, not for long.
    fn linger(&mut self) {
        for _ in 0..LINGER_LOOKS_MAX {
            if !self.reap() || self.obey() == Next::Kill {
                return;
            }
            thread::sleep(LINGER_EVERY);
        }
    }

    /// Kills until no child is left. As every orphan below becomes a child of this process, no
    /// child means no descendant, in whichever session or group.
    fn kill_all(&mut self) -> io::Result<()> {
        let mut spent = Duration::ZERO;
        let mut pause = Duration::from_millis(1);
        while self.reap() {
            if KILL_MAX <= spent {
                return Err(io::Error::other("a process of the agent cannot be killed"));
            }
            let began = Instant::now();
            // What either misses is met again in the next round.
            let _ = self.group.as_ref().map(Cgroup::kill);
            let _ = tree::kill_below(std::process::id());
            thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(100));
            spent += began.elapsed().min(KILL_ROUND_MAX);
        }
        self.group.iter().for_each(Cgroup::remove);
        Ok(())
    }

    /// Reaps all that ended, and reports the main process. False if there is no child at all.
    fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if self.agent.id().is_ok_and(|agent| agent == pid) => {
                    self.ended = true;
                    let (code, signal) = (status.exit_status(), status.terminating_signal());
                    report(self.control, &TreeEvent::Exited { code, signal });
                }
                Ok(Some(_)) | Err(Errno::INTR) => (),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }
}
