//! How `bwrap` is called: a file system, a process table and, if need be, a network of its own.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::fs::{Access, access};

use super::{
    Confinement, Network, Program,
    places::{Places, SYSTEM},
};

/// What every sandbox has: it ends with its parent, sees no process, memory or queue of others, and
/// has no capability, with which root could undo the rest.
const BASE: [&str; 10] = [
    "--cap-drop",
    "ALL",
    "--die-with-parent",
    "--unshare-user",
    "--unshare-pid",
    "--unshare-ipc",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
];

/// Finds `bwrap` in a `PATH`.
///
/// # Errors
///
/// It is not installed.
pub(super) fn find(search: &OsStr) -> io::Result<PathBuf> {
    let dirs = search.as_bytes().split(|byte| *byte == b':').map(OsStr::from_bytes);
    let mut files = dirs.map(|dir| Path::new(dir).join("bwrap")).filter(|file| file.is_absolute());
    files.find(|file| file.is_file() && access(file, Access::EXEC_OK).is_ok()).ok_or_else(|| {
        let search = search.display();
        io::Error::other(format!(
            "bwrap was not found in the server's PATH ({search}): install bubblewrap, or set \
             `sandbox` of the profile to \"landlock\" or \"none\""
        ))
    })
}

/// Makes an empty sandbox. Blocks for some milliseconds.
///
/// # Errors
///
/// `bwrap` is not installed, or the system forbids what it needs; in its own words.
pub(super) fn probe(search: &OsStr) -> io::Result<()> {
    let bwrap = find(search)?;
    let made = Command::new(&bwrap)
        .args(["--ro-bind", "/", "/"])
        .args(BASE)
        .arg("--")
        .arg(&bwrap)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .output()?;
    if made.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&made.stderr);
    let why = why.lines().next().unwrap_or("bwrap failed");
    Err(io::Error::other(format!(
        "{why}: let this user create user namespaces (and /proc be mounted, in a container), or \
         set `sandbox` of the profile to \"landlock\" or \"none\""
    )))
}

/// Returns the arguments up to the agent's own command.
pub(super) fn args(
    confinement: &Confinement,
    places: &Places,
    program: &Program<'_>,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = BASE.map(OsString::from).into();
    let mut add = |words: &[&OsStr]| args.extend(words.iter().map(|word| word.to_os_string()));
    if confinement.network == Network::Only([].into()) {
        add(&["--unshare-net".as_ref()]);
    }
    for path in SYSTEM.map(Path::new) {
        if let Ok(target) = fs::read_link(path) {
            add(&["--symlink".as_ref(), target.as_ref(), path.as_ref()]);
        }
    }
    // Before all that may lie below it.
    if let Some(temporary) = temporary(program) {
        add(&["--bind".as_ref(), temporary.as_ref(), "/tmp".as_ref()]);
        add(&["--symlink".as_ref(), "../tmp".as_ref(), "/var/tmp".as_ref()]);
    }
    for dir in &places.listed {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if let Ok(target) = fs::read_link(entry.path()) {
                add(&["--symlink".as_ref(), target.as_ref(), entry.path().as_ref()]);
            }
        }
    }
    for path in &places.read {
        add(&["--ro-bind".as_ref(), path.as_ref(), path.as_ref()]);
    }
    for path in places.write.iter().chain([&places.cwd]) {
        add(&["--bind".as_ref(), path.as_ref(), path.as_ref()]);
    }
    add(&["--remount-ro".as_ref(), "/".as_ref()]);
    add(&["--chdir".as_ref(), places.cwd.as_ref(), "--".as_ref()]);
    args
}

/// Returns the run's own directory for temporary files, which is `/tmp` too inside.
fn temporary<'a>(program: &Program<'a>) -> Option<&'a Path> {
    let found = program.env.iter().rev().find(|(key, _)| key == "TMPDIR");
    found.map(|(_, path)| Path::new(path.as_str()))
}
