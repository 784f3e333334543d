//! The directory of one run: configuration, database, the agents' journal, logs.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process,
};

use greenroom_test_support::programs::built;
use serde_json::Value;

use crate::{Result, plan::Plan};

/// The longest line that an agent may write: prompts make longer and shorter ones.
const LINE: &str = "64KiB";

/// Profiles by name: the further arguments of the scripted agent, and its way to compact.
const PROFILES: [(&str, &[&str], &str); 5] = [
    ("plain", &[], "command"),
    ("loads", &["--no-resume"], "command"),
    ("forgets", &["--no-resume", "--no-load"], "command"),
    ("rotates", &[], "rotate"),
    ("broken", &["--exit-at-start", "3"], "none"),
];

/// A directory that is kept if the run fails.
pub struct Home {
    path: PathBuf,
}

impl Home {
    /// Creates the directory and writes the configuration.
    pub fn new(plan: &Plan) -> Result<Self> {
        // Beside the build, not in a temporary directory: that may be in memory, where a sync costs
        // nothing.
        let name = format!("rig/seed-{}-{}", plan.seed, process::id());
        let path = built("")?.join(name);
        fs::create_dir_all(path.join("script"))?;
        let home = Self { path: path.canonicalize()? };
        fs::write(home.config(), home.toml(plan)?)?;
        fs::write(home.file("script/on-summary"), "[[reply:the gist]]")?;
        fs::write(home.file("script/on-compact"), "[[usage:10:1000]][[reply:Compacted.]]")?;
        Ok(home)
    }

    fn toml(&self, plan: &Plan) -> Result<String> {
        let limits = &plan.limits;
        let mut toml = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\ndrain_timeout = \"2s\"\n\
             [storage]\nurl = \"sqlite:{data}/greenroom.db\"\nretention_days = 1\n\
             [limits]\nrunning_groups = {running}\nresident_agents = {resident}\n\
             queue = {queue}\nline = \"{LINE}\"\n\
             [defaults]\nagent = \"plain\"\nauto_compact = {auto_compact}\n\
             permission_policy = \"{policy}\"\npermission_timeout = \"2s\"\n\
             on_interrupt = \"{on_interrupt}\"\nretry = \"no_output\"\nretry_base = \"50ms\"\n\
             turn_timeout = \"2s\"\ncompaction_timeout = \"3s\"\nlock_ttl = \"10s\"\n\
             idle_timeout = \"{idle}ms\"\n",
            data = self.data().display(),
            running = limits.running_groups,
            resident = limits.resident_agents,
            queue = limits.queue,
            auto_compact = limits.auto_compact,
            policy = limits.permission_policy,
            on_interrupt = limits.on_interrupt,
            idle = limits.idle_ms,
        );
        for (name, switches, compaction) in PROFILES {
            let mut arguments = vec!["--journal-output"];
            arguments.extend_from_slice(switches);
            toml.push_str(&format!(
                "[agents.{name}]\ncommand = {agent:?}\nargs = {arguments:?}\n\
                 env = {{ SCRIPT_DIR = {script:?} }}\nstart_timeout = \"5s\"\n\
                 compaction = {{ strategy = \"{compaction}\"{command} }}\n",
                agent = built("examples/scripted-agent")?,
                script = self.file("script"),
                command = if compaction == "command" { ", command = \"/compact\"" } else { "" },
            ));
        }
        Ok(toml)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a path in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.file("rig.toml")
    }

    /// Returns the server's data directory.
    pub fn data(&self) -> PathBuf {
        self.file("data")
    }

    /// Writes a line of the rig's own into the agents' journal.
    pub fn note(&self, event: &Value) -> Result<()> {
        let file = self.file("script/journal.jsonl");
        let mut journal = File::options().append(true).create(true).open(file)?;
        journal.write_all(format!("{event}\n").as_bytes())?;
        Ok(journal.sync_data()?)
    }

    /// Returns the agents' journal so far, in order.
    pub fn journal(&self) -> Result<Vec<Value>> {
        let text = fs::read(self.file("script/journal.jsonl"))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Deletes all of it.
    pub fn remove(&self) -> Result<()> {
        Ok(fs::remove_dir_all(&self.path)?)
    }
}
