//! The shim of a process tree: the program between the server and one agent (`greenroom shim`).
//!
//! Owns the agent's processes: it starts the agent in a clean state, adopts every orphaned
//! descendant as a subreaper, and exits only when all are dead and reaped (I10, AM-42). It does no
//! more: no data passes through it (the agent gets the server's pipes), it decides on no stop
//! except that a silent server is a dead one, and it has one thread and no runtime, because a
//! parent-death signal is bound to the *thread* that forked.
//!
//! What it receives and sends is in `control.rs`.

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, OsString},
    fs, io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Access, AtFlags, FileType, Mode, Stat, accessat, statat},
    io::{Errno, FdFlags, fcntl_setfd, retry_on_intr, write},
    net::{RecvFlags, recv},
    process::{
        PidfdFlags, Resource, Rlimit, Signal, WaitOptions, fchdir, getpid, getppid, getrlimit,
        pidfd_open, set_parent_process_death_signal, setrlimit, setsid, umask, wait,
    },
    thread::{set_name, set_no_new_privs},
};

use super::{
    cgroup::Cgroup,
    control::{self, Received, Spec, TreeCommand, TreeEvent, report},
    proc::{self, Marker, Process},
    sandbox::{Barrier, Confinement, Program},
};

/// How long a server may be silent before it counts as dead, unless `--silence-ms` says otherwise.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Silence is counted in this many waits, so that time in which the shim itself was stopped (a
/// frozen container, a suspended machine) counts as one wait at most.
const SILENT_WAITS_MAX: u32 = 5;
/// After a TERM, the other processes have this long to end after the agent's main process: an
/// `npx` dies at once, the agent below it may still be saving its session. Two seconds, counted in
/// checks.
const LINGER_EVERY: Duration = Duration::from_millis(5);
const LINGER_CHECKS_MAX: u32 = 400;
/// How long the shim kills before it leaves the rest to the server: with [`LINGER_CHECKS_MAX`],
/// less than the server gives a shim (`child::SHIM_MAX`). A round counts at most
/// [`KILL_ROUND_MAX`], however long the machine was frozen meanwhile.
const KILL_MAX: Duration = Duration::from_millis(2_500);
const KILL_ROUND_MAX: Duration = Duration::from_secs(1);
/// Between two reapings, while orphans end one after the other.
const REAP_PAUSE: Duration = Duration::from_millis(5);
/// What `ps` shows, to recognize it. Any process may have the name, and none is identified by it.
const NAME: &CStr = c"greenroom-shim";
/// The greatest signal number.
const SIGNAL_MAX: i32 = 64;

/// Runs the shim; `args` follow the subcommand: `--silence-ms N`, and `--no-cgroup`, which creates
/// no control group, both for tests; and the run's markers, by which others find the shim.
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
    uses_cgroup: bool,
}

fn options(args: impl IntoIterator<Item = OsString>) -> io::Result<Options> {
    let wrong = || io::Error::other("arguments: [--silence-ms N] [--no-cgroup]");
    let mut options = Options { silence_max: SILENCE_MAX, uses_cgroup: true };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--silence-ms") => {
                let ms = args.next().and_then(|ms| ms.to_str()?.parse().ok());
                options.silence_max = Duration::from_millis(ms.ok_or_else(wrong)?);
            }
            Some("--no-cgroup") => options.uses_cgroup = false,
            Some(marker) if Marker::is_argument(marker) => (),
            _ => return Err(wrong()),
        }
    }
    Ok(options)
}

fn run(control: BorrowedFd<'_>, options: &Options) -> io::Result<()> {
    // Before the launch: it has the agent's secrets, and the control socket must stay this
    // process's alone.
    proc::forbid_inspection()?;
    close_inherited_on_exec()?;
    reset_signals();
    set_name(NAME)?;
    proc::become_subreaper()?;
    let wait = options.silence_max / SILENT_WAITS_MAX;
    let Some(Received { spec, streams, cwd }) = receive(control, wait)? else {
        return Ok(());
    };
    // After the launch, and so after the server registered this process: see `shims`.
    setsid()?;
    let run = spec.env.iter().find(|(key, _)| key == Marker::RUN).map(|(_, run)| run.as_str());
    let group = run.filter(|_| options.uses_cgroup).and_then(Cgroup::make);
    match start(&spec, streams, cwd.as_fd(), group.as_ref()) {
        Ok(agent) => {
            drop(cwd);
            let is_wrapped = spec.confinement.as_ref().is_some_and(Confinement::is_wrapped);
            let (ended, terminated) = (false, false);
            TreeShim { control, agent, group, is_wrapped, ended, terminated }.keep(wait)
        }
        Err(err) => {
            group.inspect(Cgroup::remove);
            let message = explain(&spec, cwd.as_fd(), &err);
            report(control, &TreeEvent::SpawnFailed { errno: err.raw_os_error(), message });
            report(control, &TreeEvent::Gone);
            Ok(())
        }
    }
}

