//! The configuration: built-in defaults, a file, the environment, flags; the later source wins.
//!
//! Only this module reads them. `config/greenroom.toml` is the one source of the defaults and
//! documents every key; this module defines which values a key accepts, and reads them into the
//! types of those who use them.

mod agent;
mod layers;
mod machine;
mod otlp;
mod print;
mod secrets;
mod section;
mod services;
mod source;

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs,
    io::{self, ErrorKind},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use greenroom_actors::{
    profile::{Capacity, Defaults, Profile},
    quota::QuotaMax,
    secrets::set as set_secrets,
};
use greenroom_core::{
    Limits, OnInterrupt, PermissionPolicy, Policy, RetryPolicy, TOOL_KINDS,
    lock::{TTL_MS_MAX, Ttl},
};
use serde::Serialize;

pub use self::otlp::Otlp;
use self::{
    layers::{keys_of, overlay, overlay_environment, set},
    section::{DURATION_MAX, Section, TIMEOUT_MIN},
    source::{Lines, Origin, Value, line_of},
};

/// The defaults, with documentation of every key.
const BUILTIN: &str = include_str!("../config/greenroom.toml");

/// The file that is read if none is given and this one exists.
pub const DEFAULT_FILE: &str = "config/greenroom.toml";

/// Longest lease of a lock, the same as over HTTP.
const LOCK_TTL_MAX: Duration = Duration::from_millis(TTL_MS_MAX);

/// Maximum bytes of the waiting prompts of one group.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Largest limit of bytes of the server as a whole.
const QUOTA_BYTES_MAX: u64 = 64 << 30;

/// The operator's settings of the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub server: Server,
    pub storage: Storage,
    pub capacity: Capacity,
    /// What the server as a whole may hold.
    pub quotas: QuotaMax,
    /// Its `agent` is always a key of `agents`.
    pub defaults: Defaults,
    pub otlp: Otlp,
    pub agents: BTreeMap<String, Arc<Profile>>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Probable mistakes; the caller logs them at `warn`.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Server {
    /// A loopback address; port 0 picks a free port.
    pub listen: SocketAddr,
    /// Values of `Host` accepted besides the loopback names, in lower case.
    pub allowed_hosts: Vec<String>,
    /// Bytes.
    pub max_body: usize,
    #[serde(serialize_with = "print::duration")]
    pub drain_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Storage {
    /// The file that `storage.url` names; relative to the working directory.
    pub path: PathBuf,
    /// 0 keeps everything.
    pub retention_days: u32,
}

/// A problem of the configuration, and its place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    fn at(origin: &Origin, problem: impl Display) -> Self {
        ConfigError(format!("{origin}: {problem}"))
    }
}

impl Config {
    /// Loads the configuration of this process. From then on its secrets are redacted.
    ///
    /// `file` is the value of `--config`; without it, [`DEFAULT_FILE`] is read if it exists. An
    /// existing file that cannot be read is an error: the defaults would make a different server.
    /// `listen` is the value of `--listen`.
    ///
    /// # Errors
    ///
    /// The first problem, as `file:line: problem`, or with the name of the variable or flag.
    pub fn load(file: Option<&Path>, listen: Option<&str>) -> Result<Self, ConfigError> {
        let text = match file {
            Some(file) => Some((file, read(file)?)),
            None => {
                let file = Path::new(DEFAULT_FILE);
                read_if_present(file)?.map(|text| (file, text))
            }
        };
        let name = text.as_ref().map(|(file, _)| file.display().to_string());
        let layer = name.as_deref().zip(text.as_ref().map(|(_, text)| text.as_str()));
        let environment: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })
            .collect();
        let config = Self::from_layers(layer, &environment, listen)?;
        set_secrets(config.secrets(&environment));
        Ok(Config { file: text.map(|(file, _)| file.to_owned()), ..config })
    }

    /// [`Config::load`] without I/O: `file` is name and text, `environment` holds all variables.
    fn from_layers(
        file: Option<(&str, &str)>,
        environment: &[(String, String)],
        listen: Option<&str>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Lines::builtin(BUILTIN).parse()?;
        let known = layers.clone();
        // An unchanged copy of the shipped file sets nothing.
        if let Some((name, text)) = file.filter(|(_, text)| *text != BUILTIN) {
            overlay(&mut layers, &known, Lines::file(name, text).parse()?)?;
        }
        let warnings = overlay_environment(&mut layers, &known, environment)?;
        if let Some(listen) = listen {
            let at = Origin::Flag("--listen");
            set(&mut layers, "server", "listen", at, Value::Text(listen.to_owned()));
        }
        let mut section = |name: &'static str| {
            let entry = layers.remove(name).ok_or_else(|| {
                let problem = format!("[{name}] is missing");
                ConfigError::at(&Origin::Builtin { line: 1 }, problem)
            })?;
            Section::open(name, entry, &keys_of(&known, name))
        };
        let server = server(section("server")?)?;
        let storage = storage(section("storage")?)?;
        let (capacity, quotas, queue_max) = capacity(section("limits")?)?;
        let defaults_section = section("defaults")?;
        let otlp = otlp::read(section("otlp")?)?;
        let agents = agent::read_all(layers.remove("agents"), known.get("agents"))?;
        let defaults = defaults(defaults_section, &agents, queue_max)?;
        Ok(Config {
            server,
            storage,
            capacity,
            quotas,
            defaults,
            otlp,
            agents,
            file: None,
            warnings,
        })
    }
}

