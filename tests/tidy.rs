//! What the compiler does not check: who may name what, sizes, the README's code map.
//!
//! Patterns are written in two parts where this file would match itself.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const LINES_MAX: usize = 600;
const COLUMNS_MAX: usize = 100;

/// Files that are longer than they should be, and why.
const LONG: [(&str, &str); 1] =
    [("actors/tests/keeper.rs", "one scene: a tree of processes and every way to lose its parent")];

/// Lines that may be wide: tables, one line a case, and texts that are quoted as they come.
const WIDE: [&str; 3] = ["r#\"", "http://", "https://"];

/// What only some may name: the words, where they may stand, and why.
struct Reserved {
    words: &'static [&'static str],
    allowed: &'static [&'static str],
    why: &'static str,
}

#[rustfmt::skip]
const RESERVED: &[Reserved] = &[
    Reserved { words: &["actix_web"],           allowed: &["src/"],                                                                             why: "HTTP is the edge's" },
    Reserved { words: &["rusqlite"],            allowed: &["actors/src/storage/sqlite", "actors/tests/storage/sqlite.rs", "tests/"],             why: "one database, one place" },
    Reserved { words: &["tokio::process"],      allowed: &["actors/src/agent"],                                                                 why: "agents are the only children" },
    Reserved { words: &["agent_client_protocol_schema"], allowed: &["actors/src/agent/acp", "src/demo_agent", "tests/"],                         why: "one place knows ACP's JSON" },
    Reserved { words: &["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "allow(unsafe_code)"], allowed: &["actors/src/agent/shim.rs"],  why: "RELIABILITY C23" },
    Reserved { words: &["std::env", "env::var", "env::args", "env::current_exe"],
               allowed: &["src/config", "src/cli", "src/main.rs", "src/logs.rs", "src/demo", "src/serve.rs", "actors/src/agent.rs", "actors/src/failpoint.rs",
                          "actors/examples/shim.rs", "actors/tests/keeper.rs", "actors/tests/supervisor.rs", "actors/tests/fixtures/", "actors/src/storage/sqlite/locks/tests.rs", "tests/"], why: "the environment is read in few places" },
];

/// What the rules may never name: they know no clock, no I/O and no random order.
const NOT_IN_CORE: [&str; 12] = [
    "std::time",
    "SystemTime",
    "Instant",
    "tokio",
    "actix",
    "HashMap",
    "HashSet",
    "std::fs",
    "std::net",
    "std::thread",
    "std::io",
    "now_v7",
];

/// What no source may hold.
const NOWHERE: [(&str, &str); 4] =
    [("todo", "!("), ("unimplemented", "!("), ("dbg", "!("), ("#[ign", "ore")];

/// Tests that others run, as the programs that they have killed.
const RUN_BY_OTHERS: [(&str, &str); 2] =
    [("actors/tests/keeper.rs", "= \"run by "), ("actors/tests/supervisor.rs", "= \"run by ")];

/// Directories of the machines that this was written on.
const MACHINES: [(&str, &str); 4] =
    [("/ro", "ot/"), ("/wo", "rk/"), ("/tmp", "/wt"), ("/ho", "me/")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file that is tracked, or would be, by its path from the root.
fn tracked() -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the files");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut files: Vec<String> = listed.lines().map(str::to_owned).collect();
    files.retain(|file| root().join(file).is_file());
    assert!(files.len() > 50, "these are not all files: {files:?}");
    files
}

fn sources() -> Vec<(String, String)> {
    let rust = tracked().into_iter().filter(|file| file.ends_with(".rs"));
    rust.map(|file| (file.clone(), fs::read_to_string(root().join(&file)).unwrap())).collect()
}

/// A source without its comments: they may name anything.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines().map(|line| line.split("//").next().unwrap_or_default()))
}

/// Fails with everything that is wrong, not only the first.
fn assert_none(wrong: &[String], what: &str) {
    assert!(wrong.is_empty(), "{what}:\n  {}", wrong.join("\n  "));
}

#[test]
fn names_stand_only_where_they_may() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for Reserved { words, allowed, why } in RESERVED {
            let here = file == "tests/tidy.rs";
            if here || allowed.iter().any(|place| file.starts_with(place)) {
                continue;
            }
            for (number, line) in code(&text) {
                for word in words.iter().filter(|word| line.contains(**word)) {
                    wrong.push(format!("{file}:{number} names {word}: {why}"));
                }
            }
        }
    }
    assert_none(&wrong, "who may name what");
}

#[test]
fn the_rules_know_no_clock_and_no_outside() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        if !file.starts_with("actors/core/src/") {
            continue;
        }
        for (number, line) in code(&text) {
            for word in NOT_IN_CORE.iter().filter(|word| line.contains(**word)) {
                wrong.push(format!("{file}:{number} names {word}"));
            }
        }
    }
    assert_none(&wrong, "core decides from what it is given");
}

