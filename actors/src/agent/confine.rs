//! From a profile's sandbox to the confinement of one run: its directories, its environment, and
//! what of the server is out of its reach.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::{
    process::sandbox::{Confinement, Kernel, Network},
    profile::{Profile, SandboxLevel},
};

/// The directory of the agents' home directories, below the data directory.
const HOMES: &str = "homes";

/// What all sandboxes of a server have in common.
#[derive(Clone, Debug, Default)]
pub struct Sandboxes {
    /// What this machine has for them.
    pub kernel: Kernel,
    /// The data directory, which is out of reach but for the run's own directories.
    pub data: PathBuf,
    /// What else is out of reach.
    pub hidden: Vec<PathBuf>,
    /// The TCP ports at which the server listens.
    pub ports: BTreeSet<u16>,
    /// The home directory of the server's user.
    pub home: Option<PathBuf>,
}

impl Sandboxes {
    /// Returns the confinement of a run, and gives it a home directory and one for temporary files
    /// of its own, unless the profile names others. `None` if the profile has no sandbox.
    pub fn confine(
        &self,
        profile: &Profile,
        temporary: &Path,
        env: &mut Vec<(String, String)>,
    ) -> Option<Confinement> {
        let sandbox = &profile.sandbox;
        if sandbox.level == SandboxLevel::None {
            return None;
        }
        let mut own = Vec::new();
        let mut write = Vec::new();
        let home = self.data.join(HOMES).join(&profile.name);
        for (key, dir) in [("HOME", home.as_path()), ("TMPDIR", temporary)] {
            let is_named =
                profile.env.contains_key(key) || profile.env_pass.iter().any(|k| k == key);
            match env.iter().find(|(name, _)| is_named && name == key) {
                Some((_, named)) => write.push((key.to_owned(), named.into())),
                None => {
                    env.retain(|(name, _)| name != key);
                    env.push((key.to_owned(), dir.display().to_string()));
                    own.push(dir.to_owned());
                }
            }
        }
        write.extend(sandbox.write.iter().map(|path| ("sandbox_write".to_owned(), path.clone())));
        Some(Confinement {
            level: sandbox.level,
            own,
            read: sandbox.read.clone(),
            write,
            hidden: [&self.data].into_iter().chain(&self.hidden).cloned().collect(),
            home: self.home.clone(),
            network: match &sandbox.network {
                None => Network::AllBut(self.ports.clone()),
                Some(ports) => {
                    let ports = ports.iter().copied();
                    Network::Only(ports.filter(|port| !self.ports.contains(port)).collect())
                }
            },
            search: self.kernel.search.clone(),
        })
    }
}
