//! The rules of Landlock: files, TCP ports, signals and abstract Unix sockets.

use std::{io, os::fd::BorrowedFd, path::Path};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort,
    PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _,
    RulesetError, Scope, make_bitflags,
};

use super::{Confinement, Network, places::Places};
use crate::profile::SandboxLevel;

/// The versions that brought what is used here: ports in 4, device controls in 5, scopes in 6.
const FILES: ABI = ABI::V5;
const PORTS: ABI = ABI::V4;
const SCOPES: ABI = ABI::V6;

/// To read and to execute.
const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir | Execute});
const LIST: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadDir});
const DEVICE: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{ReadFile | WriteFile | ReadDir | IoctlDev | Truncate});

/// What every program may use of `/dev`.
const DEVICES: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
];

/// Returns the rules of a sandbox: all of them at the level `landlock`, and beside bubblewrap what
/// that does not hold. `None`: beside bubblewrap, on a kernel without rules of ports.
///
/// # Errors
///
/// The kernel has no Landlock, and the level is `landlock`; or a rule is refused.
pub(super) fn ruleset(
    confinement: &Confinement,
    places: &Places,
    cwd: BorrowedFd<'_>,
) -> io::Result<Option<RulesetCreated>> {
    // Rules on files would forbid the mounts that bubblewrap makes.
    let places = (confinement.level == SandboxLevel::Landlock).then_some((places, cwd));
    let has_ports = has(4);
    match places {
        None if !has_ports => Ok(None),
        Some(_) if !has(1) => Err(io::Error::other(ABSENT)),
        _ => build(confinement, places, has_ports).map_err(io::Error::other).map(Some),
    }
}

/// Why a profile with the level `landlock` cannot start.
pub(super) const ABSENT: &str = "this kernel has no Landlock (Linux 5.13 or newer, with `landlock` \
    among its security modules: the boot parameter `lsm`); set `sandbox` of the profile to \
    \"bubblewrap\" or \"none\"";

fn build(
    confinement: &Confinement,
    places: Option<(&Places, BorrowedFd<'_>)>,
    has_ports: bool,
) -> Result<RulesetCreated, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessNet::from_all(PORTS))?
        .scope(Scope::from_all(SCOPES))?;
    if places.is_some() {
        ruleset = ruleset.handle_access(AccessFs::from_all(FILES))?;
    }
    let mut created = ruleset.create()?;
    if let Some((places, cwd)) = places {
        created =
            files(created, places)?.add_rule(PathBeneath::new(cwd, AccessFs::from_all(FILES)))?;
    }
    if !has_ports {
        return Ok(created);
    }
    // A list of what is forbidden does not exist: all but one of the ports are 65,535 rules, which
    // take the kernel some 4 MB a run, and the shim some 100 ms.
    match &confinement.network {
        Network::AllBut(closed) => {
            let open = (0..=u16::MAX).filter(|port| !closed.contains(port));
            ports(created, open)
        }
        Network::Only(open) => ports(created, open.iter().copied()),
    }
}

fn ports(
    created: RulesetCreated,
    mut open: impl Iterator<Item = u16>,
) -> Result<RulesetCreated, RulesetError> {
    open.try_fold(created, |created, port| {
        created.add_rule(NetPort::new(port, AccessNet::from_all(PORTS)))
    })
}

fn files(created: RulesetCreated, places: &Places) -> Result<RulesetCreated, RulesetError> {
    let write = AccessFs::from_all(FILES);
    let devices = DEVICES.iter().map(|path| (Path::new(path), DEVICE));
    let own = [("/dev/shm", write), ("/dev", LIST), ("/proc", READ)];
    let own = own.iter().map(|(path, access)| (Path::new(path), *access));
    let read = places.read.iter().map(|path| (path.as_path(), READ));
    let listed = places.listed.iter().map(|path| (path.as_path(), LIST));
    let written = places.write.iter().map(|path| (path.as_path(), write));
    let mut rules = own.chain(devices).chain(read).chain(listed).chain(written);
    rules.try_fold(created, |created, (path, access)| match PathFd::new(path) {
        Ok(file) => created.add_rule(PathBeneath::new(file, access)),
        // What does not exist needs no rule.
        Err(_) => Ok(created),
    })
}

/// Whether this kernel has version `version` of Landlock, in so far as greenroom uses it.
pub(super) fn has(version: u8) -> bool {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let ruleset = match version {
        ..=3 => ruleset.handle_access(AccessFs::from_all(ABI::from(i32::from(version)))),
        4 => ruleset.handle_access(AccessNet::from_all(PORTS)),
        5 => ruleset.handle_access(AccessFs::from_all(FILES)),
        _ => ruleset.scope(Scope::from_all(SCOPES)),
    };
    ruleset.and_then(Ruleset::create).is_ok()
}
