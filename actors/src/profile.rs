//! What the configuration says to actors: launch profiles of agents, the server's capacity, and the
//! defaults of all groups. The configuration reads its keys into these very types.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use greenroom_core::{
    CompactionOrder, EffectiveSettings, Limits, OnInterrupt, PermissionPolicy, RetryPolicy,
    Settings, Strategy, lock::Ttl,
};
use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};

/// The prompt for the summary that starts a new session.
const SUMMARY_REQUEST: &str = "\
    Your context is almost full. This session ends here and goes on in a new one, which will know \
    nothing but what you write now. Sum up what it needs to go on without a break: the goal and \
    what was asked for, decisions and why they were taken, what is done and what is not, files, \
    names and values that matter, open questions, and the very next step. Call no tool. Answer \
    with the summary alone.";

/// A launch profile of an agent. Callers of the API can only name one (C10).
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// The program: a path, or a name to look up in `PATH` at every spawn; `greenroom` is this very
    /// binary.
    pub command: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables of its environment. The values may be secrets (C16).
    pub env: BTreeMap<String, String>,
    /// The names of variables that it inherits from the server's environment, besides
    /// `PATH HOME USER LANG LC_* TZ TMPDIR`.
    pub env_pass: Vec<String>,
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
    pub signals: Vec<Detector>,
    /// The file mode mask of the agent's process.
    pub umask: Option<u32>,
    /// Whether the agent may never gain privileges by exec.
    pub no_new_privs: bool,
    /// The resource limits of each of its processes.
    pub rlimits: Rlimits,
    /// What it may reach.
    pub sandbox: Sandbox,
}

/// What an agent may reach of the machine, besides what every agent needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// What holds it.
    pub level: SandboxLevel,
    /// Absolute paths that it may read and execute.
    pub read: Vec<PathBuf>,
    /// Absolute paths of directories that it may write in as well.
    pub write: Vec<PathBuf>,
    /// The TCP ports that it may use; empty: no network at all. `None`: all but the server's own.
    pub network: Option<Vec<u16>>,
}

/// What holds an agent in its sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxLevel {
    /// It has no sandbox, and all rights of its user.
    #[default]
    None,
    /// Rules of the kernel, in the file system that all see.
    Landlock,
    /// A file system and a process table of its own, by the program `bwrap`.
    Bubblewrap,
}

impl SandboxLevel {
    /// All levels, the weakest first.
    pub const ALL: [Self; 3] = [Self::None, Self::Landlock, Self::Bubblewrap];

    /// Its name in the configuration, logs and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Landlock => "landlock",
            Self::Bubblewrap => "bubblewrap",
        }
    }
}

/// Resource limits of each process of an agent (setrlimit(2)); `None` keeps the server's limit,
/// except for core files. The address space has none: V8 reserves far more than it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimits {
    /// Open files. `None`: as many as the server was started with.
    pub open_files: Option<u64>,
    /// All processes and threads of the user that the agent runs as.
    pub processes: Option<u64>,
    /// Bytes of a core file, which holds all of the agent's memory. `None`: no core file.
    #[serde(rename = "core_size")]
    pub core_bytes: Option<u64>,
    /// Bytes of a file that it writes.
    #[serde(rename = "file_size")]
    pub file_bytes: Option<u64>,
    /// Seconds of processor time.
    pub cpu_seconds: Option<u64>,
}

impl Profile {
    /// Whether the program is this very binary, which needs no lookup.
    pub fn is_greenroom(&self) -> bool {
        self.command.as_os_str() == "greenroom"
    }

    /// Looks up the program as a spawn does: by its path, or in the agent's `PATH`, which is
    /// `inherited` unless the profile sets one. A relative path depends on the directory of a run,
    /// and is returned as it is.
    ///
    /// # Errors
    ///
    /// A sentence that names the program and where it was looked up.
    pub fn find_program(&self, inherited: Option<&OsStr>) -> Result<PathBuf, String> {
        let is_program = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
        let command = &self.command;
        if self.is_greenroom() || command.is_relative() && command.components().count() > 1 {
            return Ok(command.clone());
        }
        if command.is_absolute() {
            return match (command.exists(), is_program(command)) {
                (_, true) => Ok(command.clone()),
                (true, false) => Err(format!("command {} is not executable", command.display())),
                (false, false) => Err(format!("command {} was not found", command.display())),
            };
        }
        let path = self.env.get("PATH").map(OsStr::new).or(inherited).unwrap_or_default();
        let dirs = path.as_bytes().split(|byte| *byte == b':').map(OsStr::from_bytes);
        let found = dirs.map(|dir| Path::new(dir).join(command)).find(|file| is_program(file));
        found.ok_or_else(|| {
            format!("command {} was not found in PATH ({})", command.display(), path.display())
        })
    }
}

