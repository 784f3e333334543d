//! The directory of one run: configuration, database, the agents' journal, logs.

use std::{fs, io::Write as _};

use greenroom_test_support::{Home, programs::built};
use serde_json::json;
use tempfile::TempDir;

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

/// Creates the directory, which stays unless [`remove`]d, and writes the configuration.
pub fn create(plan: &Plan) -> Result<Home> {
    let mut setup = plan
        .setup
        .clone()
        // Each life has an address of its own, so that no request reaches a later one.
        .text("server", "listen", "127.0.0.1:0")
        .text("server", "drain_timeout", "2s")
        .set("storage", "retention_days", 1)
        .text("limits", "line", LINE)
        .text("defaults", "agent", "plain")
        .text("defaults", "permission_timeout", "2s")
        .retries("50ms")
        .text("defaults", "turn_timeout", "2s")
        .text("defaults", "compaction_timeout", "3s")
        .text("defaults", "lock_ttl", "10s");
    for (name, switches, compaction) in PROFILES {
        let section = format!("agents.{name}");
        let arguments = [&["--journal-output"], switches].concat();
        setup = setup.agent(name, &arguments).text(&section, "start_timeout", "5s");
        if compaction != "command" {
            let strategy = format!("{{ strategy = {compaction:?} }}");
            setup = setup.set(&section, "compaction", strategy);
        }
    }
    // Beside the build, not in a temporary directory: that may be in memory, where a sync costs
    // nothing.
    let rig = built("")?.join("rig");
    fs::create_dir_all(&rig)?;
    let mut directory = TempDir::with_prefix_in(format!("seed-{}-", plan.seed), rig)?;
    directory.disable_cleanup(true);
    let home = setup.home_in(directory);
    fs::write(home.file("script/on-summary"), "[[reply:the gist]]")?;
    fs::write(home.file("script/on-compact"), "[[usage:10:1000]][[reply:Compacted.]]")?;
    Ok(home)
}

/// Notes an event of the server's `life` in the agents' journal.
pub fn note(home: &Home, event: &str, life: usize) -> Result<()> {
    let file = home.file("script/journal.jsonl");
    let mut journal = fs::File::options().append(true).create(true).open(file)?;
    journal.write_all(format!("{}\n", json!({ "event": event, "life": life })).as_bytes())?;
    Ok(journal.sync_data()?)
}

/// Deletes all of it.
pub fn remove(home: &Home) -> Result<()> {
    Ok(fs::remove_dir_all(home.path())?)
}
