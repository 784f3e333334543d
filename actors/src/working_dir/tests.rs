//! Tests of working directories: what is refused, what errors show, and that no link is followed.
#![allow(clippy::unwrap_used)]
use std::{fs, os::unix::fs::symlink};

use tempfile::TempDir;

use super::*;
use crate::profile::tests::profile;

/// A data directory with the directories of the groups 1 and 2, a root, and what lies outside.
struct TestDirs {
    dir: TempDir,
}

impl TestDirs {
    fn new() -> Self {
        let dirs = Self { dir: tempfile::tempdir().unwrap() };
        for name in ["data/work/1/below", "data/work/2", "root/a", "outside"] {
            fs::create_dir_all(dirs.path(name)).unwrap();
        }
        fs::write(dirs.path("root/file"), "").unwrap();
        dirs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn reserved(&self, own: Option<&str>) -> Reserved {
        let own = own.map(|own| self.path(own));
        Reserved { data: self.path("data"), work: self.path("data/work"), own }
    }

    fn profile(&self, roots: &[&str]) -> Arc<Profile> {
        let cwd_roots = roots.iter().map(|root| self.path(root)).collect();
        Arc::new(Profile { cwd_roots, ..profile() })
    }

    async fn check(&self, cwd: &str, roots: &[&str], own: Option<&str>) -> Result<PathBuf, String> {
        let checked = check(self.path(cwd), self.profile(roots), self.reserved(own)).await;
        checked.map_err(|err| err.to_string())
    }

    async fn open(&self, cwd: &str, roots: &[&str]) -> Result<WorkingDir, String> {
        let place = Place::Named { cwd: self.path(cwd), reserved: self.reserved(None) };
        place.open(self.profile(roots)).await.map_err(|err| err.to_string())
    }
}

/// C12: no agent works in `/proc`, in the data directory, or in another group's directory there,
/// whatever the path; the group's own one is its own.
#[tokio::test]
async fn directories_of_greenroom_and_proc_are_refused() {
    let dirs = TestDirs::new();
    symlink(dirs.path("data"), dirs.path("root/to-data")).unwrap();
    symlink(dirs.path("data/work/1"), dirs.path("root/to-own")).unwrap();
    let (data, proc) = ("greenroom's data directory", "processes");
    #[rustfmt::skip]
    let cases = [
        ("data",              None),
        ("data/work",         None),
        ("data/work/1",       None),
        ("data/work/2",       Some("data/work/1")),
        ("data/work/1/below", Some("data/work/2")),
        ("root/to-data",      None),
        ("root/to-data/work", Some("data/work/1")),
    ];
    for (cwd, own) in cases {
        let refused = dirs.check(cwd, &[], own).await.unwrap_err();
        assert!(refused.contains(data), "{cwd}: {refused}");
        let refused = dirs.check(cwd, &["", "data"], own).await.unwrap_err();
        assert!(refused.contains(data), "{cwd}, with roots: {refused}");
    }
    for cwd in ["/proc", "/proc/self", "/proc/self/task"] {
        let refused = dirs.check(cwd, &[], None).await.unwrap_err();
        assert!(refused.contains(proc), "{cwd}: {refused}");
    }
    for (cwd, real) in [
        ("", ""),
        ("root", "root"),
        ("data/work/1", "data/work/1"),
        ("data/work/1/below", "data/work/1/below"),
        ("root/to-own", "data/work/1"),
    ] {
        let checked = dirs.check(cwd, &[], Some("data/work/1")).await;
        assert_eq!(checked, Ok(dirs.path(real).components().collect()), "{cwd}");
    }
    // An operator may have moved the groups' directories to another disk.
    fs::rename(dirs.path("data/work"), dirs.path("outside/work")).unwrap();
    symlink(dirs.path("outside/work"), dirs.path("data/work")).unwrap();
    let refused = dirs.check("outside/work/2", &[], Some("data/work/1")).await.unwrap_err();
    assert!(refused.contains(data), "{refused}");
    let own = dirs.check("data/work/1", &[], Some("data/work/1")).await;
    assert_eq!(own, Ok(dirs.path("outside/work/1")));
}

/// C12: a link may lead to a root or within it, not out of it; and what exists outside cannot
/// be learned from errors.
#[tokio::test]
async fn an_error_does_not_show_what_exists_outside_of_the_roots() {
    let dirs = TestDirs::new();
    symlink(dirs.path("root"), dirs.path("to-root")).unwrap();
    symlink(dirs.path("root/a"), dirs.path("root/to-a")).unwrap();
    symlink(dirs.path("outside"), dirs.path("root/to-outside")).unwrap();
    symlink(dirs.path("nowhere"), dirs.path("root/to-nowhere")).unwrap();
    for root in ["root", "to-root"] {
        for (cwd, real) in [("root", "root"), ("to-root/a", "root/a"), ("root/to-a", "root/a")] {
            assert_eq!(dirs.check(cwd, &[root], None).await, Ok(dirs.path(real)), "{cwd}");
        }
        for cwd in [
            "outside",
            "nowhere",
            "outside/missing",
            "root/to-outside",
            "root/to-nowhere",
            "root/to-outside/missing",
            "root/../outside",
            "root/missing",
        ] {
            let refused = dirs.check(cwd, &[root], None).await.unwrap_err();
            let cwd = dirs.path(cwd);
            let expected = format!(
                "working directory {}: it is not a directory under one where agent a may work",
                cwd.display()
            );
            assert_eq!(refused, expected);
        }
        let refused = dirs.check("root/file", &[root], None).await.unwrap_err();
        assert!(refused.contains("Not a directory"), "{refused}");
    }
    let refused = dirs.check("nowhere", &[], None).await.unwrap_err();
    assert!(refused.contains("No such file"), "{refused}");
}

/// C12: a start follows no link that was put into the path since the group was configured, and
/// returns the directory that it checked.
#[tokio::test]
async fn a_start_follows_no_link() {
    let dirs = TestDirs::new();
    let inode = |dir: &WorkingDir| fstat(dir).unwrap().st_ino;
    for roots in [&["root"][..], &[]] {
        let opened = dirs.open("root/a", roots).await.unwrap();
        let expected = WorkingDir::open(&dirs.path("root/a")).unwrap();
        assert_eq!((opened.path(), inode(&opened)), (&*dirs.path("root/a"), inode(&expected)));
        for target in ["outside", "root", "data"] {
            fs::rename(dirs.path("root/a"), dirs.path("root/moved")).unwrap();
            symlink(dirs.path(target), dirs.path("root/a")).unwrap();
            let refused = dirs.open("root/a", roots).await.unwrap_err();
            assert!(refused.ends_with("a part of it is a link now"), "{refused}");
            fs::remove_file(dirs.path("root/a")).unwrap();
            fs::rename(dirs.path("root/moved"), dirs.path("root/a")).unwrap();
        }
        for cwd in ["data/work/2", "root/../outside"] {
            dirs.open(cwd, roots).await.unwrap_err();
        }
    }
    let refused = dirs.open("root/gone", &["root"]).await.unwrap_err();
    assert!(refused.ends_with("No such file or directory (os error 2)"), "{refused}");
    assert!(dirs.open("outside", &["root"]).await.is_err());
}

/// C12, C14: a group's own directory is private, made on demand, and never another one by a link.
#[tokio::test]
async fn the_own_directory_is_no_link() {
    let dirs = TestDirs::new();
    let own = |name: &str| Place::Own(dirs.path(name)).open(dirs.profile(&["root"]));
    let made = own("data/work/3").await.unwrap();
    assert_eq!(made.path(), dirs.path("data/work/3"));
    assert_eq!(fstat(&made).unwrap().st_mode & 0o777, 0o700);
    own("data/work/3").await.unwrap();
    symlink(dirs.path("outside"), dirs.path("data/work/4")).unwrap();
    let refused = own("data/work/4").await.unwrap_err().to_string();
    assert!(refused.ends_with("a part of it is a link now"), "{refused}");
    // The parent is the operator's, who may have moved it to another disk.
    symlink(dirs.path("outside"), dirs.path("linked")).unwrap();
    assert_eq!(own("linked/1").await.unwrap().path(), dirs.path("outside/1"));
}
