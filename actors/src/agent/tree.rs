//! What `/proc` says about processes, and how one of them is killed without hitting another.
//!
//! Owns the search: by ancestry, by a mark in the environment, by adoption. It refuses to judge
//! when to kill (`shim`, `child` and the boot do), and never signals a bare pid: a pid is only a
//! name, free for reuse once its process is reaped, so a process is named by [`Process`].

use std::{
    collections::{HashMap, HashSet},
    ffi::CStr,
    fmt::Display,
    fs, io, thread,
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal,
        set_child_subreaper, waitpid,
    },
};

use super::cgroup::Cgroup;
use crate::awake;

/// The name by which a shim is told from everything else. It takes it before its own session, so
/// that a child of the server in a foreign session is either a shim, or adopted from a dead one.
pub(super) const SHIM_NAME: &CStr = c"greenroom-shim";
/// How long a sweep goes on before it says that something cannot be killed (I10).
const SWEEP_MAX: Duration = Duration::from_secs(5);
/// How long a sweep leaves a shim alone. A shim whose agent was killed, or whose server is gone,
/// ends by itself and takes with it what carries no mark; killed early, it could not.
const SHIM_LEAVE: Duration = Duration::from_secs(1);
/// How many looks in a row, without a pause, stop what still runs before it is killed.
const STOP_LOOKS_MAX: u32 = 50;
/// How many looks in a row must find nobody.
const EMPTY_LOOKS: u32 = 2;
/// The same while processes end before they can be looked at: one of a chain that forks and ends
/// may be among them, and is met in one look of several.
const UNSURE_LOOKS: u32 = 40;
/// Pause between two looks at `/proc` while killed processes vanish.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Why a sweep is not sure that nothing is left.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// These processes were killed, and are still there.
    #[error("processes cannot be killed: {0:?}")]
    Left(Vec<u32>),
    /// `/proc` cannot be read.
    #[error("processes cannot be looked for")]
    Blind(#[from] io::Error),
}

/// One process, and no other that gets its pid later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    pub pid: u32,
    /// Clock ticks from boot to the process's start.
    pub start_time: u64,
}

/// An entry of the environment that every process of a run inherits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    key: &'static str,
    value: String,
}

impl Marker {
    /// The variable that names a process's run.
    pub const RUN: &str = "GREENROOM_RUN";

    /// Marks the processes of one run.
    pub fn run(id: impl Display) -> Self {
        Self { key: Self::RUN, value: id.to_string() }
    }

    /// Marks the processes of every run that belongs to one data directory.
    pub fn data(id: impl Display) -> Self {
        Self { key: "GREENROOM_DATA", value: id.to_string() }
    }

    /// The variable's name and value.
    pub fn entry(&self) -> (&str, &str) {
        (self.key, &self.value)
    }

    /// The processes that carry this mark, as far as this user may see. The caller may be one.
    ///
    /// Zombies carry none, nor does a process that was started with a cleared environment.
    ///
    /// # Errors
    ///
    /// `/proc` cannot be listed.
    pub fn find(&self) -> io::Result<Vec<Process>> {
        let mut found = Vec::new();
        for entry in entries()? {
            let entry = entry?;
            let carries = seen(self.is_on(entry))?.unwrap_or_default();
            found.extend(carries.then_some(entry.process()));
        }
        Ok(found)
    }

    /// Whether a process carries this mark. Its start time is known before the mark is looked for:
    /// if the pid becomes another's in between or later, that one's start time differs, and no
    /// signal reaches it.
    fn is_on(&self, entry: Entry) -> io::Result<bool> {
        let mark = format!("{}={}", self.key, self.value);
        let environ = fs::read(format!("/proc/{}/environ", entry.pid))?;
        Ok(environ.split(|&byte| byte == 0).any(|one| one == mark.as_bytes()))
    }
}

