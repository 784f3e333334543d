//! Finds processes in `/proc`, and kills one without hitting another.
//!
//! Owns the search by ancestry, and what marks a process as one of a run. Its callers (`shim`,
//! `sweep`) decide what to kill. It never signals a bare pid: a pid can be reused once its process
//! is reaped, so a process is identified by [`Process`].

use std::{
    collections::{HashMap, HashSet},
    fmt::Display,
    fs, io,
};

use rustix::{
    io::Errno,
    process::{
        DumpableBehavior, Pid, PidfdFlags, Signal, getpid, getuid, pidfd_open, pidfd_send_signal,
        set_child_subreaper, set_dumpable_behavior,
    },
};

/// How many scans in a row, without a pause, stop running processes before they are killed.
const STOP_SCANS_MAX: u32 = 50;
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

    /// Returns the marker as an argument of a shim's command line.
    pub(super) fn argument(&self) -> String {
        format!("{}={}", self.key, self.value)
    }

    /// Whether this is the argument of a marker.
    pub(super) fn is_argument(argument: &str) -> bool {
        let key = argument.split('=').next();
        key.is_some_and(|key| [Self::RUN, Self::DATA].contains(&key))
    }

    /// Returns the variable's name and value.
    pub fn entry(&self) -> (&str, &str) {
        (self.key, &self.value)
    }

    /// Finds the processes with this marker, as far as this user may see. The caller may be one.
    ///
    /// Zombies have none, nor has a process that was started with a cleared environment, or that
    /// forbids others to inspect it, unless it is a shim.
    ///
    /// # Errors
    ///
    /// `/proc` cannot be listed.
    pub fn find(&self) -> io::Result<Vec<Process>> {
        let mut found = Vec::new();
        for entry in entries()? {
            let entry = entry?;
            let is_marked = readable(self.is_on(&entry))?.unwrap_or_default();
            found.extend(is_marked.then_some(entry.process()));
        }
        Ok(found)
    }

    /// Whether a process has this marker. Its start time is known before its environment is read:
    /// if the pid is reused in between or later, the other process has another start time, and gets
    /// no signal.
    pub(super) fn is_on(&self, entry: &Entry) -> io::Result<bool> {
        let variables = entry.markers()?;
        Ok(variables.named(self.key).any(|value| value == self.value.as_bytes()))
    }
}

/// The environment of a process, as it was started, or its arguments: both are a list of texts.
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
    Ok(descendants_in(pid, all).iter().map(Entry::process).collect())
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

/// Keeps what runs as the same user, such as an agent, out of this process (C24): of `/proc/PID`
/// only what every user may read is left to it, and it can neither trace this process nor take a
/// descriptor. Root can; and the process leaves no core file.
///
/// An exec ends it: a program that this process starts decides for itself.
///
/// # Errors
///
/// The kernel refuses.
pub fn forbid_inspection() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// `/proc` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    #[error("/proc is not mounted, or hides this process")]
    Absent(#[source] io::Error),
    #[error("/proc is of another PID namespace: there this process is {found}, and not {pid}")]
    Foreign { found: String, pid: u32 },
}

/// Checks that `/proc` shows this process, by the pid that it has for itself.
///
/// # Errors
///
/// It does not; a search would find nothing, or the wrong processes.
pub fn check() -> Result<(), ProcError> {
    let found = fs::read_link("/proc/self").map_err(ProcError::Absent)?.display().to_string();
    let pid = own_pid();
    if found != pid.to_string() {
        return Err(ProcError::Foreign { found, pid });
    }
    start_time(pid).map(drop).map_err(ProcError::Absent)
}

/// Makes this process the parent of every orphan among its descendants, instead of init.
///
/// # Errors
///
/// The kernel refuses.
pub fn become_subreaper() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

pub(super) fn own_pid() -> u32 {
    std::process::id()
}

/// The fields in use of `/proc/<pid>/stat` (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub pid: u32,
    /// Whether it is neither stopped nor dead.
    runs: bool,
    pub parent: u32,
    pub session: i32,
    start_time: u64,
}

