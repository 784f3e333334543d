//! Who may name what, and what no source may hold.

use std::fs;

use super::{assert_none, code, root, sources, tracked};

/// What only some may name: the words, where they may stand, and why.
struct Reserved {
    words: &'static [&'static str],
    allowed: &'static [&'static str],
    why: &'static str,
}

#[rustfmt::skip]
const RESERVED: &[Reserved] = &[
    Reserved { words: &["actix_web"],           allowed: &["src/"],                                                                             why: "HTTP is the edge's" },
    Reserved { words: &["rusqlite"],            allowed: &["actors/src/storage/sqlite", "actors/tests/storage/sqlite", "tests/"],             why: "one database, one place" },
    Reserved { words: &["tokio::process"],      allowed: &["actors/src/process"],                                                                 why: "agents are the only children" },
    Reserved { words: &["agent_client_protocol_schema"], allowed: &["actors/src/acp", "src/demo_agent", "tests/"],                         why: "one place knows ACP's JSON" },
    Reserved { words: &["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "allow(unsafe_code)"], allowed: &["actors/src/process/environment.rs", "actors/src/process/shim.rs"],  why: "C23" },
    Reserved { words: &["std::env", "env::var", "env::args", "env::current_exe"],
               allowed: &["src/config", "src/cli", "src/main.rs", "src/logs.rs", "src/demo", "src/serve.rs", "actors/src/process/environment.rs", "actors/src/failpoint.rs",
                          "actors/examples/shim.rs", "actors/tests/process_tree/", "actors/tests/supervisor.rs", "actors/tests/fixtures/", "actors/src/storage/sqlite/locks/tests.rs", "tests/"], why: "the environment is read in few places" },
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
const RUN_BY_OTHERS: [(&str, &str); 2] = [
    ("actors/tests/process_tree/shim.rs", "= \"run by "),
    ("actors/tests/supervisor.rs", "= \"run by "),
];

/// Directories of the machines that this was written on.
const MACHINES: [(&str, &str); 4] =
    [("/ro", "ot/"), ("/wo", "rk/"), ("/tmp", "/wt"), ("/ho", "me/")];

#[test]
fn names_stand_only_where_they_may() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for Reserved { words, allowed, why } in RESERVED {
            let here = file.starts_with("tests/tidy/");
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
fn no_machine_is_named() {
    let mut wrong = Vec::new();
    for file in tracked() {
        // A file that is not text, or a list of words from elsewhere, is not ours.
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
