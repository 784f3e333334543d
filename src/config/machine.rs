//! What the configuration names and this machine lacks. Probable mistakes, and no errors: a program
//! may be installed, and a directory mounted, while the server runs.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
};

use greenroom_actors::{process::sandbox::Kernel, profile::Profile};

use super::Config;

impl Config {
    /// Returns a sentence for each agent that cannot start, as its sandbox cannot be made here.
    pub fn without_sandbox(&self) -> Vec<String> {
        let path = env::var_os("PATH").unwrap_or_default();
        let kernel = Kernel::probe(path, self.agents.values().map(|profile| &**profile));
        let problem = |profile: &Arc<Profile>| {
            let problem = kernel.report(profile).problem?;
            Some(format!("agents.{}: sandbox: {problem}", profile.name))
        };
        self.agents.values().filter_map(problem).collect()
    }

    /// Returns what no agent in a sandbox may reach besides the data directory of its server.
    pub fn hidden(&self) -> Vec<PathBuf> {
        self.file.iter().map(|file| file.canonicalize().unwrap_or_else(|_| file.clone())).collect()
    }

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
