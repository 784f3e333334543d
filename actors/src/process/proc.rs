//! Finds processes in `/proc`, and kills one without hitting another.
//!
//! Owns the search: by ancestry, by a marker in the environment, by adoption. The callers (`shim`,
//! `child`, recovery and boot) decide when to kill. It never signals a bare pid: a pid can be
//! reused once its process is reaped, so a process is identified by [`Process`].

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

/// The name that identifies a shim. A shim takes it before its own session, so that a child of the
/// server in a foreign session is either a shim, or adopted from a dead one.
pub(super) const SHIM_NAME: &CStr = c"greenroom-shim";
/// How long a sweep runs before it fails, as a process cannot be killed (I10).
const SWEEP_MAX: Duration = Duration::from_secs(5);
/// How long a sweep spares a shim. A shim whose agent was killed, or whose server is gone, ends by
/// itself and kills the processes without a marker too; killed early, it could not.
const SHIM_SPARED: Duration = Duration::from_secs(1);
/// How many scans in a row, without a pause, stop running processes before they are killed.
const STOP_SCANS_MAX: u32 = 50;
/// How many scans in a row, of [`scans_needed`], at least.
const EMPTY_SCANS: u32 = 2;
/// The same while processes end before they can be read: one of a chain that forks and ends may be
/// among them, and only one of several scans finds it.
const UNSURE_SCANS: u32 = 40;
/// The pause between two scans of `/proc`, in which killed processes vanish and an exec ends.
const SCAN_EVERY: Duration = Duration::from_millis(5);

/// Why a sweep cannot rule out leftover processes.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// These processes were killed, and still exist.
    #[error("processes cannot be killed: {0:?}")]
    Left(Vec<u32>),
    /// `/proc` cannot be read.
    #[error("processes cannot be searched for")]
    Blind(#[from] io::Error),
}

/// One process, distinct from any other that gets its pid later.
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
    /// The variable that names the data directory of a process's run.
    pub const DATA: &str = "GREENROOM_DATA";

    /// Returns the marker of the processes of one run.
    pub fn run(id: impl Display) -> Self {
        Self { key: Self::RUN, value: id.to_string() }
    }

    /// Returns the marker of the processes of every run that belongs to one data directory.
    pub fn data(id: impl Display) -> Self {
        Self { key: Self::DATA, value: id.to_string() }
    }

    /// Returns the variable's name and value.
    pub fn entry(&self) -> (&str, &str) {
        (self.key, &self.value)
    }

    /// Finds the processes with this marker, as far as this user may see. The caller may be one.
    ///
    /// Zombies have none, nor has a process that was started with a cleared environment.
    ///
    /// # Errors
    ///
    /// `/proc` cannot be listed.
    pub fn find(&self) -> io::Result<Vec<Process>> {
        let mut found = Vec::new();
        for entry in entries()? {
            let entry = entry?;
            let is_marked = readable(self.is_on(entry))?.unwrap_or_default();
            found.extend(is_marked.then_some(entry.process()));
        }
        Ok(found)
    }

    /// Whether a process has this marker. Its start time is known before its environment is read:
    /// if the pid is reused in between or later, the other process has another start time, and gets
    /// no signal.
    fn is_on(&self, entry: Entry) -> io::Result<bool> {
        let variables = entry.variables()?;
        Ok(variables.named(self.key).any(|value| value == self.value.as_bytes()))
    }
}

/// The environment of a process, as it was started.
pub(super) struct Variables(Vec<u8>);

impl Variables {
    /// Returns the values of a variable: an agent may start a process with several.
    pub fn named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let variables = self.0.split(|&byte| byte == 0);
        variables.filter_map(move |entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }
}

