//! Tests of what a run may reach: nothing hidden, of a program what it needs, and no whole home.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::{
        fd::AsFd as _,
        unix::fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{Places, SYSTEM};
use crate::{
    process::sandbox::{Confinement, Network, Program},
    profile::SandboxLevel,
};

/// A directory with files, and what a confinement in it names.
struct Scene {
    dir: TempDir,
    confinement: Confinement,
}

impl Scene {
    /// Creates these files, which can be executed; those that end with `/` are directories.
    fn new(files: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let confinement = Confinement {
            level: SandboxLevel::Landlock,
            own: Vec::new(),
            read: Vec::new(),
            write: Vec::new(),
            hidden: Vec::new(),
            home: None,
            network: Network::AllBut([7433].into()),
            search: "/usr/bin".into(),
        };
        let scene = Self { dir, confinement };
        for file in ["work/"].iter().chain(files) {
            let path = scene.path(file);
            if file.ends_with('/') {
                fs::create_dir_all(path).unwrap();
                continue;
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        scene
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(file)
    }

    fn find(&self, command: &str) -> Result<Places, String> {
        let dir = fs::File::open(self.path("work")).unwrap();
        let env = [("PATH".to_owned(), self.path("bin").display().to_string())];
        let (command, cwd) = (PathBuf::from(command), self.path("work"));
        let program = Program { command: &command, args: &[], env: &env, cwd, dir: dir.as_fd() };
        Places::find(&self.confinement, &program).map_err(|err| err.to_string())
    }

    /// What may be read of the scene, by its path there.
    fn read(&self, command: &str) -> Vec<String> {
        let found = self.find(command).unwrap();
        let below = |path: &PathBuf| {
            Some(path.strip_prefix(self.path("")).ok()?.to_str().unwrap().to_owned())
        };
        let mut read: Vec<String> = found.read.iter().filter_map(below).collect();
        read.sort();
        read
    }
}

/// C25: what is hidden is no part of a directory above it, and no directory that can be written in
/// may be one.
#[test]
fn what_is_hidden_is_left_out() {
    let mut scene =
        Scene::new(&["srv/a/", "srv/greenroom/data/db", "srv/greenroom/file", "work/x"]);
    scene.confinement.hidden = vec![scene.path("srv/greenroom/data")];
    scene.confinement.read = vec![scene.path("srv")];
    symlink(scene.path("srv/greenroom/data"), scene.path("srv/link")).unwrap();
    assert_eq!(scene.read("none"), ["srv/a", "srv/greenroom/file"]);
    let listed = scene.find("none").unwrap().listed;
    assert_eq!(listed, [scene.path("srv"), scene.path("srv/greenroom")]);
    for (path, how) in [
        ("srv", "holds"),
        ("srv/link", "lies in"),
        ("srv/greenroom/data", "lies in"),
        ("srv/greenroom/data/db", "lies in"),
    ] {
        scene.confinement.write = vec![("sandbox_write".into(), scene.path(path))];
        let why = scene.find("none").unwrap_err();
        assert!(why.contains(how) && why.contains("which no agent"), "{path}: {why}");
    }
    scene.confinement.write.clear();
    scene.confinement.hidden = vec![scene.path("work/x")];
    assert!(scene.find("none").unwrap_err().starts_with("the working directory"));
}

/// C25: a program brings along what it needs to run.
#[test]
fn a_program_is_reached_with_its_installation() {
    let scene = Scene::new(&[
        "node_modules/agent/node_modules/deep/index.js",
        "node_modules/other/index.js",
        "venv/pyvenv.cfg",
        "venv/bin/agent",
        "opt/bin/tool",
        "opt/lib/tool/",
        "opt/share/",
        "alone/program",
        "bin/",
    ]);
    symlink(scene.path("node_modules/agent/node_modules/deep/index.js"), scene.path("bin/js"))
        .unwrap();
    symlink(scene.path("opt/bin/tool"), scene.path("alone/link")).unwrap();
    fs::write(scene.path("bin/script"), format!("#!{}\n", scene.path("opt/bin/tool").display()))
        .unwrap();
    fs::write(scene.path("bin/env"), "#!/usr/bin/env -S A=b js --flag\n").unwrap();
    for script in ["bin/script", "bin/env"] {
        fs::set_permissions(scene.path(script), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let path = |file: &str| scene.path(file).display().to_string();
    let cases: [(&str, String, &[&str]); 7] = [
        ("the outermost node_modules", "js".into(), &["bin", "node_modules"]),
        ("a Python environment", path("venv/bin/agent"), &["venv"]),
        ("bin and lib, nothing beside", path("opt/bin/tool"), &["opt/bin", "opt/lib"]),
        ("its own directory", path("alone/program"), &["alone"]),
        ("what a link leads to", path("alone/link"), &["alone", "opt/bin", "opt/lib"]),
        ("the interpreter", "script".into(), &["bin", "opt/bin", "opt/lib"]),
        ("that of env", "env".into(), &["bin", "node_modules"]),
    ];
    for (name, command, expected) in cases {
        assert_eq!(scene.read(&command), expected, "{name}");
    }
    assert!(scene.read("absent").is_empty());
}

/// C25: a program that lies in a home directory does not make that readable.
#[test]
fn a_program_at_home_opens_no_home() {
    let mut scene = Scene::new(&["user/agent", "user/.ssh/key", "user/bin/tool"]);
    scene.confinement.home = Some(scene.path("user"));
    assert_eq!(scene.read(&scene.path("user/agent").display().to_string()), ["user/agent"]);
    assert_eq!(scene.read(&scene.path("user/bin/tool").display().to_string()), ["user/bin"]);
}

/// The system's directories are readable where they exist, each once.
#[test]
fn the_system_is_readable() {
    let found = Scene::new(&[]).find("none").unwrap();
    let usr = Path::new("/usr").to_owned();
    assert!(SYSTEM.contains(&"/usr") && found.read.contains(&usr), "{found:?}");
    let twice = found.read.iter().any(|path| *path != usr && path.starts_with(&usr));
    assert!(!twice, "{found:?}");
}
