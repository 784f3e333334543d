//! Trees that an agent may leave, and what lies beside them.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    thread,
};

use rustix::{
    fs::mkdirat,
    process::{Uid, getuid},
    thread::set_thread_res_uid,
};
use tempfile::TempDir;

use super::*;

/// Builds a directory and `depth` more, each in the one before.
fn build_deep(path: &Path, depth: usize) {
    fs::create_dir(path).unwrap();
    let mut dir = open(CWD, path).unwrap();
    for _ in 0..depth {
        mkdirat(&dir, c"d", Mode::RWXU).unwrap();
        dir = open(&dir, c"d").unwrap();
    }
}

/// The stack is too small for a frame a level, and the process may open fewer files than there are.
#[test]
fn a_tree_is_removed_whatever_its_depth() {
    let temp = TempDir::new().unwrap();
    let path = temp.path().join("deep");
    build_deep(&path, 3_000);
    let removed = path.clone();
    let thread = thread::Builder::new().stack_size(64 << 10).spawn(move || remove(&removed));
    thread.unwrap().join().unwrap().unwrap();
    assert!(!path.exists());
}

#[test]
fn many_entries_are_removed_on_every_level() {
    let temp = TempDir::new().unwrap();
    let path = temp.path().join("wide");
    for outer in 0..20 {
        for inner in 0..20 {
            let dir = path.join(format!("{outer}/{inner}"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("file"), "").unwrap();
        }
        // The names that the removal itself gives.
        fs::create_dir_all(path.join(format!(".removed-{outer}/full"))).unwrap();
        fs::write(path.join(format!(".removed-{}", 100 + outer)), "").unwrap();
    }
    remove(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn links_are_removed_and_not_followed() {
    let temp = TempDir::new().unwrap();
    let outside = temp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "kept").unwrap();
    let path = temp.path().join("links");
    fs::create_dir_all(path.join("below")).unwrap();
    symlink(&outside, path.join("link")).unwrap();
    symlink(&outside, path.join("below/link")).unwrap();
    symlink("nowhere", path.join("below/broken")).unwrap();
    symlink(&outside, temp.path().join("top")).unwrap();
    remove(&path).unwrap();
    remove(&temp.path().join("top")).unwrap();
    assert!(!path.exists() && !temp.path().join("top").is_symlink());
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "kept");
}

#[test]
fn a_file_or_nothing_in_its_place_is_a_success() {
    let temp = TempDir::new().unwrap();
    let path = temp.path().join("entry");
    remove(&path).unwrap();
    fs::write(&path, "").unwrap();
    remove(&path).unwrap();
    assert!(!path.exists());
}

/// Runs `check` as an ordinary user: root may do anything to any directory.
fn as_ordinary_user(check: impl FnOnce() + Send + 'static) {
    let ordinary = Uid::from_raw(65_534);
    let checked = thread::spawn(move || {
        if getuid().is_root() {
            set_thread_res_uid(ordinary, ordinary, ordinary).unwrap();
        }
        check();
    });
    checked.join().unwrap();
}

#[test]
fn directories_without_rights_are_removed() {
    let temp = TempDir::new().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = temp.path().join("closed");
    let for_user = path.clone();
    as_ordinary_user(move || {
        for (name, mode) in [("read-only", 0o500), ("write-only", 0o300), ("none", 0o000)] {
            let dir = for_user.join("below").join(name);
            fs::create_dir_all(dir.join("inner/innermost")).unwrap();
            for closed in [dir.join("inner/innermost"), dir.join("inner"), dir] {
                fs::set_permissions(closed, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        fs::set_permissions(&for_user, fs::Permissions::from_mode(0o500)).unwrap();
        remove(&for_user).unwrap();
    });
    assert!(!path.exists());
}

#[test]
fn what_cannot_be_removed_is_said() {
    // A file system without removal, also for root.
    let refused = remove(Path::new("/proc/self/attr")).unwrap_err().to_string();
    assert!(refused.contains(" entries could not be removed, the first is \""), "{refused}");
    assert!(!refused.starts_with('0'), "{refused}");
}