impl Process {
    /// Names the process that has `pid` now.
    ///
    /// # Errors
    ///
    /// There is none, or `/proc` is not readable.
    pub fn now(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_time: start_time(pid)? })
    }

    /// Whether it is there, as a zombie at least.
    pub fn exists(self) -> bool {
        start_time(self.pid).is_ok_and(|start_time| start_time == self.start_time)
    }

    /// Sends `signal` to this process. One that is gone already counts as success.
    ///
    /// # Errors
    ///
    /// It belongs to another user, or no file descriptor is left.
    pub fn signal(self, signal: Signal) -> io::Result<()> {
        let sent = pidfd_open(self.id()?, PidfdFlags::empty()).and_then(|pidfd| {
            // The descriptor holds on to whoever had the pid; whether it is ours is asked after.
            if self.exists() { pidfd_send_signal(&pidfd, signal) } else { Ok(()) }
        });
        match sent {
            Err(Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    pub(super) fn id(self) -> io::Result<Pid> {
        i32::try_from(self.pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other(format!("{} is not a pid", self.pid)))
    }
}

/// When the process `pid` started, in clock ticks since boot.
///
/// # Errors
///
/// There is no such process, or `/proc` is not readable.
pub fn start_time(pid: u32) -> io::Result<u64> {
    Ok(Entry::read(pid)?.start_time)
}

/// All children of `pid`, their children and so on, parents first.
///
/// # Errors
///
/// `/proc` cannot be listed.
pub fn descendants(pid: u32) -> io::Result<Vec<Process>> {
    let all: Vec<Entry> = entries()?.collect::<io::Result<_>>()?;
    Ok(below(pid, all).into_iter().map(Entry::process).collect())
}

fn below(pid: u32, entries: Vec<Entry>) -> Vec<Entry> {
    let mut children: HashMap<u32, Vec<Entry>> = HashMap::new();
    for entry in entries {
        children.entry(entry.parent).or_default().push(entry);
    }
    let mut found: Vec<Entry> = children.remove(&pid).unwrap_or_default();
    let mut next = 0;
    while let Some(entry) = found.get(next) {
        // Taken out, so that a parent seen twice in a list that is no snapshot makes no circle.
        let below = children.remove(&entry.pid).unwrap_or_default();
        found.extend(below);
        next += 1;
    }
    found
}

/// Kills all that is below `pid`, which must be this process, or one that adopts its orphans.
///
/// What forks faster than `/proc` is read is stopped first: that holds it in its place. A process
/// that forks and ends, again and again, lives for about as long as a look takes; so the newest are
/// looked at first, and each is stopped as soon as it is seen. What still escapes is met by the
/// next call.
///
/// # Errors
///
/// `/proc` cannot be listed.
pub(super) fn kill_below(pid: u32) -> io::Result<()> {
    let mut found = Vec::new();
    // Some take a while to stop, or never do: it counts whether another one has come.
    let mut stopped = HashSet::new();
    for _ in 0..STOP_LOOKS_MAX {
        found = Vec::new();
        let before = stopped.len();
        for entry in entries()? {
            let entry = entry?;
            if entry.parent == pid {
                entry.stop(&mut stopped);
            }
            found.push(entry);
        }
        found = below(pid, found);
        for entry in found.iter().filter(|entry| entry.parent != pid) {
            entry.stop(&mut stopped);
        }
        if stopped.len() == before {
            break;
        }
    }
    for entry in found {
        let _ = entry.process().signal(Signal::KILL);
    }
    Ok(())
}

/// Makes this process the parent of every orphan below it, in place of the system's init.
///
/// # Errors
///
/// The kernel refuses.
pub fn become_subreaper() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Kills the processes that carry `marker`, except this one, until none is left.
///
/// For leftovers of earlier runs, at boot (I10). A shim among them gets a second to do its work.
/// Blocks for up to 5 s. Returns the pids that were found.
///
/// # Errors
///
/// `/proc` cannot be listed, or some are still there at the end.
pub fn sweep(marker: &Marker) -> Result<Vec<u32>, SweepError> {
    until_none_left(|entry| marker.is_on(entry))
}

/// [`sweep`] for one run, with the control group that its shim may have made.
///
/// # Errors
///
/// As [`sweep`].
pub fn sweep_run(run: &Marker) -> Result<Vec<u32>, SweepError> {
    let group = Cgroup::find(&run.value);
    if let Some(Err(err)) = group.as_ref().map(Cgroup::kill) {
        log::warn!(run = run.value, err:%; "control group could not be killed");
    }
    let swept = sweep(run);
    group.inspect(Cgroup::remove);
    swept
}

/// Kills and reaps what this process adopted as a subreaper from shims that were killed.
///
/// An adopted process is a child in another session than this one, and no shim: the children that
/// this process starts share its session, or are shims. The first process of a container and what
/// shares its session are in session 0, as the leader cannot be named there. Blocks for up to 5 s.
///
/// # Errors
///
/// As [`sweep`].
pub fn sweep_adopted() -> Result<Vec<u32>, SweepError> {
    let session = Entry::read(own_pid())?.session;
    until_none_left(|entry| {
        let adopted = entry.parent == own_pid() && entry.session != session && !entry.shim;
        if adopted && let Ok(id) = entry.process().id() {
            // By pid: other children are waited for elsewhere. One that is reaped here stays in
            // this look, as its own children may have become this process's since.
            let _ = waitpid(Some(id), WaitOptions::NOHANG);
        }
        Ok(adopted)
    })
}

/// Stops what is to be killed as soon as it is seen, the newest first, and then kills it: see
/// [`kill_below`].
fn until_none_left(is_one: impl Fn(Entry) -> io::Result<bool>) -> Result<Vec<u32>, SweepError> {
    let until = awake::now() + SWEEP_MAX;
    let leave_shims_until = awake::now() + SHIM_LEAVE;
    let mut found: Vec<u32> = Vec::new();
    let mut empty_looks = 0;
    loop {
        let (mut left, mut doomed, mut stopped) = (Vec::new(), Vec::new(), HashSet::new());
        let mut is_sure = true;
        for pid in newest_pids()? {
            let looked = Entry::read(pid).and_then(|entry| Ok((entry, is_one(entry)?)));
            is_sure &= !looked.as_ref().is_err_and(is_gone);
            let Some((entry, true)) = seen(looked)? else { continue };
            if entry.pid == own_pid() {
                continue;
            }
            left.push(entry.pid);
            if !entry.shim || leave_shims_until.has_passed() {
                entry.stop(&mut stopped);
                doomed.push(entry.process());
            }
        }
        for process in doomed {
            // One that cannot be signalled stays in the list, and thus in the error.
            let _ = process.signal(Signal::KILL);
        }
        // A list of /proc is no snapshot, and a process shows no mark in the middle of an exec.
        empty_looks = if left.is_empty() { empty_looks + 1 } else { 0 };
        let enough = if is_sure { EMPTY_LOOKS } else { UNSURE_LOOKS };
        if enough <= empty_looks {
            return Ok(found);
        }
        if until.has_passed() {
            return Err(SweepError::Left(left));
        }
        found.extend(left.into_iter().filter(|pid| !found.contains(pid)).collect::<Vec<_>>());
        thread::sleep(LOOK_EVERY);
    }
}

fn own_pid() -> u32 {
    std::process::id()
}

/// What is used of `/proc/<pid>/stat` (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    pid: u32,
    shim: bool,
    /// Whether it can run: it is neither stopped nor dead.
    runs: bool,
    parent: u32,
    session: i32,
    start_time: u64,
}

impl Entry {
    fn read(pid: u32) -> io::Result<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(pid, &stat).ok_or_else(|| io::Error::other("cannot read /proc/<pid>/stat"))
    }

    /// The name stands in brackets and may itself hold brackets, spaces and any other byte.
    fn parse(pid: u32, stat: &[u8]) -> Option<Self> {
        let (open, close) = (memchr::memchr(b'(', stat)?, memchr::memrchr(b')', stat)?);
        let name = stat.get(open + 1..close)?;
        let fields = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
        // Field 3, the state, is the first after the name.
        let mut fields = fields.split_ascii_whitespace();
        let runs = !["T", "t", "Z", "X"].contains(&fields.next()?);
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        let start_time = fields.nth(15)?.parse().ok()?;
        Some(Self { pid, shim: name == SHIM_NAME.to_bytes(), runs, parent, session, start_time })
    }

    /// Stops it if it runs and was not stopped before.
    fn stop(self, stopped: &mut HashSet<Process>) {
        if self.runs && stopped.insert(self.process()) {
            // One that is gone, or another user's, cannot be killed either.
            let _ = self.process().signal(Signal::STOP);
        }
    }

    fn process(self) -> Process {
        Process { pid: self.pid, start_time: self.start_time }
    }
}

