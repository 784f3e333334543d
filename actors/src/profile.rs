//! How an agent is launched, and the limits that all groups share: what the configuration says.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use greenroom_core::{CompactionOrder, OnInterrupt, Patience, PermissionPolicy, Retry, Strategy};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::awake;

/// What an agent is asked whose session is to go on in another one.
const SUMMARY_REQUEST: &str = "\
    Your context is almost full. This session ends here and goes on in a new one, which will know \
    nothing but what you write now. Sum up what it needs to go on without a break: the goal and \
    what was asked for, decisions and why they were taken, what is done and what is not, files, \
    names and values that matter, open questions, and the very next step. Call no tool. Answer \
    with the summary alone.";

/// A named way to launch an agent. Callers of the API can only name one (RELIABILITY C10).
#[derive(Clone, Debug)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// The program: a path, or a name to look up in `PATH` at every spawn.
    pub command: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its whole environment but for `PATH HOME USER LANG LC_* TZ TMPDIR` and greenroom's marks.
    pub env: Vec<(String, String)>,
    /// Where a group's working directory may lie; empty: any directory that exists.
    pub cwd_roots: Vec<PathBuf>,
    /// The ACP `authenticate` method to use before a session, if the agent needs one.
    pub auth_method: Option<String>,
    /// From spawn to a session.
    pub start_timeout: Duration,
    /// How its context is compacted.
    pub compaction: Compacts,
    /// The share of the context window at which a compaction is ordered; absent: the default.
    pub auto_compact: Option<f64>,
    /// What tells of its compactions besides ACP.
    pub signals: Signals,
    /// The file mode mask of the agent's process.
    pub umask: Option<u32>,
    /// Whether the agent may never gain privileges by exec.
    pub no_new_privs: bool,
    /// What each of its processes may use.
    pub rlimits: Rlimits,
}

/// Limits of the system for each process of an agent (setrlimit(2)); `None` leaves one as the
/// server has it. There is none of the address space: V8 reserves far more than it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimits {
    /// Open files. `None`: as many as the server was started with.
    pub open_files: Option<u64>,
    /// Processes and threads of the user that the agent runs as, all of them counted.
    pub processes: Option<u64>,
    /// Bytes of a core file, which holds all that the agent knows.
    pub core_bytes: u64,
    /// Bytes of a file that it writes.
    pub file_bytes: Option<u64>,
    /// Seconds of processor time.
    pub cpu_seconds: Option<u64>,
}

/// How long a file system may take to say what a directory is.
const DIRECTORY_MAX: Duration = Duration::from_secs(5);

/// Looks at directories on a thread of its own: one on a hung mount would keep an arbiter, and so
/// all of its groups, from their work (I15).
///
/// # Errors
///
/// What the look gives, or that the file system did not answer within [`DIRECTORY_MAX`].
pub async fn look_apart(
    look: impl FnOnce() -> io::Result<PathBuf> + Send + 'static,
) -> io::Result<PathBuf> {
    let (done, looked) = oneshot::channel();
    // Not one of the runtime's: those panic where the system gives no thread (RELIABILITY F34).
    thread::Builder::new().name("directory".into()).spawn(move || _ = done.send(look()))?;
    match awake::timeout(DIRECTORY_MAX, looked).await {
        Ok(Ok(looked)) => looked,
        Ok(Err(_)) => Err(io::Error::other("the look at a directory panicked")),
        Err(_) => {
            let max = DIRECTORY_MAX.as_secs();
            Err(io::Error::other(format!("its file system did not answer within {max} s")))
        }
    }
}

impl Profile {
    /// [`Self::check_cwd`] by [`look_apart`].
    ///
    /// # Errors
    ///
    /// As both.
    pub async fn check_cwd_apart(self: &Arc<Self>, cwd: PathBuf) -> io::Result<PathBuf> {
        let profile = self.clone();
        look_apart(move || profile.check_cwd(&cwd)).await
    }

    /// Checks that `cwd` is a directory where this agent may work, and gives its canonical path.
    ///
    /// # Errors
    ///
    /// It does not exist, is no directory, or does not lie under the profile's roots.
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

/// How an agent's context is compacted on order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compacts {
    /// By the agent's own slash command, sent as a prompt.
    ByCommand(String),
    /// By a summary, which leads into a new session. Any agent can do that.
    ByRotation,
    /// Not at all.
    Not,
}

impl Compacts {
    /// What a compaction task has the agent do; `None` if there is no way to order one.
    pub fn order(&self) -> Option<CompactionOrder> {
        let (strategy, text) = match self {
            Self::ByCommand(command) => (Strategy::Command, command.clone()),
            Self::ByRotation => (Strategy::Rotate, SUMMARY_REQUEST.to_owned()),
            Self::Not => return None,
        };
        Some(CompactionOrder { strategy, text })
    }
}

/// What is listened to for compactions that an agent makes by itself, besides ACP (SEEDS AM-20).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// `_meta.hermes` on updates and in the answers that open a session.
    pub hermes_meta: bool,
    /// hermes' log lines on stderr.
    pub hermes_stderr: bool,
}

impl Signals {
    /// Whether anything is listened to.
    pub fn any(self) -> bool {
        self.hermes_meta || self.hermes_stderr
    }
}

/// The limits that all groups share.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Tasks running at once, all groups.
    pub running_groups: usize,
    /// What each group goes by.
    pub patience: Patience,
    /// The share of the context window at which a compaction is ordered, if neither the group nor
    /// its profile says otherwise; 0: never.
    pub auto_compact: f64,
    /// How long a compaction's lock is leased for at a time.
    pub lock_ttl: Duration,
    /// Which failed attempts are made again.
    pub retry: Retry,
    /// What becomes of a queue after a turn was cut off, unless its group says otherwise.
    pub on_interrupt: OnInterrupt,
    /// Who decides on what agents ask for, unless their group says otherwise.
    pub permissions: PermissionPolicy,
    /// From a shutdown's begin until running turns are cut off.
    pub drain: Duration,
}