/// How greenroom compacts an agent's context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "strategy", rename_all = "snake_case")]
pub enum CompactionMethod {
    /// By the agent's own slash command, sent as a prompt.
    Command {
        /// The command.
        command: String,
    },
    /// By a summary that starts a new session. Any agent supports this.
    Rotate,
    /// Not at all.
    None,
}

impl CompactionMethod {
    /// Returns the order of a compaction task; `None` if compactions cannot be ordered.
    pub fn order(&self) -> Option<CompactionOrder> {
        let (strategy, text) = match self {
            Self::Command { command } => (Strategy::Command, command.clone()),
            Self::Rotate => (Strategy::Rotate, SUMMARY_REQUEST.to_owned()),
            Self::None => return None,
        };
        Some(CompactionOrder { strategy, text })
    }
}

/// A detector, besides ACP, of compactions that an agent makes by itself (AM-20).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// `_meta.hermes` in updates and in the responses that open a session.
    HermesMeta,
    /// hermes' log lines on stderr.
    HermesStderr,
}

/// What the server has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Tasks running at once, all groups.
    pub running_groups: usize,
    /// Agents with a process at once.
    pub resident_agents: usize,
    /// The longest line from an agent, bytes.
    pub line_bytes_max: usize,
}

impl Capacity {
    /// Returns the number of slots. A task with a slot waits at most for an idle agent to stop,
    /// never for a busy one: one queue, that of the slots, decides which task runs next (DQ-10).
    pub fn slots(self) -> usize {
        self.running_groups.min(self.resident_agents)
    }
}

/// What applies to every group, unless the group or its profile sets a value of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// The profile of a group whose settings name none.
    pub agent: String,
    /// The limits of each group.
    pub limits: Limits,
    /// The share of the context window at which greenroom orders a compaction; 0: never.
    pub auto_compact: f64,
    /// The lease of a compaction's lock.
    pub lock_ttl: Ttl,
    /// Which failed attempts are retried.
    pub retry: RetryPolicy,
    /// What happens to a queue after a turn was interrupted.
    pub on_interrupt: OnInterrupt,
    /// Who decides on permission requests.
    pub permission_policy: PermissionPolicy,
}

