//! What this kernel can hold of a sandbox.

use std::ffi::{OsStr, OsString};

use serde::Serialize;

use super::{bubblewrap, landlock};
use crate::profile::{Profile, SandboxLevel};

/// What this machine has for sandboxes. The default: nothing.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// The newest version of Landlock that is in use; 0: none.
    landlock: u8,
    /// Why `bwrap` makes no sandbox here; `None`: it does, or was not tried.
    no_bubblewrap: Option<String>,
    /// The server's `PATH`.
    pub search: OsString,
}

/// What holds for an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Its profile's level.
    pub level: SandboxLevel,
    /// What the agent is kept from.
    pub holds: Vec<&'static str>,
    /// What this level promises and this kernel cannot do.
    pub missing: Vec<&'static str>,
    /// Why the agent cannot start.
    pub problem: Option<String>,
}

/// What a level keeps an agent from, and the first version of Landlock with which it does; 0: by
/// other means.
type Promise = (&'static str, u8);

#[rustfmt::skip]
const LANDLOCK: [Promise; 9] = [
    ("files",            1),
    ("ptrace",           1),
    ("rename",           2),
    ("truncate",         3),
    ("server_port",      4),
    ("devices",          5),
    ("signals",          6),
    ("abstract_sockets", 6),
    ("privileges",       0),
];

#[rustfmt::skip]
const BUBBLEWRAP: [Promise; 12] = [
    ("files",            0),
    ("ptrace",           0),
    ("rename",           0),
    ("truncate",         0),
    ("file_modes",       0),
    ("shared_memory",    0),
    ("unix_sockets",     0),
    ("server_port",      4),
    ("devices",          0),
    ("signals",          0),
    ("abstract_sockets", 6),
    ("privileges",       0),
];

impl Kernel {
    /// Asks the kernel; `search` is the server's `PATH`. Tries `bwrap` if a profile needs it.
    pub fn probe<'a>(search: OsString, profiles: impl Iterator<Item = &'a Profile>) -> Self {
        let landlock = (1..=6).take_while(|version| landlock::has(*version)).last().unwrap_or(0);
        let mut levels = profiles.map(|profile| profile.sandbox.level);
        let no_bubblewrap =
            levels.any(|level| level == SandboxLevel::Bubblewrap).then(|| tried(&search)).flatten();
        Self { landlock, no_bubblewrap, search }
    }

    /// Returns what holds for an agent of `profile`.
    pub fn report(&self, profile: &Profile) -> Report {
        let level = profile.sandbox.level;
        let promises: &[Promise] = match level {
            SandboxLevel::None => &[],
            SandboxLevel::Landlock => &LANDLOCK,
            SandboxLevel::Bubblewrap => &BUBBLEWRAP,
        };
        // Without a network there is no port to reach, and with bubblewrap no abstract socket.
        let has_network = profile.sandbox.network.as_ref().is_none_or(|ports| !ports.is_empty());
        let is_held = |(what, version): &&Promise| {
            let by_network = match *what {
                "server_port" => !has_network,
                "abstract_sockets" => !has_network && level == SandboxLevel::Bubblewrap,
                _ => false,
            };
            *version <= self.landlock || by_network
        };
        let (holds, missing): (Vec<_>, Vec<_>) = promises.iter().partition(is_held);
        let names = |promises: Vec<&Promise>| promises.iter().map(|promise| promise.0).collect();
        let problem = match level {
            SandboxLevel::Landlock if self.landlock == 0 => Some(landlock::ABSENT.to_owned()),
            SandboxLevel::Bubblewrap => self.no_bubblewrap.clone(),
            SandboxLevel::None | SandboxLevel::Landlock => None,
        };
        Report { level, holds: names(holds), missing: names(missing), problem }
    }
}

/// Returns why `bwrap` makes no sandbox; blocks until it has ended.
fn tried(search: &OsStr) -> Option<String> {
    bubblewrap::probe(search).err().map(|err| err.to_string())
}
