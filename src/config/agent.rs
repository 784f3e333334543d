//! Reads agent profiles: how an agent is launched. Only the configuration names commands (C10).

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use greenroom_actors::profile::{
    CompactionMethod, Detector, Profile, Rlimits, Sandbox, SandboxLevel,
};

use super::{
    ConfigError,
    section::{DURATION_MAX, Section, TIMEOUT_MIN},
    source::{Entry, Origin, Table, Value},
};

const KEYS: [&str; 17] = [
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
    "sandbox",
    "sandbox_read",
    "sandbox_write",
    "sandbox_network",
];

/// Keys that a profile inherits from [`TEMPLATE`] if it lacks them.
const INHERITED: [&str; 6] =
    ["env", "env_pass", "cwd_roots", "signals", "start_timeout", "no_new_privs"];

/// The built-in profile, which provides the inherited values.
const TEMPLATE: &str = "demo";

const NAME_BYTES_MAX: usize = 64;

/// The kernel's default maximum of open files of a process (fs.nr_open).
const OPEN_FILES_MAX: u32 = 1 << 20;
/// The kernel's maximum of process ids.
const PROCESSES_MAX: u32 = 1 << 22;
/// Largest limit for a file or a core file.
const FILE_BYTES_MAX: u64 = 1 << 50;

/// Reads `[agents]`, which holds the built-in profile and the user's.
///
/// `builtin` is the same table of the built-in file.
pub fn read_all(
    agents: Option<Entry>,
    builtin: Option<&Entry>,
) -> Result<BTreeMap<String, Arc<Profile>>, ConfigError> {
    let template = table(builtin).and_then(|agents| table(agents.get(TEMPLATE)));
    let profiles = table(agents.as_ref()).cloned().unwrap_or_default();
    let read = |(name, profile)| {
        let profile = read(name, profile, template)?;
        Ok((profile.name.clone(), Arc::new(profile)))
    };
    profiles.into_iter().map(read).collect()
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
) -> Result<Profile, ConfigError> {
    let is_invalid = |c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c));
    if name.is_empty() || NAME_BYTES_MAX < name.len() || name.contains(is_invalid) {
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
    let args = if section.has("args") { values(section.texts("args")?) } else { Vec::new() };
    let auto_compact = section.take_if("auto_compact");
    let is_dots = name.bytes().all(|byte| byte == b'.');
    Ok(Profile {
        name,
        command: command.into(),
        args,
        env: variables(&mut section)?,
        env_pass: variable_names(&mut section)?,
        cwd_roots: paths(&mut section, "cwd_roots")?,
        signals: section.choices(
            "signals",
            &[("hermes_meta", Detector::HermesMeta), ("hermes_stderr", Detector::HermesStderr)],
        )?,
        auto_compact: auto_compact
            .map(|entry| section.share("auto_compact", &entry))
            .transpose()?,
        auth_method: non_empty(&mut section, "auth_method")?,
        start_timeout: section.duration("start_timeout", TIMEOUT_MIN..=DURATION_MAX)?,
        compaction: compaction(&title, section.take_if("compaction"))?,
        umask: umask(&mut section)?,
        no_new_privs: section.boolean("no_new_privs")?,
        rlimits: rlimits(&title, section.take_if("rlimits"))?,
        sandbox: sandbox(&mut section, is_dots)?,
    })
}

/// Drops the origins of the texts.
fn values(texts: Vec<(String, Origin)>) -> Vec<String> {
    texts.into_iter().map(|(text, _)| text).collect()
}

/// Whether `name` is valid as the name of an environment variable.
fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

fn variables(section: &mut Section<'_>) -> Result<BTreeMap<String, String>, ConfigError> {
    let variables = section.text_table("env")?;
    variables
        .into_iter()
        .map(|(name, (value, at))| match is_variable(&name) && !value.contains('\0') {
            true => Ok((name, value)),
            false => Err(section.bad(
                &at,
                "env",
                format_args!("cannot set the variable {name:?} to this"),
            )),
        })
        .collect()
}

fn variable_names(section: &mut Section<'_>) -> Result<Vec<String>, ConfigError> {
    let names = section.texts("env_pass")?;
    if let Some((name, at)) = names.iter().find(|(name, _)| !is_variable(name)) {
        let problem = format!("must hold names of variables, found {name:?}");
        return Err(section.bad(at, "env_pass", problem));
    }
    Ok(values(names))
}

fn paths(section: &mut Section<'_>, key: &str) -> Result<Vec<PathBuf>, ConfigError> {
    let paths = section.texts(key)?;
    let is_path = |path: &str| path.starts_with('/') && !path.contains('\0');
    if let Some((path, at)) = paths.iter().find(|(path, _)| !is_path(path)) {
        let problem = format!("must hold absolute paths, found {path:?}");
        return Err(section.bad(at, key, problem));
    }
    Ok(paths.into_iter().map(|(path, _)| PathBuf::from(path)).collect())
}

/// Reads the keys of the sandbox. `is_dots`: the profile has no name that a directory can have.
fn sandbox(section: &mut Section<'_>, is_dots: bool) -> Result<Sandbox, ConfigError> {
    let levels = SandboxLevel::ALL.map(|level| (level.name(), level));
    let mut level = SandboxLevel::None;
    if section.has("sandbox") {
        let (word, at) = section.text("sandbox")?;
        level = section.one_of("sandbox", &word, &at, &levels)?;
        if level != SandboxLevel::None && is_dots {
            let problem = "needs a home directory by the profile's name, which has dots alone";
            return Err(section.bad(&at, "sandbox", problem));
        }
    }
    let mut listed = |key| if section.has(key) { paths(section, key) } else { Ok(Vec::new()) };
    let (read, write) = (listed("sandbox_read")?, listed("sandbox_write")?);
    let network = section.has("sandbox_network").then(|| section.ports("sandbox_network"));
    Ok(Sandbox { level, read, write, network: network.transpose()? })
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
    // With less than 16 open files no program starts: its libraries are files.
    Ok(Rlimits {
        open_files: open_files
            .then(|| section.integer("open_files", 16..=OPEN_FILES_MAX))
            .transpose()?
            .map(u64::from),
        processes: processes
            .then(|| section.integer("processes", 1..=PROCESSES_MAX))
            .transpose()?
            .map(u64::from),
        core_bytes: core_size
            .then(|| section.size_up_to("core_size", FILE_BYTES_MAX))
            .transpose()?,
        file_bytes: file_size
            .then(|| section.size_up_to("file_size", FILE_BYTES_MAX))
            .transpose()?,
        cpu_seconds: cpu_time
            .then(|| section.duration("cpu_time", SECOND..=DURATION_MAX))
            .transpose()?
            .map(|time| time.as_secs()),
    })
}

fn compaction(agent: &str, entry: Option<Entry>) -> Result<CompactionMethod, ConfigError> {
    #[derive(Clone, Copy)]
    enum Strategy {
        Command,
        Rotate,
        None,
    }
    let Some(entry) = entry else { return Ok(CompactionMethod::None) };
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
            Ok(CompactionMethod::Command { command })
        }
        Strategy::Rotate | Strategy::None if section.has("command") => {
            let (_, at) = section.text("command")?;
            Err(section.bad(&at, "command", "belongs to strategy \"command\""))
        }
        Strategy::Rotate => Ok(CompactionMethod::Rotate),
        Strategy::None => Ok(CompactionMethod::None),
    }
}
