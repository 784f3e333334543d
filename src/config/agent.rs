//! Profiles: how an agent is started. Only the configuration can name a command (C10).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::ConfigError;
use super::section::{DURATION_MAX, Section};
use super::source::{Entry, Origin, Table, Value};

const KEYS: [&str; 13] = [
    "command",
    "args",
    "env",
    "env_pass",
    "cwd_roots",
    "signals",
    "auto_compact",
    "auth_method",
    "start_timeout",
    "compaction",
    "umask",
    "no_new_privs",
    "rlimits",
];

/// Keys that a profile without them takes from [`TEMPLATE`].
const INHERITED: [&str; 6] =
    ["env", "env_pass", "cwd_roots", "signals", "start_timeout", "no_new_privs"];

/// The built-in profile, whose values stand for those that another leaves out.
const TEMPLATE: &str = "demo";

const NAME_BYTES_MAX: usize = 64;

/// More open files than any Linux lets a process have by default (fs.nr_open).
const OPEN_FILES_MAX: u32 = 1 << 20;
/// More processes than there are pids.
const PROCESSES_MAX: u32 = 1 << 22;
/// Largest file, or core file, that a limit can name.
const FILE_BYTES_MAX: u64 = 1 << 50;

/// How an agent is started and spoken to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agent {
    /// Looked up in PATH at spawn; `greenroom` is this very binary.
    pub command: String,
    pub args: Vec<String>,
    /// Variables to set. Only their names are ever printed.
    #[serde(serialize_with = "names")]
    pub env: BTreeMap<String, String>,
    /// Names of variables to pass on from the server's environment, besides the basics.
    pub env_pass: Vec<String>,
    /// Absolute directories under which a group's cwd may lie; empty: any.
    pub cwd_roots: Vec<PathBuf>,
    /// What tells of compactions besides ACP.
    pub signals: Vec<Signal>,
    /// None: as in `defaults`.
    pub auto_compact: Option<f64>,
    /// For ACP `authenticate`; None: not asked for.
    pub auth_method: Option<String>,
    /// From the spawn to an open session.
    #[serde(serialize_with = "super::duration")]
    pub start_timeout: Duration,
    pub compaction: Compaction,
    /// None: the server's own.
    pub umask: Option<u32>,
    pub no_new_privs: bool,
    pub rlimits: Rlimits,
}

/// What each process of an agent may use; None: as the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Rlimits {
    pub open_files: Option<u32>,
    pub processes: Option<u32>,
    /// Bytes; None: no core file at all.
    pub core_size: Option<u64>,
    /// Bytes.
    pub file_size: Option<u64>,
    /// Whole seconds.
    pub cpu_seconds: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    HermesMeta,
    HermesStderr,
}

/// How a compaction is ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "strategy", rename_all = "snake_case")]
pub enum Compaction {
    /// The agent's own slash command, sent as a prompt.
    Command { command: String },
    /// A summary, carried over into a new session.
    Rotate,
    /// Not at all.
    None,
}

/// Reads `[agents]`, which has the built-in profile and the user's.
///
/// `builtin` is that table as the built-in file has it.
pub fn read_all(
    agents: Option<Entry>,
    builtin: Option<&Entry>,
) -> Result<BTreeMap<String, Agent>, ConfigError> {
    let template = table(builtin).and_then(|agents| table(agents.get(TEMPLATE)));
    let profiles = table(agents.as_ref()).cloned().unwrap_or_default();
    profiles.into_iter().map(|(name, profile)| read(name, profile, template)).collect()
}

fn table(entry: Option<&Entry>) -> Option<&Table> {
    match &entry?.value {
        Value::Table(table) => Some(table),
        _ => None,
    }
}

fn read(
    name: String,
    mut profile: Entry,
    template: Option<&Table>,
) -> Result<(String, Agent), ConfigError> {
    let odd = |c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c));
    if name.is_empty() || NAME_BYTES_MAX < name.len() || name.contains(odd) {
        let problem = format!(
            "the name of agent {name:?} must be 1 to {NAME_BYTES_MAX} letters, digits, '.', '_', \
             '-'"
        );
        return Err(ConfigError::at(&profile.key_at, problem));
    }
    if let Value::Table(keys) = &mut profile.value {
        for key in INHERITED {
            if let Some(value) = template.and_then(|template| template.get(key)) {
                keys.entry(key.to_owned()).or_insert_with(|| value.clone());
            }
        }
    }
    let title = format!("agents.{name}");
    let mut section = Section::open(&title, profile, &KEYS)?;
    let (command, at) = section.text("command")?;
    if command.trim().is_empty() || command.contains('\0') {
        return Err(section.bad(&at, "command", "must name a program"));
    }
    let args = if section.has("args") { plain(section.texts("args")?) } else { Vec::new() };
    let auto_compact = section.take_if("auto_compact");
    let agent = Agent {
        command,
        args,
        env: variables(&mut section)?,
        env_pass: variable_names(&mut section)?,
        cwd_roots: roots(&mut section)?,
        signals: section.choices(
            "signals",
            &[("hermes_meta", Signal::HermesMeta), ("hermes_stderr", Signal::HermesStderr)],
        )?,
        auto_compact: auto_compact
            .map(|entry| section.share("auto_compact", &entry))
            .transpose()?,
        auth_method: non_empty(&mut section, "auth_method")?,
        start_timeout: section
            .duration("start_timeout", Duration::from_millis(1)..=DURATION_MAX)?,
        compaction: compaction(&title, section.take_if("compaction"))?,
        umask: umask(&mut section)?,
        no_new_privs: section.boolean("no_new_privs")?,
        rlimits: rlimits(&title, section.take_if("rlimits"))?,
    };
    Ok((name, agent))
}

