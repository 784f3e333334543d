//! Which files a run may reach: the system's, those of its program, and its own.

use std::{
    fs, io,
    io::Read as _,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{Access, access};

use super::{Confinement, Program};

/// Programs, libraries and settings of the system, and what names are resolved and certificates
/// are checked by. Those that do not exist are left out.
pub(super) const SYSTEM: [&str; 15] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc",
    "/opt",
    "/sys",
    "/nix/store",
    "/run/current-system",
    "/run/systemd/resolve",
    "/run/nscd",
    "/var/lib/ca-certificates",
];

/// The parts of an installation that has its programs in a directory `bin`.
const INSTALLED: [&str; 4] = ["bin", "lib", "lib64", "libexec"];

/// Directories that are not readable because a program lies in them.
const WIDE: [&str; 4] = ["/", "/tmp", "/var/tmp", "/dev/shm"];

/// The files that a run may reach, by canonical path.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    /// To read and execute, with all below.
    pub read: Vec<PathBuf>,
    /// To list, as something below is hidden.
    pub listed: Vec<PathBuf>,
    /// To write as well, besides the working directory.
    pub write: Vec<PathBuf>,
    /// The working directory.
    pub cwd: PathBuf,
    /// The program, if it was found.
    program: Option<PathBuf>,
}

impl Places {
    /// Finds them on this machine.
    ///
    /// # Errors
    ///
    /// A directory that the profile or the group names is missing, or shows what is hidden.
    pub fn find(confinement: &Confinement, program: &Program<'_>) -> io::Result<Self> {
        let hidden: Vec<PathBuf> = confinement.hidden.iter().map(|path| real(path)).collect();
        let mut places = Self::default();
        for path in &confinement.own {
            places.write.push(path.canonicalize()?);
        }
        places.cwd = named("the working directory", &program.cwd, &hidden, Beside::Within)?;
        for (what, path) in &confinement.write {
            places.write.push(named(what, path, &hidden, Beside::Apart)?);
        }
        for path in &confinement.read {
            let path = named("sandbox_read", path, &hidden, Beside::Above)?;
            places.grant(&path, &hidden);
        }
        for path in SYSTEM {
            places.grant_link(Path::new(path), &hidden);
        }
        if let Some(linked) = fs::canonicalize("/etc/resolv.conf").ok().as_deref() {
            places.grant(linked, &hidden);
        }
        places.program = find(program.command, program);
        if let Some(found) = places.program.clone() {
            let interpreter = interpreter(&found, program);
            for file in [Some(found), interpreter].into_iter().flatten() {
                places.grant_program(&file, &hidden, confinement.home.as_deref());
            }
        }
        Ok(places)
    }

    /// Returns how the program is called inside of a sandbox where `/proc` is another one.
    pub fn command(&self, command: &Path) -> PathBuf {
        match &self.program {
            Some(program) if command.starts_with("/proc") => real(program),
            _ => command.to_owned(),
        }
    }

    /// Grants what `path` leads to.
    fn grant_link(&mut self, path: &Path, hidden: &[PathBuf]) {
        if let Ok(path) = path.canonicalize() {
            self.grant(&path, hidden);
        }
    }

    /// Grants the canonical `path` but for what is hidden in it. Links below it are not followed.
    fn grant(&mut self, path: &Path, hidden: &[PathBuf]) {
        if hidden.iter().any(|hidden| path.starts_with(hidden)) {
            return;
        }
        if !hidden.iter().any(|hidden| hidden.starts_with(path)) {
            if !self.read.iter().any(|granted| path.starts_with(granted)) {
                self.read.push(path.to_owned());
            }
            return;
        }
        self.listed.push(path.to_owned());
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| !kind.is_symlink()) {
                self.grant(&entry.path(), hidden);
            }
        }
    }

    /// Grants what a program needs of its installation: by the path by which it is called, and by
    /// the one that this leads to.
    fn grant_program(&mut self, file: &Path, hidden: &[PathBuf], home: Option<&Path>) {
        let real = real(file);
        for file in [file, &real] {
            for path in installation(file) {
                // A program in a home directory gives no right to read all of that.
                let is_wide = WIDE.iter().any(|wide| Path::new(wide) == path)
                    || home.is_some_and(|home| home.starts_with(&path));
                self.grant_link(if is_wide { file } else { &path }, hidden);
            }
        }
    }
}

/// Returns the canonical path of a directory; the path itself if it has none.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// How a directory that is named may stand to what is hidden.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// It may lie within it: another check has allowed that.
    Within,
    /// It may hold it, as that is left out.
    Above,
    /// Neither.
    Apart,
}

/// Returns the canonical form of a path that `what` names.
///
/// # Errors
///
/// It is missing, or stands to what is hidden as `may` does not allow.
fn named(what: &str, path: &Path, hidden: &[PathBuf], may: Beside) -> io::Result<PathBuf> {
    let shown = path.display();
    let real =
        path.canonicalize().map_err(|err| io::Error::other(format!("{what}: {shown}: {err}")))?;
    for hidden in hidden {
        let how = match (hidden.starts_with(&real), real.starts_with(hidden)) {
            (_, true) if may != Beside::Within => "lies in",
            (true, false) if may != Beside::Above => "holds",
            // A working directory that is the hidden one itself.
            (true, true) => "is",
            _ => continue,
        };
        return Err(io::Error::other(format!(
            "{what}: {shown} {how} greenroom's data directory or configuration, which no agent in \
             a sandbox may reach"
        )));
    }
    Ok(real)
}

/// Looks up a program as the exec will.
fn find(command: &Path, program: &Program<'_>) -> Option<PathBuf> {
    if command.components().count() > 1 || command.is_absolute() {
        return Some(program.cwd.join(command));
    }
    let path = program.env.iter().rev().find(|(key, _)| key == "PATH")?;
    let dirs = path.1.split(':').map(|dir| program.cwd.join(dir).join(command));
    dirs.into_iter().find(|file| file.is_file() && access(file, Access::EXEC_OK).is_ok())
}

/// Returns the program that a script names in its first line.
fn interpreter(script: &Path, program: &Program<'_>) -> Option<PathBuf> {
    let mut first = Vec::new();
    fs::File::open(script).ok()?.take(256).read_to_end(&mut first).ok()?;
    let line = first.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let named = Path::new(words.next()?);
    if named.file_name()? != "env" {
        return find(named, program);
    }
    let is_no_program = |word: &&str| word.starts_with('-') || word.contains('=');
    find(Path::new(words.find(|word| !is_no_program(word))?), program)
}

/// Returns the directories that a program needs besides itself: the outermost `node_modules` that
/// it lies in; a Python environment; the parts of an installation with a `bin`; else its own
/// directory.
fn installation(file: &Path) -> Vec<PathBuf> {
    let modules = Component::Normal("node_modules".as_ref());
    if let Some(at) = file.components().position(|part| part == modules) {
        return vec![file.components().take(at + 1).collect()];
    }
    let Some(dir) = file.parent() else { return vec![file.to_owned()] };
    match dir.parent() {
        Some(root) if dir.ends_with("bin") && root.join("pyvenv.cfg").is_file() => {
            vec![root.to_owned()]
        }
        Some(root) if dir.ends_with("bin") => {
            INSTALLED.iter().map(|part| root.join(part)).filter(|part| part.is_dir()).collect()
        }
        _ => vec![dir.to_owned()],
    }
}

#[cfg(test)]
mod tests;