/// Waits for the launch. Returns `None` if the server ended, or was silent, before it.
fn receive(control: BorrowedFd<'_>, wait: Duration) -> io::Result<Option<Received>> {
    let mut fds = [PollFd::from_borrowed_fd(control, PollFlags::IN)];
    let limit = timespec(wait)?;
    let mut silent_waits = 0;
    while retry_on_intr(|| poll(&mut fds, Some(&limit)))? == 0 {
        silent_waits += 1;
        if silent_waits == SILENT_WAITS_MAX {
            return Ok(None);
        }
    }
    control::receive_launch(control)
}

/// Makes all inherited descriptors close-on-exec, so that the agent does not inherit them (C13).
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
        _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
    }
    Ok(())
}

/// Resets the signals that the server or its parent ignores or blocks. Both outlive an exec: a
/// program that does not expect SIGXFSZ would continue after it, one with SIGTERM blocked would not
/// react to it, and one that ignores SIGCHLD gets no exit status.
///
/// SIGPIPE stays ignored here; `Command` resets it in the agent.
fn reset_signals() {
    for signal in (1..=SIGNAL_MAX).filter(|&signal| signal != libc::SIGPIPE) {
        // SAFETY: no handler is installed, and this process has one thread and none of its own.
        // KILL, STOP and the signals of the C library are refused, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is written by the first call before the second one reads it, and no pointer
    // outlives the call. No signal that arrives now has a handler.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// Makes each end of a child interrupt a wait. Otherwise a chain of processes that fork and end
/// leaves thousands of zombies between two heartbeats, and the machine runs out of pids.
fn wake_for_children() {
    extern "C" fn nothing(_: libc::c_int) {}
    let nothing = nothing as extern "C" fn(libc::c_int);
    // SAFETY: the handler does nothing, and an exec removes it.
    unsafe { libc::signal(libc::SIGCHLD, nothing as libc::sighandler_t) };
}

/// Starts the agent in `cwd` on `streams`, and keeps no copy of these (else there would be no EOF).
fn start(
    spec: &Spec,
    streams: [OwnedFd; 3],
    cwd: BorrowedFd<'_>,
    group: Option<&Cgroup>,
) -> io::Result<Process> {
    limit(spec).map_err(io::Error::other)?;
    // Both are inherited, and do not affect the shim itself: it creates no file and execs nothing.
    if let Some(mask) = spec.umask {
        umask(Mode::from_raw_mode(mask));
    }
    if spec.no_new_privs || spec.confinement.is_some() {
        set_no_new_privs(true)?;
    }
    let [stdin, stdout, stderr] = streams;
    let sandbox =
        spec.confinement.as_ref().map(|confinement| confinement.build(&program(spec, cwd)));
    let (path, args, mut barrier) = match sandbox.transpose()? {
        Some(sandbox) => sandbox.into_parts(),
        None => (spec.command.clone(), spec.args.iter().map(OsString::from).collect(), None),
    };
    let mut command = Command::new(path);
    command
        .args(args)
        .env_clear()
        .envs(spec.env.iter().map(|(key, value)| (key, value)))
        .process_group(0)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    let shim = getpid();
    let entrance = group.and_then(|group| group.entrance().ok());
    let cpu = spec.rlimits.cpu_seconds;
    let cwd = cwd.try_clone_to_owned()?;
    let last_steps = move || {
        fchdir(&cwd)?;
        // An agent that may not enter its control group runs without one.
        if let Some(entrance) = &entrance {
            _ = write(entrance, b"0");
        }
        // Not in the shim, which lives as long as all descendants of the agent.
        if cpu.is_some() {
            setrlimit(Resource::Cpu, Rlimit { current: cpu, maximum: cpu })?;
        }
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The death of a shim before the signal was set would go unnoticed.
        if getppid() != Some(shim) {
            return Err(Errno::SRCH.into());
        }
        // The last step, as it forbids others.
        barrier.as_mut().map_or(Ok(()), Barrier::enter)
    };
    // SAFETY: between fork and exec it makes a few system calls and neither allocates nor locks;
    // and the shim has one thread, so that no other thread can hold a lock.
    unsafe { command.pre_exec(last_steps) };
    // `TreeShim::reap` reaps the child, with all others.
    Process::now(command.spawn()?.id())
}

/// Describes the agent to its sandbox, with the path that its directory has now.
fn program<'a>(spec: &'a Spec, dir: BorrowedFd<'a>) -> Program<'a> {
    let Spec { command, args, env, .. } = spec;
    let path = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    Program { command, args, env, cwd: path.unwrap_or_else(|_| spec.cwd.clone()), dir }
}

/// Sets the limits of the profile, soft and hard. Without one for open files, sets the usual soft
/// limit, whatever the server needs itself; the agent may raise it.
fn limit(spec: &Spec) -> Result<(), String> {
    let limits = &spec.rlimits;
    let set = [
        ("open_files", Resource::Nofile, limits.open_files),
        ("processes", Resource::Nproc, limits.processes),
        ("core_size", Resource::Core, Some(limits.core_bytes.unwrap_or(0))),
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

/// Describes which part of the launch failed: the system has one error for several causes.
fn explain(spec: &Spec, cwd: BorrowedFd<'_>, err: &io::Error) -> String {
    let command = spec.command.display();
    let is_file = |found: Stat| FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
    let command_is_file = || statat(cwd, &spec.command, AtFlags::empty()).is_ok_and(is_file);
    let by_path = spec.command.components().count() != 1;
    match err.kind() {
        _ if accessat(cwd, ".", Access::EXEC_OK, AtFlags::empty()).is_err() => {
            format!("working directory {} may not be entered", spec.cwd.display())
        }
        io::ErrorKind::NotFound if by_path && command_is_file() => {
            format!("the interpreter that {command} names was not found")
        }
        io::ErrorKind::NotFound => format!("command {command} was not found"),
        io::ErrorKind::PermissionDenied if spec.confinement.is_some() => format!(
            "command {command} is not executable in its sandbox: it, its interpreter or its \
             libraries may lie where `sandbox_read` of the profile has to name their directory"
        ),
        io::ErrorKind::PermissionDenied => format!("command {command} is not executable"),
        _ => format!("command {command} cannot be started: {err}"),
    }
}

fn timespec(duration: Duration) -> io::Result<Timespec> {
    Timespec::try_from(duration).map_err(io::Error::other)
}

/// What to do after a command.
#[derive(PartialEq, Eq)]
enum Next {
    Wait,
    Kill,
}

/// One running agent and all of its descendants.
struct TreeShim<'c> {
    control: BorrowedFd<'c>,
    agent: Process,
    group: Option<Cgroup>,
    /// Whether the main process is that of a sandbox around the agent. A TERM would end it, and all
    /// others with it, before they can react to their own.
    is_wrapped: bool,
    /// Whether the main process was reaped; its pid may be reused by now.
    ended: bool,
    /// Whether TERM was sent; it is sent once, as some programs abort on a second one.
    terminated: bool,
}

impl TreeShim<'_> {
    fn keep(mut self, wait: Duration) -> io::Result<()> {
        let Process { pid, start_time } = self.agent;
        report(self.control, &TreeEvent::Started { pid, start_time });
        wake_for_children();
        // Whatever fails from here on, kill the tree.
        let watched = self.watch(wait);
        if self.ended && self.terminated {
            self.linger();
        }
        self.kill_all()?;
        report(self.control, &TreeEvent::Gone);
        watched
    }

    /// Returns when the tree has to end: its main process ended, the server is gone, or it orders
    /// the kill.
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
                    if self.on_commands() == Next::Kill {
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
            // In each round, as this process must reap the orphans that ended.
            self.reap();
            if self.ended {
                break;
            }
        }
        Ok(())
    }

    /// Reads and performs the server's commands.
    fn on_commands(&mut self) -> Next {
        let mut bytes = [0; 64];
        match recv(self.control, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Next::Kill,
            Ok((count, _)) => {
                for &byte in &bytes[..count] {
                    match TreeCommand::from_byte(byte) {
                        Some(TreeCommand::Kill) => return Next::Kill,
                        Some(TreeCommand::Terminate) => self.terminate(),
                        // A heartbeat ends the silence, and no more.
                        None => (),
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
            // Processes that cannot be listed or signalled now are killed in the end.
            let all = proc::descendants(std::process::id()).unwrap_or_default();
            for process in all.into_iter().filter(|it| !(self.is_wrapped && *it == self.agent)) {
                _ = process.signal(Signal::TERM);
            }
        }
    }

    /// Waits briefly for the other processes, after TERM and the end of the main process.
    fn linger(&mut self) {
        for _ in 0..LINGER_CHECKS_MAX {
            if !self.reap() || self.on_commands() == Next::Kill {
                return;
            }
            thread::sleep(LINGER_EVERY);
        }
    }

    /// Kills until no child is left. As every orphaned descendant becomes a child of this process,
    /// no child means no descendant, in any session or process group.
    fn kill_all(&mut self) -> io::Result<()> {
        let mut spent = Duration::ZERO;
        let mut pause = Duration::from_millis(1);
        while self.reap() {
            if KILL_MAX <= spent {
                return Err(io::Error::other("a process of the agent cannot be killed"));
            }
            let began = Instant::now();
            // The next round finds what both of them miss.
            _ = self.group.as_ref().map(Cgroup::kill);
            _ = proc::kill_descendants(std::process::id());
            thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(100));
            spent += began.elapsed().min(KILL_ROUND_MAX);
        }
        self.group.iter().for_each(Cgroup::remove);
        Ok(())
    }

    /// Reaps all children that ended, and reports the main process. Returns false without a child.
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
