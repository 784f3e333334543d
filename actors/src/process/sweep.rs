//! Ends the processes that a run or an earlier server left: by their marker, or as this process
//! adopted them.
//!
//! Owns the search that kills until nothing is found. Its callers (`child`, recovery and boot)
//! decide when; `proc` reads `/proc`.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::Path,
    thread,
    time::Duration,
};

use rustix::process::{Signal, WaitOptions, waitpid};

use super::{
    cgroup::Cgroup,
    proc::{Entry, Marker, Variables, is_gone, newest_pids, own_pid, readable},
    shims,
};
use crate::awake;

/// How long a sweep runs before it fails, as a process cannot be killed (I10).
const SWEEP_MAX: Duration = Duration::from_secs(5);
/// How long a sweep spares a shim. A shim whose agent was killed, or whose server is gone, ends by
/// itself and kills the processes without a marker too; killed early, it could not.
const SHIM_SPARED: Duration = Duration::from_secs(1);
/// How many searches in a row, of [`searches_needed`], at least.
const EMPTY_SEARCHES: u32 = 2;
/// The same while processes end before they can be read: one of a chain that forks and ends may be
/// among them, and only one of several searches finds it.
const UNSURE_SEARCHES: u32 = 40;
/// The pause between two searches, in which killed processes vanish and an exec ends.
const SEARCH_EVERY: Duration = Duration::from_millis(5);

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

/// Kills the processes with `marker`, except this one, until none is left.
///
/// For leftovers of earlier runs, at boot (I10). A shim among them has a second to do its work.
/// Blocks for up to 5 s. Returns the pids that were found.
///
/// # Errors
///
/// `/proc` cannot be listed, or some processes still exist at the end.
pub fn sweep(marker: &Marker) -> Result<Vec<u32>, SweepError> {
    kill_matching(newest_pids, |entry| marker.is_on(entry), Entry::claims_to_be_shim)
}

/// [`sweep`] of the processes whose markers `matches` accepts.
pub(super) fn sweep_by(matches: impl Fn(&Variables) -> bool) -> Result<Vec<u32>, SweepError> {
    kill_matching(newest_pids, |entry| Ok(matches(&entry.markers()?)), Entry::claims_to_be_shim)
}

/// [`sweep`] for one run of this process, with the control group that its shim may have made. Only
/// a shim that this process started and did not reap is spared, not one that claims to be a shim.
///
/// # Errors
///
/// As [`sweep`].
pub fn sweep_run(run: &Marker) -> Result<Vec<u32>, SweepError> {
    let group = Cgroup::find(run.entry().1).inspect(Cgroup::kill);
    let is_spared = |entry: &Entry| shims::is_own(entry.process());
    let swept = kill_matching(newest_pids, |entry| run.is_on(entry), is_spared);
    group.inspect(Cgroup::remove);
    swept
}

/// Kills and reaps the processes that this process, as a subreaper, adopted from dead shims. Blocks
/// for up to 5 s.
///
/// # Errors
///
/// As [`sweep`].
pub fn sweep_adopted() -> Result<Vec<u32>, SweepError> {
    let session = own_session()?;
    let is_adopted = |entry: &Entry| {
        let adopted = is_adopted(entry, session);
        if adopted {
            // A process that is reaped here stays in this search, as its own children may have
            // become this process's since.
            reap(entry);
        }
        Ok(adopted)
    };
    kill_matching(children, is_adopted, |_| false)
}

/// Finds the processes that [`sweep_adopted`] would kill. Reaps those that have ended.
///
/// All that a dead shim's agent left is below one of them: the kernel makes the children of a
/// process that ends children of the next subreaper above it.
///
/// # Errors
///
/// `/proc` cannot be read.
pub(super) fn adopted() -> io::Result<Vec<Entry>> {
    let session = own_session()?;
    let mut found: Vec<Entry> = Vec::new();
    // The kernel may leave out a child while another one is reaped.
    for _ in 0..EMPTY_SEARCHES {
        for pid in children()? {
            let Some(entry) = readable(Entry::read(pid))? else { continue };
            if is_adopted(&entry, session) && !found.contains(&entry) && !reap(&entry) {
                found.push(entry);
            }
        }
    }
    Ok(found)
}

/// Whether a process was adopted: it is a child in another session than this one, and no shim of
/// this process. The children that this process starts share its session, or are shims. The first
/// process of a container and those that share its session are in session 0, as their leader has no
/// pid there.
fn is_adopted(entry: &Entry, own_session: i32) -> bool {
    entry.parent == own_pid() && entry.session != own_session && !shims::is_own(entry.process())
}

