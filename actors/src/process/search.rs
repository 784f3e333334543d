//! Looks for what a run left at its end, whatever its shim reports (I10).
//!
//! Many runs may end at once, and each search reads all of `/proc`: so one search at a time answers
//! all runs that ended before it began. It only finds; `child` has the rest killed.
//!
//! The kernel may keep the reader of a process's environment waiting for as long as that process
//! hangs in a file system. Then the runs do not wait, and nothing is searched until it has ended.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    proc::{Entry, Marker, newest_pids, own_pid, readable},
    shims, sweep,
};
use crate::awake;

/// What is to be killed at the end of a run.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// The processes that the run left.
    pub pids: Vec<u32>,
    /// Adopted processes with the marker of another unfinished run: that run's shim is dead, or the
    /// marker is forged.
    pub of_others: Vec<u32>,
}

/// Why it is unknown what a run left.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum SearchError {
    #[error("the search for leftover processes failed: {0}")]
    Failed(String),
    #[error("the search for leftover processes hangs: the environment of a process cannot be read")]
    Hangs,
}

type Found = Result<Leftovers, SearchError>;
type Search = fn(&[Marker]) -> io::Result<Vec<Left>>;

/// How long a run waits for its search, which takes a fraction of a second.
const SEARCH_MAX: Duration = Duration::from_secs(10);

/// The runs that wait for a search, whether a thread searches, and whether it hangs.
struct Waiting {
    runs: Vec<(Marker, oneshot::Sender<Found>)>,
    is_searching: bool,
    hangs: bool,
}

static WAITING: Mutex<Waiting> =
    Mutex::new(Waiting { runs: Vec::new(), is_searching: false, hangs: false });

fn waiting() -> MutexGuard<'static, Waiting> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns what a run left after its shim was reaped: the processes with its marker, and all that
/// this process adopted.
///
/// # Errors
///
/// `/proc` cannot be read, no thread can be started, or the search takes longer than 10 s.
pub(super) async fn left_by(run: &Marker) -> Found {
    left_within(run, SEARCH_MAX, search).await
}

/// Whether a search hangs. Another one would, too.
pub(super) fn hangs() -> bool {
    waiting().hangs
}

async fn left_within(run: &Marker, max: Duration, search: Search) -> Found {
    let (answer, answered) = oneshot::channel();
    let starts = {
        let mut waiting = waiting();
        if waiting.hangs {
            return Err(SearchError::Hangs);
        }
        waiting.runs.push((run.clone(), answer));
        !std::mem::replace(&mut waiting.is_searching, true)
    };
    if starts {
        let searching = Searching;
        let started = thread::Builder::new()
            .name("search".into())
            .spawn(move || searching.answer_all(search))
            .map(drop);
        let failed = |err| SearchError::Failed(format!("no thread can be started: {err}"));
        started.map_err(failed)?;
    }
    match awake::timeout(max, answered).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) if hangs() => Err(SearchError::Hangs),
        Ok(Err(_)) => Err(SearchError::Failed("it ended early".into())),
        Err(_) => {
            let mut waiting = waiting();
            waiting.hangs = waiting.is_searching;
            waiting.runs.clear();
            Err(SearchError::Hangs)
        }
    }
}

/// Dropped when the thread ends, also by a panic, or if there is none: who still waits gets an
/// error, and the next run starts another thread.
struct Searching;

impl Drop for Searching {
    fn drop(&mut self) {
        let mut waiting = waiting();
        waiting.runs.clear();
        waiting.is_searching = false;
        waiting.hangs = false;
    }
}

impl Searching {
    fn answer_all(self, search: Search) {
        loop {
            let asked = {
                let mut waiting = waiting();
                waiting.hangs = false;
                if waiting.runs.is_empty() {
                    // While the lock is held: who asks from now on starts another thread.
                    waiting.is_searching = false;
                    std::mem::forget(self);
                    return;
                }
                std::mem::take(&mut waiting.runs)
            };
            let (runs, answers): (Vec<Marker>, Vec<_>) = asked.into_iter().unzip();
            let left = search(&runs).map_err(|err| SearchError::Failed(err.to_string()));
            for (number, answer) in answers.into_iter().enumerate() {
                let found = match &left {
                    Ok(left) => Ok(of_run(left, number)),
                    Err(err) => Err(err.clone()),
                };
                // The receiver may be gone with its runtime.
                _ = answer.send(found);
            }
        }
    }
}

/// A process that should not exist.
struct Left {
    pid: u32,
    of: Owner,
}

enum Owner {
    /// The run with this index.
    Run(usize),
    /// Another unfinished run, by its marker.
    Another,
    /// It has no marker of an unfinished run.
    Unknown,
}

fn search(runs: &[Marker]) -> io::Result<Vec<Left>> {
    let run_of = |value: &[u8]| runs.iter().position(|run| run.entry().1.as_bytes() == value);
    let mut found: Vec<Left> = Vec::new();
    for entry in sweep::adopted()? {
        let markers = readable(entry.markers())?;
        let values = || markers.iter().flat_map(|markers| markers.named(Marker::RUN));
        let of = match values().find_map(run_of) {
            Some(run) => Owner::Run(run),
            None if values().any(shims::is_unfinished) => Owner::Another,
            None => Owner::Unknown,
        };
        found.push(Left { pid: entry.pid, of });
    }
    for pid in newest_pids()? {
        let markers = readable(Entry::read(pid).and_then(|entry| entry.markers()))?;
        let run = markers.and_then(|markers| markers.named(Marker::RUN).find_map(run_of));
        if let Some(run) = run
            && pid != own_pid()
            && !found.iter().any(|left| left.pid == pid)
        {
            found.push(Left { pid, of: Owner::Run(run) });
        }
    }
    Ok(found)
}

fn of_run(left: &[Left], run: usize) -> Leftovers {
    let mut found = Leftovers::default();
    for Left { pid, of } in left {
        match of {
            Owner::Run(number) if *number != run => (),
            Owner::Run(_) | Owner::Unknown => found.pids.push(*pid),
            Owner::Another => found.of_others.push(*pid),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt as _;

    use super::*;

    /// What the search that hangs waits for.
    static RELEASE: Mutex<Option<mpsc::Receiver<()>>> = Mutex::new(None);

    fn hang(_: &[Marker]) -> io::Result<Vec<Left>> {
        if let Some(release) = RELEASE.lock().expect("lock it").take() {
            _ = release.recv();
        }
        Ok(Vec::new())
    }

    /// I12, I15: a search that hangs delays no run for longer than its limit, and later runs not at
    /// all; once it has ended, the next run is searched for.
    #[tokio::test]
    async fn runs_do_not_wait_for_a_search_that_hangs() {
        let (release, released) = mpsc::channel();
        RELEASE.lock().expect("lock it").replace(released);
        let run = Marker::run("run_search");
        let short = Duration::from_millis(10);
        let first = left_within(&run, short, hang).await;
        assert!(matches!(first, Err(SearchError::Hangs)), "{first:?}");
        let second = left_within(&run, SEARCH_MAX, hang).now_or_never();
        assert!(matches!(second, Some(Err(SearchError::Hangs))), "it does not wait: {second:?}");
        release.send(()).expect("the search still runs");
        while hangs() {
            tokio::task::yield_now().await;
        }
        let third = left_within(&run, SEARCH_MAX, hang).await;
        assert!(third.is_ok_and(|left| left.pids.is_empty()));
    }
}