impl Defaults {
    /// Returns the effective settings of a group with these settings and the profile that they
    /// name; absent, if that profile is not configured.
    pub fn effective(&self, group: &Settings, profile: Option<&Profile>) -> EffectiveSettings {
        // A task under a profile that is not configured fails at its launch, not before.
        let compaction = profile.map_or(&CompactionMethod::Rotate, |profile| &profile.compaction);
        let profile_auto_compact = profile.and_then(|profile| profile.auto_compact);
        EffectiveSettings {
            limits: self.limits,
            auto_compact: group.auto_compact.or(profile_auto_compact).unwrap_or(self.auto_compact),
            retry: self.retry,
            on_interrupt: group.on_interrupt.unwrap_or(self.on_interrupt),
            permissions: group
                .permission_policy
                .clone()
                .unwrap_or_else(|| self.permission_policy.clone()),
            compaction: compaction.order(),
            has_detectors: profile.is_some_and(|profile| !profile.signals.is_empty()),
            is_draining: false,
            has_permission_room: true,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use greenroom_core::Policy;

    use super::*;

    fn defaults() -> Defaults {
        Defaults {
            agent: "a".into(),
            limits: Limits {
                turn_ms: 1,
                compaction_ms: 2,
                idle_ms: 3,
                permission_ms: 4,
                retry_base_ms: 5,
                queue_max: 6,
                queue_bytes_max: 7,
            },
            auto_compact: 0.8,
            lock_ttl: Ttl::from_ms(1).unwrap(),
            retry: RetryPolicy::Undelivered,
            on_interrupt: OnInterrupt::Hold,
            permission_policy: Policy::Reject.into(),
        }
    }

    /// A profile that sets no more than it must.
    pub(crate) fn profile() -> Profile {
        Profile {
            name: "a".into(),
            command: "a".into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            env_pass: Vec::new(),
            cwd_roots: Vec::new(),
            auth_method: None,
            start_timeout: Duration::from_secs(1),
            compaction: CompactionMethod::None,
            auto_compact: None,
            signals: Vec::new(),
            umask: None,
            no_new_privs: false,
            rlimits: Rlimits::default(),
            sandbox: Sandbox::default(),
        }
    }

    /// F7: a program is looked up in the agent's own `PATH`, and must be executable.
    #[test]
    fn a_program_is_looked_up_as_a_spawn_does() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = |name: &str, mode| {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            path
        };
        let (program, text) = (file("program", 0o755), file("text", 0o644));
        let of = |command: &Path, own: Option<&Path>| Profile {
            command: command.into(),
            env: own.map(|own| ("PATH".into(), own.display().to_string())).into_iter().collect(),
            ..profile()
        };
        let (found, empty) = (Ok(program.clone()), Path::new("/nowhere"));
        let missing = |why: &str| Err(why.to_owned());
        let shown = dir.path().display();
        #[rustfmt::skip]
        let cases = [
            ("inherited",      of(Path::new("program"), None),             dir.path(), found.clone()),
            ("own",            of(Path::new("program"), Some(dir.path())), empty,      found.clone()),
            ("own one counts", of(Path::new("program"), Some(empty)),      dir.path(), missing("command program was not found in PATH (/nowhere)")),
            ("not executable", of(Path::new("text"), None),                dir.path(), missing(&format!("command text was not found in PATH ({shown})"))),
            ("a path",         of(&program, None),                         empty,      found),
            ("a text's path",  of(&text, None),                            empty,      missing(&format!("command {} is not executable", text.display()))),
            ("no such path",   of(Path::new("/no/such"), None),            empty,      missing("command /no/such was not found")),
            ("relative",       of(Path::new("./program"), None),           empty,      Ok("./program".into())),
            ("this binary",    of(Path::new("greenroom"), None),           empty,      Ok("greenroom".into())),
        ];
        for (name, profile, inherited, expected) in cases {
            assert_eq!(profile.find_program(Some(inherited.as_os_str())), expected, "{name}");
        }
    }

    /// DQ-1, A-5: a group's own setting counts before its profile's, and that before the default.
    #[test]
    fn the_effective_settings_are_those_of_group_then_profile_then_defaults() {
        let order = |strategy, text: &str| Some(CompactionOrder { strategy, text: text.into() });
        let plain = EffectiveSettings {
            limits: defaults().limits,
            auto_compact: 0.8,
            retry: RetryPolicy::Undelivered,
            on_interrupt: OnInterrupt::Hold,
            permissions: Policy::Reject.into(),
            compaction: None,
            has_detectors: false,
            is_draining: false,
            has_permission_room: true,
        };
        let group = Settings::default;
        let command = CompactionMethod::Command { command: "/c".into() };
        let eager = Profile { auto_compact: Some(0.5), ..profile() };
        let disabled = Settings { auto_compact: Some(0.0), ..group() };
        #[rustfmt::skip]
        let cases = [
            ("nothing set",       group(), Some(profile()), plain.clone()),
            ("no such profile",   group(), None,
             EffectiveSettings { compaction: order(Strategy::Rotate, SUMMARY_REQUEST), ..plain.clone() }),
            ("profile: share",    group(), Some(eager.clone()),
             EffectiveSettings { auto_compact: 0.5, ..plain.clone() }),
            ("group: share",      disabled.clone(), Some(eager),
             EffectiveSettings { auto_compact: 0.0, ..plain.clone() }),
            ("group: share only", disabled, Some(profile()),
             EffectiveSettings { auto_compact: 0.0, ..plain.clone() }),
            ("group: policy",     Settings { permission_policy: Some(Policy::Allow.into()), ..group() }, Some(profile()),
             EffectiveSettings { permissions: Policy::Allow.into(), ..plain.clone() }),
            ("group: interrupt",  Settings { on_interrupt: Some(OnInterrupt::Continue), ..group() }, Some(profile()),
             EffectiveSettings { on_interrupt: OnInterrupt::Continue, ..plain.clone() }),
            ("profile: command",  group(), Some(Profile { compaction: command, ..profile() }),
             EffectiveSettings { compaction: order(Strategy::Command, "/c"), ..plain.clone() }),
            ("profile: detector", group(), Some(Profile { signals: vec![Detector::HermesStderr], ..profile() }),
             EffectiveSettings { has_detectors: true, ..plain }),
        ];
        for (name, group, profile, expected) in cases {
            assert_eq!(defaults().effective(&group, profile.as_ref()), expected, "{name}");
        }
    }

    /// DQ-10: no task has a slot that could find no place for its agent.
    #[test]
    fn there_are_no_more_slots_than_places_for_agents() {
        for (running_groups, resident_agents, slots) in [(8, 64, 8), (8, 8, 8), (9, 8, 8)] {
            let capacity = Capacity { running_groups, resident_agents, line_bytes_max: 1 };
            assert_eq!(capacity.slots(), slots, "{capacity:?}");
        }
    }
}
