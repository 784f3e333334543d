//! Looks for what a run left at its end, whatever its shim reports (I10).
//!
//! Many runs may end at once, and each search reads all of `/proc`: so one search at a time answers
//! all runs that ended before it began. It only finds; `child` has the rest killed.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use tokio::sync::oneshot;

use super::{
    proc::{Entry, Marker, newest_pids, own_pid, readable},
    shims, sweep,
};

/// What is to be killed at the end of a run.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// The processes that the run left.
    pub pids: Vec<u32>,
    /// Adopted processes with the marker of another unfinished run: that run's shim is dead, or the
    /// marker is forged.
    pub of_others: Vec<u32>,
}

type Found = Result<Leftovers, String>;

/// The runs that wait for a search, and whether a thread searches.
struct Waiting {
    runs: Vec<(Marker, oneshot::Sender<Found>)>,
    is_searching: bool,
}

static WAITING: Mutex<Waiting> = Mutex::new(Waiting { runs: Vec::new(), is_searching: false });

fn waiting() -> MutexGuard<'static, Waiting> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns what a run left after its shim was reaped: the processes with its marker, and all that
/// this process adopted.
///
/// # Errors
///
/// `/proc` cannot be read, or no thread can be started.
pub(super) async fn left_by(run: &Marker) -> Found {
    let (answer, answered) = oneshot::channel();
    let starts = {
        let mut waiting = waiting();
        waiting.runs.push((run.clone(), answer));
        !std::mem::replace(&mut waiting.is_searching, true)
    };
    if starts {
        let searching = Searching;
        let started = thread::Builder::new()
            .name("search".into())
            .spawn(move || searching.answer_all())
            .map(drop);
        started.map_err(|err| format!("no thread can be started: {err}"))?;
    }
    answered.await.unwrap_or_else(|_| Err("the search for leftover processes ended early".into()))
}

/// Dropped when the thread ends, also by a panic, or if there is none: who still waits gets an
/// error, and the next run starts another thread.
struct Searching;

impl Drop for Searching {
    fn drop(&mut self) {
        let mut waiting = waiting();
        waiting.runs.clear();
        waiting.is_searching = false;
    }
}

impl Searching {
    fn answer_all(self) {
        loop {
            let asked = {
                let mut waiting = waiting();
                if waiting.runs.is_empty() {
                    // While the lock is held: who asks from now on starts another thread.
                    waiting.is_searching = false;
                    std::mem::forget(self);
                    return;
                }
                std::mem::take(&mut waiting.runs)
            };
            let (runs, answers): (Vec<Marker>, Vec<_>) = asked.into_iter().unzip();
            let left = search(&runs).map_err(|err| err.to_string());
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
