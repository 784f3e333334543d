//! Launch profiles of agents, and the settings that all groups share, both from the configuration.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use greenroom_core::{
    CompactionOrder, Limits, OnInterrupt, PermissionPolicy, RetryPolicy, Strategy,
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::awake;

/// The prompt for the summary that starts a new session.
const SUMMARY_REQUEST: &str = "\
    Your context is almost full. This session ends here and goes on in a new one, which will know \
    nothing but what you write now. Sum up what it needs to go on without a break: the goal and \
    what was asked for, decisions and why they were taken, what is done and what is not, files, \
    names and values that matter, open questions, and the very next step. Call no tool. Answer \
    with the summary alone.";

/// A launch profile of an agent. Callers of the API can only name one (C10).
#[derive(Clone, Debug)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// The program: a path, or a name to look up in `PATH` at every spawn.
    pub command: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, except for `PATH HOME USER LANG LC_* TZ TMPDIR` and greenroom's markers.
    pub env: Vec<(String, String)>,
    /// The roots of groups' working directories; empty: any existing directory.
    pub cwd_roots: Vec<PathBuf>,
    /// The ACP `authenticate` method to use before a session, if the agent needs one.
    pub auth_method: Option<String>,
    /// The longest time from the spawn to a session.
    pub start_timeout: Duration,
    /// How its context is compacted.
    pub compaction: CompactionMethod,
    /// The share of the context window at which greenroom orders a compaction; absent: the default.
    pub auto_compact: Option<f64>,
    /// The detectors of its compactions besides ACP.
    pub signals: Signals,
    /// The file mode mask of the agent's process.
    pub umask: Option<u32>,
    /// Whether the agent may never gain privileges by exec.
    pub no_new_privs: bool,
    /// The resource limits of each of its processes.
    pub rlimits: Rlimits,
}

/// Resource limits of each process of an agent (setrlimit(2)); `None` keeps the server's limit. The
/// address space has none: V8 reserves far more than it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimits {
    /// Open files. `None`: as many as the server was started with.
    pub open_files: Option<u64>,
    /// All processes and threads of the user that the agent runs as.
    pub processes: Option<u64>,
    /// Bytes of a core file, which holds all of the agent's memory.
    pub core_bytes: u64,
    /// Bytes of a file that it writes.
    pub file_bytes: Option<u64>,
    /// Seconds of processor time.
    pub cpu_seconds: Option<u64>,
}

/// How long a file system may take to answer about a directory.
const DIRECTORY_MAX: Duration = Duration::from_secs(5);

/// Runs `inspect` on a thread of its own: a directory on a hung mount would block an arbiter, and
/// so all of its groups (I15).
///
/// # Errors
///
/// The error of `inspect`, or the file system did not answer within 5 s.
pub async fn inspect_directory(
    inspect: impl FnOnce() -> io::Result<PathBuf> + Send + 'static,
) -> io::Result<PathBuf> {
    let (done, result) = oneshot::channel();
    // Not a thread of the runtime, which panics if the system has no thread left (F34).
    thread::Builder::new().name("directory".into()).spawn(move || _ = done.send(inspect()))?;
    match awake::timeout(DIRECTORY_MAX, result).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(io::Error::other("the check of a directory panicked")),
        Err(_) => {
            let max = DIRECTORY_MAX.as_secs();
            Err(io::Error::other(format!("its file system did not answer within {max} s")))
        }
    }
}

impl Profile {
    /// Runs [`Self::check_cwd`] by [`inspect_directory`].
    ///
    /// # Errors
    ///
    /// Those of both.
    pub async fn check_cwd_off_thread(self: &Arc<Self>, cwd: PathBuf) -> io::Result<PathBuf> {
        let profile = self.clone();
        inspect_directory(move || profile.check_cwd(&cwd)).await
    }

    /// Checks that `cwd` is a directory where this agent may work, and returns its canonical path.
    ///
    /// # Errors
    ///
    /// It does not exist, is no directory, or is not under the profile's roots.
    pub fn check_cwd(&self, cwd: &Path) -> io::Result<PathBuf> {
        let named = |err: io::Error| {
            io::Error::new(err.kind(), format!("working directory {}: {err}", cwd.display()))
        };
        let real = cwd.canonicalize().map_err(named)?;
        if !real.is_dir() {
            return Err(named(io::ErrorKind::NotADirectory.into()));
        }
        let under = |root: &PathBuf| root.canonicalize().is_ok_and(|root| real.starts_with(root));
        if self.cwd_roots.is_empty() || self.cwd_roots.iter().any(under) {
            return Ok(real);
        }
        let why = format!("is not under a directory where agent {} may work", self.name);
        Err(named(io::Error::new(io::ErrorKind::PermissionDenied, why)))
    }
}

/// How greenroom compacts an agent's context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompactionMethod {
    /// By the agent's own slash command, sent as a prompt.
    ByCommand(String),
    /// By a summary that starts a new session. Any agent supports this.
    ByRotation,
    /// Not at all.
    Unsupported,
}

impl CompactionMethod {
    /// Returns the order of a compaction task; `None` if compactions cannot be ordered.
    pub fn order(&self) -> Option<CompactionOrder> {
        let (strategy, text) = match self {
            Self::ByCommand(command) => (Strategy::Command, command.clone()),
            Self::ByRotation => (Strategy::Rotate, SUMMARY_REQUEST.to_owned()),
            Self::Unsupported => return None,
        };
        Some(CompactionOrder { strategy, text })
    }
}

/// The detectors, besides ACP, of compactions that an agent makes by itself (AM-20).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// `_meta.hermes` in updates and in the responses that open a session.
    pub hermes_meta: bool,
    /// hermes' log lines on stderr.
    pub hermes_stderr: bool,
}

impl Signals {
    /// Whether any detector is enabled.
    pub fn any(self) -> bool {
        self.hermes_meta || self.hermes_stderr
    }
}

/// The settings that all groups share.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Tasks running at once, all groups.
    pub running_groups: usize,
    /// The limits of each group.
    pub limits: Limits,
    /// The share of the context window at which greenroom orders a compaction, unless the group or
    /// its profile sets another one; 0: never.
    pub auto_compact: f64,
    /// The lease of a compaction's lock.
    pub lock_ttl: Duration,
    /// Which failed attempts are retried.
    pub retry: RetryPolicy,
    /// What happens to a queue after a turn was interrupted, unless its group sets another policy.
    pub on_interrupt: OnInterrupt,
    /// Who decides on permission requests, unless the group sets another policy.
    pub permissions: PermissionPolicy,
    /// The time from the start of a shutdown until running turns are cancelled.
    pub drain: Duration,
}
