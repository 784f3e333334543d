//! The control group (v2) of a run, where the system allows one: it kills all members at once.
//!
//! The kernel does so by `cgroup.kill` (Linux 5.14), however fast the members fork. Without the
//! right to create one (most containers, a service without `Delegate=`), or with version 1 alone,
//! there is none, and the shim ends the tree process by process. It does that in either case, as
//! an agent may leave its group.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// What the name of a run's group begins with.
const PREFIX: &str = "greenroom-";

/// The group of one run: a directory below that of this process.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Creates the group of `run`, if the system allows it.
    pub fn make(run: &str) -> Option<Self> {
        let group = Self::named(run)?;
        fs::create_dir(&group.0).ok()?;
        // The group of an older kernel has no `cgroup.kill`, and is of no use.
        if group.0.join("cgroup.kill").exists() {
            return Some(group);
        }
        group.remove();
        None
    }

    /// Returns the group that another process created for `run`, if it exists.
    pub fn find(run: &str) -> Option<Self> {
        Self::named(run).filter(|group| group.0.is_dir())
    }

    /// Returns the groups that exist below that of this process, each with its run.
    pub fn all() -> Vec<(String, Self)> {
        let entries = parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten();
        let runs = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            let run = entry.file_name().to_str()?.strip_prefix(PREFIX)?.to_owned();
            Some((run, Self(entry.path())))
        });
        runs.collect()
    }

    fn named(run: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if run.is_empty() || !run.bytes().all(plain) {
            return None;
        }
        Some(Self(parent()?.join(format!("{PREFIX}{run}"))))
    }

    /// Opens the file to which a process writes `0` to enter the group.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn entrance(&self) -> io::Result<File> {
        File::options().write(true).open(self.0.join("cgroup.procs"))
    }

    /// Kills all members of the group. Logs a refusal of the kernel.
    pub fn kill(&self) {
        if let Err(err) = fs::write(self.0.join("cgroup.kill"), "1") {
            log::warn!(group:% = self.0.display(), err:%; "control group could not be killed");
        }
    }

    /// Removes the group, if it is empty.
    pub fn remove(&self) {
        // A group that stays does no harm: it is empty, and its name is not used again.
        _ = fs::remove_dir(&self.0);
    }
}

/// Returns the directory of this process's own group.
fn parent() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    own_dir(&mounts, &groups)
}

/// Returns the directory of this process's own group, from `/proc/self/mountinfo` and
/// `/proc/self/cgroup` (proc(5), cgroups(7)).
fn own_dir(mounts: &str, groups: &str) -> Option<PathBuf> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        if source.split(' ').next() != Some("cgroup2") {
            return None;
        }
        // Outside the mounted part, no group can be created.
        let below = Path::new(own).strip_prefix(root).ok()?;
        let climbs = below.components().any(|part| part == std::path::Component::ParentDir);
        (!climbs).then(|| Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_where_it_is_mounted() {
        let other = "30 29 0:26 / /proc rw - proc proc rw";
        let mount = |root: &str, point: &str| {
            format!("{other}\n35 29 0:30 {root} {point} rw,relatime shared:9 - cgroup2 cgroup2 rw")
        };
        #[rustfmt::skip]
        let cases = [
            ("alone",          mount("/", "/sys/fs/cgroup"),         "0::/a.slice/b.service",         Some("/sys/fs/cgroup/a.slice/b.service")),
            ("beside v1",      mount("/", "/sys/fs/cgroup/unified"), "9:pids:/x\n0::/",               Some("/sys/fs/cgroup/unified")),
            ("a part of it",   mount("/pod", "/sys/fs/cgroup"),      "0::/pod/one",                   Some("/sys/fs/cgroup/one")),
            ("another part",   mount("/pod", "/sys/fs/cgroup"),      "0::/other",                     None),
            ("a name like it", mount("/pod", "/sys/fs/cgroup"),      "0::/pods",                      None),
            ("outside",        mount("/", "/sys/fs/cgroup"),         "0::/../one",                    None),
            ("v1 alone",       other.to_owned(),                     "9:pids:/x",                     None),
            ("not mounted",    other.to_owned(),                     "0::/",                          None),
        ];
        for (name, mounts, groups, expected) in cases {
            assert_eq!(own_dir(&mounts, groups).as_deref(), expected.map(Path::new), "{name}");
        }
    }

    #[test]
    fn only_plain_names_become_directories() {
        for name in ["", "..", "a/b", "a b", "a\n"] {
            assert!(Cgroup::named(name).is_none(), "{name:?}");
        }
    }
}