/// Every process that can be seen, read one by one, those with the greatest pids first: where pids
/// have not begun from 1 again, the newest. One that ends before it is read is left out.
fn entries() -> io::Result<impl Iterator<Item = io::Result<Entry>>> {
    Ok(newest_pids()?.filter_map(|pid| seen(Entry::read(pid)).transpose()))
}

fn newest_pids() -> io::Result<impl Iterator<Item = u32>> {
    let mut pids: Vec<u32> = pids()?.collect();
    pids.sort_unstable_by(|one, other| other.cmp(one));
    Ok(pids.into_iter())
}

/// Whether a process could not be looked at because it had ended.
fn is_gone(err: &io::Error) -> bool {
    matches!(Errno::from_io_error(err), Some(Errno::NOENT | Errno::SRCH))
}

/// What was read of a process, or nothing if it is gone, or another user's.
///
/// # Errors
///
/// No descriptor or memory is left to read it with (RELIABILITY F34): whoever took that for an end
/// would leave a process behind.
fn seen<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(err) => match Errno::from_io_error(&err) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN) => Err(err),
            _ => Ok(None),
        },
    }
}

fn pids() -> io::Result<impl Iterator<Item = u32>> {
    Ok(fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_whatever_the_name() {
        let rest =
            "S 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 2048 99 18446744073709551615";
        let entry =
            |shim| Entry { pid: 5, shim, runs: true, parent: 7, session: 9, start_time: 123_456 };
        let outside = Entry { session: 0, ..entry(false) };
        let stopped = Entry { runs: false, ..entry(false) };
        #[rustfmt::skip]
        let cases = [
            ("plain",            format!("5 (cat) {rest}"),            Some(entry(false))),
            ("brackets",         format!("5 (a) S 1 (b) {rest}"),      Some(entry(false))),
            ("newline",          format!("5 (a\nb) {rest}"),           Some(entry(false))),
            ("stopped",          format!("5 (cat) {rest}").replace(") S ", ") T "), Some(stopped)),
            ("a zombie",         format!("5 (cat) {rest}").replace(") S ", ") Z "), Some(stopped)),
            ("a shim",           format!("5 (greenroom-shim) {rest}"), Some(entry(true))),
            ("of no session",    format!("5 (cat) {rest}").replace(" 9 ", " 0 "), Some(outside)),
            ("cut off",          "5 (cat) S 7 8 9 0".to_owned(),       None),
            ("without a name",   format!("5 cat {rest}"),              None),
            ("empty",            String::new(),                        None),
        ];
        for (name, stat, expected) in cases {
            assert_eq!(Entry::parse(5, stat.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_signalled() {
        let mut sleeper =
            std::process::Command::new("sleep").arg("1000").spawn().expect("start sleep");
        let process = Process::now(sleeper.id()).expect("find sleep");
        let earlier = Process { start_time: process.start_time - 1, ..process };
        earlier.signal(Signal::KILL).expect("signal nobody");
        assert!(process.exists() && !earlier.exists());
        process.signal(Signal::TERM).expect("signal sleep");
        let status = sleeper.wait().expect("wait for sleep");
        // TERM, and not the KILL that was meant for the earlier one.
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
        process.signal(Signal::KILL).expect("one that is gone counts as success");
    }
}
