//! Why a server refuses to start: what an operator has to change first (exit code 2).

use greenroom_actors::{
    process::proc::{self, ProcError},
    storage::StoreError,
};
use rustix::process::{Resource, getrlimit};

use crate::config::Config;

/// Descriptors that the server needs for itself, with a reserve for clients.
const OWN_FILES: u64 = 128;
/// Descriptors that the server needs for each agent: three pipes, a socket and a pidfd.
const AGENT_FILES: u64 = 5;

/// What keeps a server from starting, and will until it is changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}; {MOUNT}")]
    NoProc(#[from] ProcError),
    #[error(
        "at most {found} files may be open (RLIMIT_NOFILE), and this configuration needs {needed}: \
         raise the limit (LimitNOFILE= of a systemd unit, --ulimit nofile= of a container, \
         ulimit -Hn), or set limits.resident_agents to {agents_max} or less"
    )]
    TooFewFiles { found: u64, needed: u64, agents_max: u64 },
    #[error(
        "at most {found} files may be open (RLIMIT_NOFILE), and a server with one agent needs \
         {needed}: raise the limit"
    )]
    NoFiles { found: u64, needed: u64 },
    /// A later version wrote the database.
    #[error(transparent)]
    TooNew(StoreError),
}

/// How to mend a missing `/proc`.
const MOUNT: &str = "greenroom finds and ends processes by it: mount it (mount -t proc proc /proc)";

impl Refusal {
    /// Checks what the server needs of the machine. Starts and creates nothing.
    ///
    /// # Errors
    ///
    /// The first requirement that is not met.
    pub fn check(config: &Config) -> Result<(), Self> {
        proc::check()?;
        check_files(getrlimit(Resource::Nofile).maximum, config.capacity.resident_agents)
    }
}

/// Checks that the limit of open files, to which the server raises its own, is enough for the
/// configured agents. `None`: unlimited.
fn check_files(limit: Option<u64>, resident_agents: usize) -> Result<(), Refusal> {
    let agents = u64::try_from(resident_agents).unwrap_or(u64::MAX);
    let needed = OWN_FILES.saturating_add(AGENT_FILES.saturating_mul(agents));
    let Some(found) = limit.filter(|found| *found < needed) else { return Ok(()) };
    Err(match found.saturating_sub(OWN_FILES) / AGENT_FILES {
        0 => Refusal::NoFiles { found, needed: OWN_FILES + AGENT_FILES },
        agents_max => Refusal::TooFewFiles { found, needed, agents_max },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_limit_of_open_files_is_compared_with_the_configured_agents() {
        #[rustfmt::skip]
        let cases = [
            ("unlimited",          None,      1_000_000, None),
            ("just enough",        Some(448), 64,        None),
            ("one too few",        Some(447), 64,        Some("needs 448: raise the limit (LimitNOFILE= of a systemd unit, --ulimit nofile= of a container, ulimit -Hn), or set limits.resident_agents to 63 or less")),
            ("for a single agent", Some(133), 2,         Some("resident_agents to 1 or less")),
            ("for no agent",       Some(132), 1,         Some("with one agent needs 133")),
            ("no number overflows", Some(1),  usize::MAX, Some("with one agent needs 133")),
        ];
        for (name, limit, agents, expected) in cases {
            let refused = check_files(limit, agents).err().map(|refusal| refusal.to_string());
            match expected {
                None => assert_eq!(refused, None, "{name}"),
                Some(expected) => {
                    let refused = refused.unwrap();
                    assert!(refused.contains(expected), "{name}: {refused}");
                }
            }
        }
    }
}