/// Reads a file's text.
fn read(file: &Path) -> Result<String, ConfigError> {
    text_of(file, fs::read(file).map_err(|error| cannot_read(file, &error))?)
}

/// Reads a file's text; `None` if the file does not exist.
fn read_if_present(file: &Path) -> Result<Option<String>, ConfigError> {
    match fs::read(file) {
        Ok(bytes) => text_of(file, bytes).map(Some),
        Err(error) if is_absent(file, &error) => Ok(None),
        Err(error) => Err(cannot_read(file, &error)),
    }
}

/// Whether `error`, from reading `file`, means that the file does not exist. A dangling link does
/// not count as absent, neither as the file itself nor as a directory on its path.
fn is_absent(file: &Path, error: &io::Error) -> bool {
    let mut paths = file.ancestors().filter(|path| !path.as_os_str().is_empty());
    let nearest = paths.find(|path| path.symlink_metadata().is_ok());
    error.kind() == ErrorKind::NotFound && nearest.is_none_or(|path| path.metadata().is_ok())
}

fn cannot_read(file: &Path, error: &io::Error) -> ConfigError {
    ConfigError(format!("{}: cannot be read: {error}", file.display()))
}

fn text_of(file: &Path, bytes: Vec<u8>) -> Result<String, ConfigError> {
    String::from_utf8(bytes).map_err(|error| {
        let line = line_of(error.as_bytes(), error.utf8_error().valid_up_to());
        let name = file.display().to_string();
        ConfigError::at(&Origin::File { name, line }, "is not UTF-8")
    })
}

fn server(mut section: Section<'_>) -> Result<Server, ConfigError> {
    let (listen, at) = section.text("listen")?;
    let listen: SocketAddr = listen.trim().parse().map_err(|_| {
        let problem = format!("must be an address such as \"127.0.0.1:7433\", found {listen:?}");
        section.bad(&at, "listen", problem)
    })?;
    if !listen.ip().to_canonical().is_loopback() {
        let problem = format!(
            "must be a loopback address: {listen} is reachable from other machines, and this \
             version has no tokens to protect it"
        );
        return Err(section.bad(&at, "listen", problem));
    }
    let allowed_hosts = section
        .texts("allowed_hosts")?
        .into_iter()
        .map(|(host, at)| {
            let is_invalid = |c: char| !(c.is_ascii_alphanumeric() || ".-_:[]".contains(c));
            if host.is_empty() || host.contains(is_invalid) {
                let problem =
                    format!("must be hosts such as \"greenroom.example:7433\", found {host:?}");
                return Err(section.bad(&at, "allowed_hosts", problem));
            }
            Ok(host.to_ascii_lowercase())
        })
        .collect::<Result<_, _>>()?;
    Ok(Server {
        listen,
        allowed_hosts,
        max_body: section.size("max_body")?,
        drain_timeout: section.duration("drain_timeout", Duration::ZERO..=DURATION_MAX)?,
    })
}

fn storage(mut section: Section<'_>) -> Result<Storage, ConfigError> {
    let (url, at) = section.text("url")?;
    let path = url.strip_prefix("sqlite:").map(|path| path.strip_prefix("//").unwrap_or(path));
    // SQLite would interpret `:memory:` and `?options`, which break durability.
    let is_usable = |path: &&str| {
        !path.is_empty() && !path.starts_with(':') && !path.contains(['?', '\0', '#'])
    };
    let Some(path) = path.filter(is_usable) else {
        let problem = format!("must be \"sqlite:\" and the path of a file, found {url:?}");
        return Err(section.bad(&at, "url", problem));
    };
    let path = PathBuf::from(path);
    Ok(Storage { path, retention_days: section.integer("retention_days", 0..=36_500)? })
}