/// actix polls what an actor spawned, or notified itself of, between a message's handler and the
/// commit that the handler waits for: what commits there overtakes (I3).
#[test]
fn a_group_commits_by_way_of_its_mailbox_alone() {
    let outside =
        ["ctx.notify", "notify_later", "add_stream", "add_message_stream", "run_interval"];
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        if !file.starts_with("actors/src/group") {
            continue;
        }
        for (number, line) in code(&text) {
            for word in outside.iter().filter(|word| line.contains(**word)) {
                wrong.push(format!("{file}:{number} names {word}: send a message"));
            }
        }
    }
    assert_none(&wrong, "what a group does beside its mailbox");
}

#[test]
fn nothing_is_left_unfinished() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (number, line) in code(&text) {
            for (first, second) in NOWHERE {
                let macro_name = format!("{first}{second}");
                let excused =
                    |(place, reason): &(&str, &str)| file == *place && line.contains(reason);
                if line.contains(&macro_name) && !RUN_BY_OTHERS.iter().any(excused) {
                    wrong.push(format!("{file}:{number} holds {macro_name}"));
                }
            }
        }
    }
    assert_none(&wrong, "unfinished");
}

#[test]
fn files_are_short_and_lines_fit() {
    let mut wrong = Vec::new();
    let mut long_once = LONG.map(|(file, _)| file).to_vec();
    for (file, text) in sources() {
        let lines = text.lines().count();
        if file.starts_with("src/") || file.starts_with("actors/") {
            if lines > LINES_MAX && !LONG.iter().any(|(long, _)| *long == file) {
                wrong.push(format!("{file} has {lines} lines"));
            }
            if lines > LINES_MAX {
                long_once.retain(|long| *long != file);
            }
        }
        let tables = table_lines(&text);
        for (number, line) in (1..).zip(text.lines()) {
            let columns = line.chars().count();
            let wide = WIDE.iter().any(|quoted| line.contains(quoted));
            if columns > COLUMNS_MAX && !wide && !tables.contains(&number) {
                wrong.push(format!("{file}:{number} has {columns} columns"));
            }
        }
    }
    wrong.extend(long_once.iter().map(|file| format!("{file} is no longer too long: unlist it")));
    assert_none(&wrong, "sizes");
}

/// The lines that rustfmt was told to leave alone: from the attribute to the end of its statement,
/// which is where the indentation comes back to the attribute's.
fn table_lines(text: &str) -> Vec<usize> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let lines: Vec<&str> = text.lines().collect();
    let mut tables = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        if !line.trim_start().starts_with("#[rustfmt::skip]") {
            continue;
        }
        let depth = indent(line);
        let rest = lines.iter().enumerate().skip(start + 2);
        let ends = |line: &str| !line.trim().is_empty() && indent(line) <= depth;
        let end = rest.clone().find(|(_, line)| ends(line)).map_or(lines.len(), |(at, _)| at);
        tables.extend(start + 1..=end + 1);
    }
    tables
}

#[test]
fn every_source_is_on_the_code_map() {
    let readme = root().join("README.md");
    let readme = fs::read_to_string(readme).expect("README.md holds the code map");
    let mut wrong = Vec::new();
    for (file, _) in sources() {
        let mapped =
            file.starts_with("src/") || file.starts_with("actors/") && file.contains("/src/");
        if mapped && !is_named(&readme, &file) {
            wrong.push(file);
        }
    }
    assert_none(&wrong, "not on the README's code map");
}

/// Whether a map names a file: by its path or by its name alone; tests and examples also by their
/// directory's path.
fn is_named(map: &str, file: &str) -> bool {
    let helps = ["/tests/", "/examples/"].iter().find_map(|dir| {
        let at = file.find(dir)?;
        Some(&file[..at + dir.len()])
    });
    if map.contains(file) || helps.is_some_and(|dir| map.contains(dir)) {
        return true;
    }
    let path = PathBuf::from(file);
    let name = path.file_name().unwrap().to_str().unwrap();
    let within = |line: &str| {
        let words = line.split(|c: char| c.is_whitespace() || "`()[],{}|".contains(c));
        words.into_iter().any(|word| word == name || word.ends_with(&format!("/{name}")))
    };
    map.lines().any(within)
}

#[test]
fn no_machine_is_named() {
    let mut wrong = Vec::new();
    for file in tracked() {
        // What is no text, or a list of somebody else's words, is not ours.
        let Ok(text) = fs::read_to_string(root().join(&file)) else { continue };
        if file == "Cargo.lock" {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            for (first, second) in MACHINES {
                let place = format!("{first}{second}");
                let before = |at: usize| line[..at].chars().next_back();
                // Within a URL or a longer path it is only a word.
                let absolute = |at: usize| {
                    before(at).is_none_or(|c| !c.is_alphanumeric() && !"}_-.*$".contains(c))
                };
                if line.match_indices(&place).any(|(at, _)| absolute(at)) {
                    wrong.push(format!("{file}:{number}: {}", line.trim()));
                }
            }
        }
    }
    assert_none(&wrong, "paths of one machine");
}