impl Entry {
    pub fn read(pid: u32) -> io::Result<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(pid, &stat).ok_or_else(|| io::Error::other("cannot read /proc/<pid>/stat"))
    }

    /// Parses the file. The name is in brackets and may itself hold brackets, spaces and any byte.
    fn parse(pid: u32, stat: &[u8]) -> Option<Self> {
        let (open, close) = (memchr::memchr(b'(', stat)?, memchr::memrchr(b')', stat)?);
        stat.get(open + 1..close)?;
        let fields = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
        // Field 3, the state, is the first after the name.
        let mut fields = fields.split_ascii_whitespace();
        let runs = !["T", "t", "Z", "X"].contains(&fields.next()?);
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        let start_time = fields.nth(15)?.parse().ok()?;
        Some(Self { pid, runs, parent, session, start_time })
    }

    /// Returns the texts among which are the markers of a process: its environment.
    ///
    /// Only root may read a shim's, as a shim is not dumpable; then it is the arguments, which
    /// everybody may read.
    pub fn markers(&self) -> io::Result<Variables> {
        match fs::read(format!("/proc/{}/environ", self.pid)) {
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied => match self.is_ours()? {
                true => self.arguments(),
                false => Err(err),
            },
            read => Ok(Variables(read?)),
        }
    }

    fn arguments(&self) -> io::Result<Variables> {
        Ok(Variables(fs::read(format!("/proc/{}/cmdline", self.pid))?))
    }

    /// Whether it has the arguments of a shim, as any process may have. A sweep gives it a second
    /// to end by itself, and no more.
    pub fn claims_to_be_shim(&self) -> bool {
        self.arguments().is_ok_and(|arguments| arguments.named(Marker::RUN).next().is_some())
    }

    /// Whether this process's user started it. The arguments of another user's process may name
    /// any run, and it could not be killed.
    fn is_ours(&self) -> io::Result<bool> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let own = getuid().as_raw().to_string();
        Ok(ids.and_then(|ids| ids.split_ascii_whitespace().next()) == Some(&own))
    }

    /// Stops it if it runs and was not stopped before.
    pub fn stop(&self, stopped: &mut HashSet<Process>) {
        if self.runs && stopped.insert(self.process()) {
            // A process that is gone, or another user's, cannot be killed either.
            _ = self.process().signal(Signal::STOP);
        }
    }

    pub fn process(&self) -> Process {
        Process { pid: self.pid, start_time: self.start_time }
    }
}

/// Returns every visible process, read one by one, greatest pids first: unless pids have wrapped,
/// the newest first. A process that ends before it is read is left out.
fn entries() -> io::Result<impl Iterator<Item = io::Result<Entry>>> {
    Ok(newest_pids()?.into_iter().filter_map(|pid| readable(Entry::read(pid)).transpose()))
}

/// Returns the pids of all visible processes, the greatest first.
pub(super) fn newest_pids() -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?;
    let mut pids: Vec<u32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable_by(|one, other| other.cmp(one));
    Ok(pids)
}

/// Whether a process could not be read because it had ended.
pub(super) fn is_gone(err: &io::Error) -> bool {
    matches!(Errno::from_io_error(err), Some(Errno::NOENT | Errno::SRCH))
}

/// Returns what was read of a process; `None` if it is gone, or another user's.
///
/// # Errors
///
/// No descriptor or memory is left to read it (F34): taken for the end of a process, this would
/// leave one behind.
pub(super) fn readable<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(err) => match Errno::from_io_error(&err) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN) => Err(err),
            _ => Ok(None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_parsed_for_any_name() {
        let rest =
            "S 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 2048 99 18446744073709551615";
        let entry = Entry { pid: 5, runs: true, parent: 7, session: 9, start_time: 123_456 };
        let outside = Entry { session: 0, ..entry };
        let stopped = Entry { runs: false, ..entry };
        #[rustfmt::skip]
        let cases = [
            ("plain",            format!("5 (cat) {rest}"),            Some(entry)),
            ("brackets",         format!("5 (a) S 1 (b) {rest}"),      Some(entry)),
            ("newline",          format!("5 (a\nb) {rest}"),           Some(entry)),
            ("stopped",          format!("5 (cat) {rest}").replace(") S ", ") T "), Some(stopped)),
            ("a zombie",         format!("5 (cat) {rest}").replace(") S ", ") Z "), Some(stopped)),
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
