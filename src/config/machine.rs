//! What the configuration names and this machine lacks. Probable mistakes, and no errors: a program
//! may be installed, and a directory mounted, while the server runs.

use std::{env, ffi::OsStr, path::Path};

use greenroom_actors::profile::Profile;

use super::Config;

impl Config {
    /// Returns a sentence for each command that cannot be found and each root that is no directory.
    pub fn missing(&self) -> Vec<String> {
        let path = env::var_os("PATH");
        self.agents.values().flat_map(|profile| missing(profile, path.as_deref())).collect()
    }
}

fn missing(profile: &Profile, path: Option<&OsStr>) -> Vec<String> {
    let name = &profile.name;
    let command = profile
        .find_program(path)
        .err()
        .map(|why| format!("agents.{name}: {why}: this agent cannot start"));
    let roots = profile.cwd_roots.iter().filter(|root| !root.is_dir()).map(|root| {
        let (root, what) = (root.display(), absence(root));
        format!("agents.{name}: cwd_roots: {root} {what}: no group can work there")
    });
    command.into_iter().chain(roots).collect()
}

fn absence(root: &Path) -> &'static str {
    if root.exists() { "is no directory" } else { "does not exist" }
}