fn own_session() -> io::Result<i32> {
    Ok(Entry::read(own_pid())?.session)
}

/// Reaps one child, if it has ended. By pid: the others are reaped elsewhere.
fn reap(entry: &Entry) -> bool {
    let ended = entry.process().id().ok().and_then(|id| {
        let ended = waitpid(Some(id), WaitOptions::NOHANG);
        ended.ok().flatten()
    });
    ended.is_some()
}

/// Returns the children of this process, the newest first.
fn children() -> io::Result<Vec<u32>> {
    let own = format!("/proc/self/task/{}/children", own_pid());
    if !Path::new(&own).exists() {
        // A kernel without the file (CONFIG_PROC_CHILDREN): the caller looks at each parent.
        return newest_pids();
    }
    let mut pids = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        // A thread that has ended has passed its children on to another one.
        if let Some(listed) = readable(fs::read_to_string(task?.path().join("children")))? {
            pids.extend(listed.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    pids.sort_unstable_by(|one, other| other.cmp(one));
    Ok(pids)
}

/// Kills the listed processes that match until none is left. Each is stopped as soon as it is read,
/// the newest first, and then killed: see [`super::proc::kill_descendants`].
fn kill_matching(
    list: impl Fn() -> io::Result<Vec<u32>>,
    matches: impl Fn(&Entry) -> io::Result<bool>,
    is_spared: impl Fn(&Entry) -> bool,
) -> Result<Vec<u32>, SweepError> {
    let until = awake::now() + SWEEP_MAX;
    let spare_until = awake::now() + SHIM_SPARED;
    let mut found: Vec<u32> = Vec::new();
    let mut empty_searches = 0;
    // How often each other process was read since the last one that matched.
    let mut others: HashMap<u32, u32> = HashMap::new();
    loop {
        let (mut left, mut doomed, mut stopped) = (Vec::new(), Vec::new(), HashSet::new());
        let mut is_sure = true;
        let pids = list()?;
        let listed: HashSet<u32> = pids.iter().copied().collect();
        others.retain(|pid, _| listed.contains(pid));
        for pid in pids {
            // Further searches are for a chain that forks and ends: its processes have new pids.
            if others.get(&pid).is_some_and(|reads| EMPTY_SEARCHES <= *reads) {
                continue;
            }
            let read = Entry::read(pid).and_then(|entry| Ok((entry, matches(&entry)?)));
            is_sure &= !read.as_ref().is_err_and(is_gone);
            let Some((entry, true)) = readable(read)? else {
                *others.entry(pid).or_default() += 1;
                continue;
            };
            if entry.pid == own_pid() {
                continue;
            }
            left.push(entry.pid);
            if spare_until.has_passed() || !is_spared(&entry) {
                entry.stop(&mut stopped);
                doomed.push(entry.process());
            }
        }
        for process in doomed {
            // A process that cannot be signalled stays in the list, and thus in the error.
            _ = process.signal(Signal::KILL);
        }
        empty_searches = if left.is_empty() { empty_searches + 1 } else { 0 };
        let is_late = until.has_passed();
        if searches_needed(is_sure, is_late) <= empty_searches {
            return Ok(found);
        }
        if is_late && !left.is_empty() {
            return Err(SweepError::Left(left));
        }
        let is_empty = left.is_empty();
        if !is_empty {
            others.clear();
        }
        found.extend(left.into_iter().filter(|pid| !found.contains(pid)).collect::<Vec<_>>());
        // After a search that saw processes end, the next one is to be soon: it is the number of
        // searches that finds a chain, not their distance.
        if is_sure || !is_empty {
            thread::sleep(SEARCH_EVERY);
        }
    }
}

/// How many searches in a row must find no process: a list of /proc is no snapshot, and a process
/// has no marker in the middle of an exec. A slow machine has no time for many.
fn searches_needed(is_sure: bool, is_late: bool) -> u32 {
    if is_sure || is_late { EMPTY_SEARCHES } else { UNSURE_SEARCHES }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// I10: foreign processes that end all the time make a sweep slow; they do not make it fail.
    #[test]
    fn processes_that_end_ask_for_more_searches_until_time_is_over() {
        assert_eq!(searches_needed(true, false), EMPTY_SEARCHES);
        assert_eq!(searches_needed(false, false), UNSURE_SEARCHES);
        assert_eq!(searches_needed(false, true), EMPTY_SEARCHES);
    }
}