impl Process {
    /// Returns the process that has `pid` now.
    ///
    /// # Errors
    ///
    /// No process has it, or `/proc` is not readable.
    pub fn now(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_time: start_time(pid)? })
    }

    /// Whether the process exists, at least as a zombie.
    pub fn exists(self) -> bool {
        start_time(self.pid).is_ok_and(|start_time| start_time == self.start_time)
    }

    /// Sends `signal` to this process. A process that is gone counts as success.
    ///
    /// # Errors
    ///
    /// It belongs to another user, or no file descriptor is left.
    pub fn signal(self, signal: Signal) -> io::Result<()> {
        let sent = pidfd_open(self.id()?, PidfdFlags::empty()).and_then(|pidfd| {
            // The descriptor holds the pid's process; only then is its identity checked.
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

/// Returns when the process `pid` started, in clock ticks since boot.
///
/// # Errors
///
/// There is no such process, or `/proc` is not readable.
pub fn start_time(pid: u32) -> io::Result<u64> {
    Ok(Entry::read(pid)?.start_time)
}

/// Returns all children of `pid`, their children and so on, parents first.
///
/// # Errors
///
/// `/proc` cannot be listed.
pub fn descendants(pid: u32) -> io::Result<Vec<Process>> {
    let all: Vec<Entry> = entries()?.collect::<io::Result<_>>()?;
    Ok(descendants_in(pid, all).into_iter().map(Entry::process).collect())
}

fn descendants_in(pid: u32, entries: Vec<Entry>) -> Vec<Entry> {
    let mut children: HashMap<u32, Vec<Entry>> = HashMap::new();
    for entry in entries {
        children.entry(entry.parent).or_default().push(entry);
    }
    let mut found: Vec<Entry> = children.remove(&pid).unwrap_or_default();
    let mut next = 0;
    while let Some(entry) = found.get(next) {
        // Removed, so that a parent that is listed twice (the list is no snapshot) makes no circle.
        found.extend(children.remove(&entry.pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// Kills all descendants of `pid`, which must be this process, or one that adopts its orphans.
///
/// Processes may fork faster than `/proc` is read, so they are stopped first. One of a chain that
/// forks and ends lives about as long as a scan takes; so the newest are read first, and each is
/// stopped as soon as it is read. The next call finds those that still escape.
///
/// # Errors
///
/// `/proc` cannot be listed.
pub(super) fn kill_descendants(pid: u32) -> io::Result<()> {
    let mut found = Vec::new();
    // Some take a while to stop, or never do: only a new process calls for another scan.
    let mut stopped = HashSet::new();
    for _ in 0..STOP_SCANS_MAX {
        found = Vec::new();
        let before = stopped.len();
        for entry in entries()? {
            let entry = entry?;
            if entry.parent == pid {
                entry.stop(&mut stopped);
            }
            found.push(entry);
        }
        found = descendants_in(pid, found);
        for entry in found.iter().filter(|entry| entry.parent != pid) {
            entry.stop(&mut stopped);
        }
        if stopped.len() == before {
            break;
        }
    }
    for entry in found {
        _ = entry.process().signal(Signal::KILL);
    }
    Ok(())
}

/// Makes this process the parent of every orphan among its descendants, instead of init.
///
/// # Errors
///
/// The kernel refuses.
pub fn become_subreaper() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Kills the processes with `marker`, except this one, until none is left.
///
/// For leftovers of earlier runs, at boot (I10). A shim among them has a second to do its work.
/// Blocks for up to 5 s. Returns the pids that were found.
///
/// # Errors
///
/// `/proc` cannot be listed, or some processes still exist at the end.
pub fn sweep(marker: &Marker) -> Result<Vec<u32>, SweepError> {
    kill_matching(|entry| marker.is_on(entry))
}

/// [`sweep`] of the processes whose environment `matches`.
pub(super) fn sweep_by(matches: impl Fn(&Variables) -> bool) -> Result<Vec<u32>, SweepError> {
    kill_matching(|entry| Ok(matches(&entry.variables()?)))
}

/// [`sweep`] for one run, with the control group that its shim may have made.
///
/// # Errors
///
/// As [`sweep`].
pub fn sweep_run(run: &Marker) -> Result<Vec<u32>, SweepError> {
    let group = killed_group(run);
    let swept = sweep(run);
    group.inspect(Cgroup::remove);
    swept
}

fn killed_group(run: &Marker) -> Option<Cgroup> {
    Cgroup::find(&run.value).inspect(Cgroup::kill)
}

/// Kills and reaps the processes that this process, as a subreaper, adopted from killed shims.
///
/// An adopted process is a child in another session than this one, and no shim: the children that
/// this process starts share its session, or are shims. The first process of a container and those
/// that share its session are in session 0, as their leader has no pid there. Blocks for up to 5 s.
///
/// # Errors
///
/// As [`sweep`].
pub fn sweep_adopted() -> Result<Vec<u32>, SweepError> {
    let session = Entry::read(own_pid())?.session;
    kill_matching(|entry| {
        let adopted = entry.parent == own_pid() && entry.session != session && !entry.shim;
        if adopted && let Ok(id) = entry.process().id() {
            // By pid: other children are reaped elsewhere. A process that is reaped here stays in
            // this scan, as its own children may have become this process's since.
            _ = waitpid(Some(id), WaitOptions::NOHANG);
        }
        Ok(adopted)
    })
}

/// Kills the matching processes until none is left. Each is stopped as soon as it is read, the
/// newest first, and then killed: see [`kill_descendants`].
fn kill_matching(matches: impl Fn(Entry) -> io::Result<bool>) -> Result<Vec<u32>, SweepError> {
    let until = awake::now() + SWEEP_MAX;
    let spare_shims_until = awake::now() + SHIM_SPARED;
    let mut found: Vec<u32> = Vec::new();
    let mut empty_scans = 0;
    loop {
        let (mut left, mut doomed, mut stopped) = (Vec::new(), Vec::new(), HashSet::new());
        let mut is_sure = true;
        for pid in newest_pids()? {
            let read = Entry::read(pid).and_then(|entry| Ok((entry, matches(entry)?)));
            is_sure &= !read.as_ref().is_err_and(is_gone);
            let Some((entry, true)) = readable(read)? else { continue };
            if entry.pid == own_pid() {
                continue;
            }
            left.push(entry.pid);
            if !entry.shim || spare_shims_until.has_passed() {
                entry.stop(&mut stopped);
                doomed.push(entry.process());
            }
        }
        for process in doomed {
            // A process that cannot be signalled stays in the list, and thus in the error.
            _ = process.signal(Signal::KILL);
        }
        empty_scans = if left.is_empty() { empty_scans + 1 } else { 0 };
        let is_late = until.has_passed();
        if scans_needed(is_sure, is_late) <= empty_scans {
            return Ok(found);
        }
        if is_late && !left.is_empty() {
            return Err(SweepError::Left(left));
        }
        let is_empty = left.is_empty();
        found.extend(left.into_iter().filter(|pid| !found.contains(pid)).collect::<Vec<_>>());
        // After a scan that saw processes end, the next one is to be soon: it is the number of
        // scans that finds a chain, not their distance.
        if is_sure || !is_empty {
            thread::sleep(SCAN_EVERY);
        }
    }
}

/// How many scans in a row must find no process: a list of /proc is no snapshot, and a process has
/// no marker in the middle of an exec. A slow machine has no time for many.
fn scans_needed(is_sure: bool, is_late: bool) -> u32 {
    if is_sure || is_late { EMPTY_SCANS } else { UNSURE_SCANS }
}

fn own_pid() -> u32 {
    std::process::id()
}

/// The fields in use of `/proc/<pid>/stat` (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    pid: u32,
    shim: bool,
    /// Whether it is neither stopped nor dead.
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

    /// Parses the file. The name is in brackets and may itself hold brackets, spaces and any byte.
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

    fn variables(self) -> io::Result<Variables> {
        Ok(Variables(fs::read(format!("/proc/{}/environ", self.pid))?))
    }

    /// Stops it if it runs and was not stopped before.
    fn stop(self, stopped: &mut HashSet<Process>) {
        if self.runs && stopped.insert(self.process()) {
            // A process that is gone, or another user's, cannot be killed either.
            _ = self.process().signal(Signal::STOP);
        }
    }

    fn process(self) -> Process {
        Process { pid: self.pid, start_time: self.start_time }
    }
}

/// Returns every visible process, read one by one, greatest pids first: unless pids have wrapped,
/// the newest first. A process that ends before it is read is left out.
fn entries() -> io::Result<impl Iterator<Item = io::Result<Entry>>> {
    Ok(newest_pids()?.filter_map(|pid| readable(Entry::read(pid)).transpose()))
}

fn newest_pids() -> io::Result<impl Iterator<Item = u32>> {
    let mut pids: Vec<u32> = pids()?.collect();
    pids.sort_unstable_by(|one, other| other.cmp(one));
    Ok(pids.into_iter())
}

/// Whether a process could not be read because it had ended.
fn is_gone(err: &io::Error) -> bool {
    matches!(Errno::from_io_error(err), Some(Errno::NOENT | Errno::SRCH))
}

/// Returns what was read of a process; `None` if it is gone, or another user's.
///
/// # Errors
///
/// No descriptor or memory is left to read it (F34): taken for the end of a process, this would
/// leave one behind.
fn readable<T>(read: io::Result<T>) -> io::Result<Option<T>> {
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

    /// I10: foreign processes that end all the time make a sweep slow; they do not make it fail.
    #[test]
    fn processes_that_end_ask_for_more_scans_until_time_is_over() {
        assert_eq!(scans_needed(true, false), EMPTY_SCANS);
        assert_eq!(scans_needed(false, false), UNSURE_SCANS);
        assert_eq!(scans_needed(false, true), EMPTY_SCANS);
    }

    #[test]
    fn stat_is_parsed_for_any_name() {
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
            ("no session",       format!("5 (cat) {rest}").replace(" 9 ", " 0 "), Some(outside)),
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
        earlier.signal(Signal::KILL).expect("signal an earlier process");
        assert!(process.exists() && !earlier.exists());
        process.signal(Signal::TERM).expect("signal sleep");
        let status = sleeper.wait().expect("wait for sleep");
        // TERM, and not the KILL that was meant for the earlier one.
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
        process.signal(Signal::KILL).expect("a process that is gone counts as success");
    }
}
