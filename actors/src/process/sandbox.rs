//! The sandbox of an agent (C25): what it may reach, and the kernel's means that hold it there.
//!
//! The server describes it, and the shim builds it before the fork: what a started agent could
//! change is looked up by no other process later. Between fork and exec the child only enters what
//! is ready. The shim itself stays outside, so that it can end the tree and use control groups.

// How `bwrap` is called.
mod bubblewrap;
// System calls by which a connection evades Landlock.
mod filter;
// What this kernel can hold of a level.
mod kernel;
// The rules of Landlock.
mod landlock;
// Which files a run may reach.
mod places;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::DirBuilder,
    io,
    os::{fd::BorrowedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};
use seccompiler::BpfProgram;
use serde::{Deserialize, Serialize};

pub use self::kernel::{Kernel, Report};
use self::places::Places;
use crate::profile::SandboxLevel;

/// What one run may reach, besides the system's programs and libraries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Confinement {
    /// What holds it: not [`SandboxLevel::None`].
    pub level: SandboxLevel,
    /// Directories of the run, which are created for the owner alone: they may lie in a hidden one.
    pub own: Vec<PathBuf>,
    /// What `sandbox_read` names.
    pub read: Vec<PathBuf>,
    /// What else the run writes in, each with the key or variable that names it.
    pub write: Vec<(String, PathBuf)>,
    /// What is out of reach, also below a directory that is within.
    pub hidden: Vec<PathBuf>,
    /// The home directory of the server's user: never readable because a program lies in it.
    pub home: Option<PathBuf>,
    /// Its TCP ports.
    pub network: Network,
    /// The server's `PATH`, to find `bwrap` in.
    pub search: OsString,
}

/// Which TCP ports an agent may connect to and listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// All but these, which are the server's.
    AllBut(BTreeSet<u16>),
    /// These alone. None: no network at all.
    Only(BTreeSet<u16>),
}

/// The process of an agent before its sandbox is built.
pub(super) struct Program<'a> {
    pub command: &'a Path,
    pub args: &'a [String],
    pub env: &'a [(String, String)],
    /// The path of the working directory, and the directory itself.
    pub cwd: PathBuf,
    pub dir: BorrowedFd<'a>,
}

/// A sandbox that is ready to be entered.
pub(super) struct Sandbox {
    /// What to execute in place of the agent's own command.
    command: PathBuf,
    args: Vec<OsString>,
    barrier: Barrier,
}

/// What the child enters between fork and exec.
pub(super) struct Barrier {
    /// Whether it gives up root's capabilities: by CAP_PERFMON alone it would read the memory of
    /// other processes. `bwrap` needs them, and gives them up itself.
    drops_capabilities: bool,
    ruleset: Option<::landlock::RulesetCreated>,
    filters: Vec<BpfProgram>,
}

impl Confinement {
    /// Builds the sandbox of `program`.
    ///
    /// # Errors
    ///
    /// A directory is missing or would show what is hidden, `bwrap` is not installed, or the kernel
    /// has no Landlock.
    pub(super) fn build(&self, program: &Program<'_>) -> io::Result<Sandbox> {
        for dir in &self.own {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let places = Places::find(self, program)?;
        let ruleset = landlock::ruleset(self, &places, program.dir)?;
        let filters = filter::programs(self)?;
        let drops_capabilities = !self.is_wrapped();
        let barrier = Barrier { drops_capabilities, ruleset, filters };
        let args = program.args.iter().map(OsString::from);
        Ok(match self.level {
            SandboxLevel::Bubblewrap => {
                let wrapper = bubblewrap::find(&self.search)?;
                let own = bubblewrap::args(self, &places, program);
                let command = places.command(program.command).into_os_string();
                let args = own.into_iter().chain([command]).chain(args).collect();
                Sandbox { command: wrapper, args, barrier }
            }
            SandboxLevel::None | SandboxLevel::Landlock => {
                Sandbox { command: program.command.to_owned(), args: args.collect(), barrier }
            }
        })
    }

    /// Whether the main process is `bwrap`, which a TERM would end with all that it holds.
    pub(super) fn is_wrapped(&self) -> bool {
        self.level == SandboxLevel::Bubblewrap
    }
}

impl Sandbox {
    /// Returns command, arguments, and what the child has to enter.
    pub(super) fn into_parts(self) -> (PathBuf, Vec<OsString>, Option<Barrier>) {
        (self.command, self.args, Some(self.barrier))
    }
}

impl Barrier {
    /// Confines this process and all that it starts, for ever. Neither allocates nor locks, unless
    /// it fails.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(super) fn enter(&mut self) -> io::Result<()> {
        if self.drops_capabilities {
            drop_capabilities()?;
        }
        if let Some(ruleset) = self.ruleset.take() {
            ruleset.restrict_self().map_err(io::Error::other)?;
        }
        for filter in &self.filters {
            seccompiler::apply_filter(filter).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// Gives up all capabilities, for this process and all that it starts.
fn drop_capabilities() -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        // Refused to a user without capabilities, which has none to give up.
        _ = remove_capability_from_bounding_set(capability);
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(set_capabilities(None, sets)?)
}