/// Reads `[limits]`: the server's capacity and quotas, and how many tasks of one group may wait.
fn capacity(mut section: Section<'_>) -> Result<(Capacity, QuotaMax, usize), ConfigError> {
    let running_groups = section.count("running_groups")?;
    let resident_agents = section.count("resident_agents")?;
    let queue_max = section.count("queue")?;
    let line_bytes_max = section.size("line")?;
    let quotas = QuotaMax {
        groups: section.count("groups")? as u64,
        queued_bytes: section.size_up_to("queued", QUOTA_BYTES_MAX)?,
        waits: section.count("waits")? as u64,
        streams: section.count("streams")? as u64,
        locks: section.count("locks")? as u64,
        permissions: section.count("permissions")? as u64,
        unread_bytes: section.size_up_to("unread", QUOTA_BYTES_MAX)?,
    };
    Ok((Capacity { running_groups, resident_agents, line_bytes_max }, quotas, queue_max))
}

fn defaults(
    mut section: Section<'_>,
    agents: &BTreeMap<String, Arc<Profile>>,
    queue_max: usize,
) -> Result<Defaults, ConfigError> {
    let (agent, at) = section.text("agent")?;
    if !agents.contains_key(&agent) {
        let names: Vec<&str> = agents.keys().map(String::as_str).collect();
        let problem = format!("must be one of the profiles {}, found {agent:?}", names.join(", "));
        return Err(section.bad(&at, "agent", problem));
    }
    let auto_compact = section.take("auto_compact")?;
    let auto_compact = section.share("auto_compact", &auto_compact)?;
    let permission_policy = permission_policy(&mut section)?;
    let permission_ms = section.duration_ms("permission_timeout", TIMEOUT_MIN..=DURATION_MAX)?;
    let on_interrupt = section.choice(
        "on_interrupt",
        &[
            ("auto", OnInterrupt::Auto),
            ("hold", OnInterrupt::Hold),
            ("continue", OnInterrupt::Continue),
        ],
    )?;
    let retry = section.choice(
        "retry",
        &[
            ("no_output", RetryPolicy::NoOutput),
            ("undelivered", RetryPolicy::Undelivered),
            ("never", RetryPolicy::Never),
        ],
    )?;
    let retry_base_ms = section.duration_ms("retry_base", TIMEOUT_MIN..=DURATION_MAX)?;
    let turn_ms = section.duration_ms("turn_timeout", TIMEOUT_MIN..=DURATION_MAX)?;
    let compaction_ms = section.duration_ms("compaction_timeout", TIMEOUT_MIN..=DURATION_MAX)?;
    let lock_ttl = section.duration_ms("lock_ttl", TIMEOUT_MIN..=LOCK_TTL_MAX)?;
    let lock_ttl = Ttl::from_ms(lock_ttl).map_err(|err| ConfigError(err.to_string()))?;
    let idle_ms = section.duration_ms("idle_timeout", Duration::ZERO..=DURATION_MAX)?;
    let limits = Limits {
        turn_ms,
        compaction_ms,
        idle_ms,
        permission_ms,
        retry_base_ms,
        queue_max,
        queue_bytes_max: QUEUE_BYTES_MAX,
    };
    Ok(Defaults { agent, limits, auto_compact, lock_ttl, retry, on_interrupt, permission_policy })
}

/// Reads one word, or a table of words: for `default` and for the kinds of tools in ACP.
fn permission_policy(section: &mut Section<'_>) -> Result<PermissionPolicy, ConfigError> {
    const KEY: &str = "permission_policy";
    const WORDS: [(&str, Policy); 3] =
        [("ask", Policy::Ask), ("allow", Policy::Allow), ("reject", Policy::Reject)];
    if !section.is_table(KEY) {
        return section.choice(KEY, &WORDS).map(PermissionPolicy::from);
    }
    let mut policy = PermissionPolicy::default();
    for (kind, (word, at)) in section.text_table(KEY)? {
        let policy_of_kind = section.one_of(KEY, &word, &at, &WORDS)?;
        if kind == "default" {
            policy.default = policy_of_kind;
        } else if TOOL_KINDS.contains(&kind.as_str()) {
            policy.kinds.insert(kind, policy_of_kind);
        } else {
            let kinds = TOOL_KINDS.join(", ");
            let problem =
                format!("has an unknown kind of tool {kind:?}; known kinds: default, {kinds}");
            return Err(section.bad(&at, KEY, problem));
        }
    }
    Ok(policy)
}

#[cfg(test)]
mod tests;
