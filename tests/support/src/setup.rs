//! The configuration of a server under test, and its directory.

use std::{
    collections::BTreeMap,
    env,
    fmt::{Display, Write as _},
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process,
};

use tempfile::TempDir;

use super::{Server, programs::built};

/// The first port: all are below the kernel's ephemeral range, so that no other program gets one by
/// chance.
const FIRST_PORT: u16 = 15_000;
const PORTS: u16 = 10_000;

/// The name of the profile that most tests use.
pub const SCRIPTED: &str = "scripted";

/// A configuration under construction: the defaults, and the keys that a test sets.
#[derive(Clone)]
pub struct Setup {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
}

impl Default for Setup {
    /// Has one profile, `scripted`, which is the default. Permissions are rejected, and nothing is
    /// retried, so that no test waits for a backoff.
    fn default() -> Self {
        Self { sections: BTreeMap::new(), environment: Vec::new(), wrapper: Vec::new() }
            .text("storage", "url", "sqlite:data/greenroom.db")
            .text("defaults", "agent", SCRIPTED)
            .text("defaults", "permission_policy", "reject")
            .text("defaults", "retry", "never")
            .agent(SCRIPTED, &[])
    }
}

impl Setup {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key to a TOML value.
    pub fn set(mut self, section: &str, key: &str, value: impl Display) -> Self {
        let section = self.sections.entry(section.to_owned()).or_default();
        section.insert(key.to_owned(), value.to_string());
        self
    }

    /// Sets a key to a string.
    pub fn text(self, section: &str, key: &str, value: &str) -> Self {
        self.set(section, key, format_args!("{value:?}"))
    }

    /// Removes a key, so that its default applies.
    pub fn unset(mut self, section: &str, key: &str) -> Self {
        self.sections.entry(section.to_owned()).or_default().remove(key);
        self
    }

    /// Retries attempts without output; `base` is the first backoff.
    pub fn retries(self, base: &str) -> Self {
        self.text("defaults", "retry", "no_output").text("defaults", "retry_base", base)
    }

    /// Leaves permissions pending until a caller answers.
    pub fn asks(self) -> Self {
        self.text("defaults", "permission_policy", "ask")
    }

    /// Adds a profile: the scripted agent with these arguments.
    ///
    /// It compacts by `/compact`.
    pub fn agent(self, name: &str, arguments: &[&str]) -> Self {
        let section = format!("agents.{name}");
        self.text(&section, "command", scripted_agent().to_str().unwrap())
            .set(&section, "args", format_args!("{arguments:?}"))
            .set(&section, "env", "{ SCRIPT_DIR = \"$SCRIPT_DIR\" }")
            .set(&section, "compaction", "{ strategy = \"command\", command = \"/compact\" }")
    }

    /// Sets the detectors of compactions beyond ACP, for the profile `scripted`.
    pub fn signals(self, signals: &[&str]) -> Self {
        self.set(&format!("agents.{SCRIPTED}"), "signals", format_args!("{signals:?}"))
    }

    /// Adds a profile with a command of its own.
    pub fn command(self, name: &str, command: &str) -> Self {
        self.text(&format!("agents.{name}"), "command", command)
    }

    /// Sets a variable of the server's environment.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs the server under another program with these arguments.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Writes the configuration into a fresh directory.
    pub fn home(self) -> Home {
        self.home_in(TempDir::with_prefix("greenroom-it-").unwrap())
    }

    /// Writes the configuration into this directory.
    pub fn home_in(mut self, directory: TempDir) -> Home {
        let port = Port::take();
        let server = self.sections.entry("server".into()).or_default();
        server.entry("listen".into()).or_insert_with(|| format!("\"{}\"", port.address()));
        let Self { sections, environment, wrapper } = self;
        let program = env::var_os("IT_GREENROOM").map(PathBuf::from);
        let program = program.unwrap_or_else(|| built("greenroom").unwrap());
        let home = Home { directory, port, program, environment, wrapper, verifies: true };
        fs::create_dir(home.script()).unwrap();
        fs::create_dir(home.config().parent().unwrap()).unwrap();
        let mut text = String::new();
        for (section, keys) in &sections {
            writeln!(text, "[{section}]").unwrap();
            for (key, value) in keys {
                writeln!(text, "{key} = {value}").unwrap();
            }
        }
        home.write_config(&text.replace("$SCRIPT_DIR", home.script().to_str().unwrap()));
        home
    }

    /// Starts a server and waits until it is ready.
    #[track_caller]
    pub fn start(self) -> Server {
        Server::start(self.home())
    }
}

/// A directory with a configuration, and a reserved port.
pub struct Home {
    directory: TempDir,
    port: Port,
    /// The program under test: cargo's build, or another build that `IT_GREENROOM` names.
    pub program: PathBuf,
    pub environment: Vec<(String, String)>,
    /// A command that starts `greenroom serve`, such as `strace …`; it must keep the pid.
    pub wrapper: Vec<String>,
    /// Whether `greenroom verify` checks what a server leaves.
    pub verifies: bool,
}

impl Home {
    /// Replaces the configuration.
    pub fn write_config(&self, text: &str) {
        fs::write(self.config(), text).unwrap();
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The server's working directory.
    pub fn path(&self) -> PathBuf {
        self.directory.path().canonicalize().unwrap()
    }

    /// Returns a path in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.file("config/greenroom.toml")
    }

    /// The database that the configuration names.
    pub fn database(&self) -> PathBuf {
        let config = fs::read_to_string(self.config()).unwrap();
        let url = config.lines().find_map(|line| line.trim().strip_prefix("url = \"sqlite:"));
        self.path().join(url.unwrap().trim_end_matches('"'))
    }

    pub fn data(&self) -> PathBuf {
        self.file("data")
    }

    /// The scripted agents' control directory.
    pub fn script(&self) -> PathBuf {
        self.file("script")
    }
}

/// The scripted agent's program, which cargo builds as an example with the tests.
pub fn scripted_agent() -> PathBuf {
    built("examples/scripted-agent").unwrap()
}

/// A port, reserved among the tests of this machine by a file lock.
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.number))
    }

    pub fn take() -> Self {
        let directory = env::temp_dir().join("greenroom-it-ports");
        fs::create_dir_all(&directory).unwrap();
        let start = process::id() as usize * 37;
        for offset in 0..usize::from(PORTS) {
            let number = FIRST_PORT + ((start + offset) % usize::from(PORTS)) as u16;
            let Ok(lock) = File::create(directory.join(number.to_string())) else { continue };
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self { number, _lock: lock };
            }
        }
        panic!("no free port from {FIRST_PORT} on")
    }
}