fn plain(texts: Vec<(String, Origin)>) -> Vec<String> {
    texts.into_iter().map(|(text, _)| text).collect()
}

/// Whether `name` can be the name of an environment variable.
fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

fn variables(section: &mut Section<'_>) -> Result<BTreeMap<String, String>, ConfigError> {
    let variables = section.text_table("env")?;
    variables
        .into_iter()
        .map(|(name, (value, at))| match is_variable(&name) && !value.contains('\0') {
            true => Ok((name, value)),
            false => {
                Err(section.bad(&at, "env", format_args!("cannot set a variable {name:?} so")))
            }
        })
        .collect()
}

fn variable_names(section: &mut Section<'_>) -> Result<Vec<String>, ConfigError> {
    let names = section.texts("env_pass")?;
    if let Some((name, at)) = names.iter().find(|(name, _)| !is_variable(name)) {
        let problem = format!("must be names of variables, found {name:?}");
        return Err(section.bad(at, "env_pass", problem));
    }
    Ok(plain(names))
}

fn roots(section: &mut Section<'_>) -> Result<Vec<PathBuf>, ConfigError> {
    let roots = section.texts("cwd_roots")?;
    if let Some((root, at)) = roots.iter().find(|(root, _)| !root.starts_with('/')) {
        let problem = format!("must be absolute paths, found {root:?}");
        return Err(section.bad(at, "cwd_roots", problem));
    }
    Ok(roots.into_iter().map(|(root, _)| PathBuf::from(root)).collect())
}

fn non_empty(section: &mut Section<'_>, key: &str) -> Result<Option<String>, ConfigError> {
    if !section.has(key) {
        return Ok(None);
    }
    let (text, at) = section.text(key)?;
    if text.is_empty() {
        return Err(section.bad(&at, key, "must not be empty"));
    }
    Ok(Some(text))
}

fn umask(section: &mut Section<'_>) -> Result<Option<u32>, ConfigError> {
    if !section.has("umask") {
        return Ok(None);
    }
    let (text, at) = section.text("umask")?;
    match u32::from_str_radix(&text, 8) {
        Ok(mask) if mask <= 0o777 && !text.starts_with('+') => Ok(Some(mask)),
        _ => {
            let problem = format!("must be octal, \"0000\" to \"0777\", found {text:?}");
            Err(section.bad(&at, "umask", problem))
        }
    }
}

fn rlimits(agent: &str, entry: Option<Entry>) -> Result<Rlimits, ConfigError> {
    const KEYS: [&str; 5] = ["open_files", "processes", "core_size", "file_size", "cpu_time"];
    const SECOND: Duration = Duration::from_secs(1);
    let Some(entry) = entry else { return Ok(Rlimits::default()) };
    let title = format!("{agent}.rlimits");
    let mut section = Section::open(&title, entry, &KEYS)?;
    let has = KEYS.map(|key| section.has(key));
    let [open_files, processes, core_size, file_size, cpu_time] = has;
    // Below 16 no program starts: its libraries are files.
    Ok(Rlimits {
        open_files: open_files
            .then(|| section.integer("open_files", 16..=OPEN_FILES_MAX))
            .transpose()?,
        processes: processes
            .then(|| section.integer("processes", 1..=PROCESSES_MAX))
            .transpose()?,
        core_size: core_size
            .then(|| section.size_up_to("core_size", FILE_BYTES_MAX))
            .transpose()?,
        file_size: file_size
            .then(|| section.size_up_to("file_size", FILE_BYTES_MAX))
            .transpose()?,
        cpu_seconds: cpu_time
            .then(|| section.duration("cpu_time", SECOND..=DURATION_MAX))
            .transpose()?
            .map(|time| time.as_secs()),
    })
}

fn compaction(agent: &str, entry: Option<Entry>) -> Result<Compaction, ConfigError> {
    #[derive(Clone, Copy)]
    enum Strategy {
        Command,
        Rotate,
        None,
    }
    let Some(entry) = entry else { return Ok(Compaction::None) };
    let title = format!("{agent}.compaction");
    let mut section = Section::open(&title, entry, &["strategy", "command"])?;
    let strategy = section.choice(
        "strategy",
        &[("command", Strategy::Command), ("rotate", Strategy::Rotate), ("none", Strategy::None)],
    )?;
    match strategy {
        Strategy::Command => {
            let (command, at) = section.text("command")?;
            if command.trim().is_empty() {
                return Err(section.bad(&at, "command", "must not be empty"));
            }
            Ok(Compaction::Command { command })
        }
        Strategy::Rotate | Strategy::None if section.has("command") => {
            let (_, at) = section.text("command")?;
            Err(section.bad(&at, "command", "belongs to strategy \"command\""))
        }
        Strategy::Rotate => Ok(Compaction::Rotate),
        Strategy::None => Ok(Compaction::None),
    }
}

/// Prints the names only: a value may be a secret.
pub fn names<S: Serializer>(
    variables: &BTreeMap<String, String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(variables.keys())
}
