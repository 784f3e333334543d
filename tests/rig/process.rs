//! The processes that carry a run's mark, as `/proc` shows them (I10).

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use greenroom_test_support::process;

/// How long a process may outlive its run or its server.
pub const OUTLIVES: Duration = Duration::from_secs(5);

const POLL: Duration = Duration::from_millis(20);

/// A process that inherited an agent's environment.
#[derive(Clone, Debug, PartialEq)]
pub struct Marked {
    pub pid: u32,
    pub start_time: String,
    /// Its run.
    pub run: String,
    pub name: String,
}

/// Returns the live processes of every run on this data directory.
pub fn marked(data: &Path) -> Vec<Marked> {
    let mark = format!("GREENROOM_DATA={}", data.display());
    let marked = |pid| {
        let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let environ = String::from_utf8_lossy(&environ);
        let mut entries = environ.split('\0');
        entries.clone().find(|entry| *entry == mark)?;
        let run = entries.find_map(|entry| entry.strip_prefix("GREENROOM_RUN="));
        let run = run.unwrap_or_default().to_owned();
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned();
        let start_time = process::stat(pid)?.get(19)?.to_owned();
        process::is_alive(pid).then_some(Marked { pid, start_time, run, name })
    };
    process::all().into_iter().filter_map(marked).collect()
}

/// Waits until no process is left for which `doomed` holds. Returns those that stay.
pub fn wait_gone(data: &Path, doomed: impl Fn(&Marked) -> bool) -> Vec<Marked> {
    let start = Instant::now();
    loop {
        let mut left = marked(data);
        left.retain(&doomed);
        if left.is_empty() || OUTLIVES < start.elapsed() {
            return left;
        }
        thread::sleep(POLL);
    }
}
