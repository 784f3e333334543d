//! The prompts for the scripted agent: its words are in `tests/agent`.

use greenroom_test_support::random::Random;

/// Ordinary work.
const ORDINARY: [&str; 8] = [
    "[[reply:ok]]",
    "[[reply:one]][[tool]][[reply:two]]",
    "[[thought:hm]][[sleep:20]][[reply:slow]]",
    "[[sleep:60]][[reply:slower]]",
    "[[chunks:40:200]]",
    "[[usage:900:1000]][[tokens:5:7]][[reply:full]]",
    "[[silent]]",
    "[[reply:before]][[answer]][[late:15]]",
];

/// Deaths (F5).
const DEATHS: [&str; 12] = [
    "[[die:0]]",
    "[[die:1]]",
    "[[segv]][[gate:never]]",
    "[[reply:x]][[die:0]]",
    "[[reply:x]][[die:1]]",
    "[[reply:x]][[segv]][[gate:never]]",
    "[[tool:open]][[die:1]]",
    "[[tool:open]][[sleep:30]][[abort]]",
    "[[usage:1:1000]][[die:1]]",
    "[[die-once:{marker}]][[reply:second time]]",
    "[[die-once:{marker}]][[die-once:{marker}-b]][[tool]][[reply:third time]]",
    "[[no-newline-eof]]",
];

/// Invalid answers (F14), and errors.
const ANSWERS: [&str; 6] = [
    "[[error:-32603:scripted]]",
    "[[error:-32602:scripted]]",
    "[[reply:x]][[error:-32603:scripted]]",
    "[[refuse]]",
    "[[stray:3]][[reply:x]]",
    "[[reply:x]][[two-responses]]",
];

/// Noise (F11, F12, F13).
const NOISE: [&str; 10] = [
    "[[garbage]][[reply:x]][[garbage]]",
    "[[utf8]][[crlf]]",
    "[[garbage-run:9]][[reply:x]]",
    "[[reply:x]][[garbage-run:10]][[sleep:500]]",
    "[[reply:x]][[huge-line:90000]][[sleep:500]]",
    "[[huge-line:60000]]",
    "[[deep:40]]",
    "[[reply:x]][[deep:10000]][[sleep:500]]",
    "[[chunks:3000:300]]",
    "[[stderr:20000]][[reply:x]]",
];

/// Processes that outlive their turn (F9), and waits.
const STUBBORN: [&str; 4] = [
    "[[spawn-orphans]]",
    "[[spawn-orphans]][[die:1]]",
    "[[reply:x]][[gate:never]]",
    "[[tool:open]][[permission]]",
];

/// Faults that may reach beyond their own group: a full stdin that is never read again, processes
/// that fork faster than they are found (F9, F15).
const UNRULY: [&str; 3] =
    ["[[fill-stdin]][[die:1]]", "[[fork-chain]][[reply:x]]", "[[fork-chain]][[sleep:50]][[die:1]]"];

/// Hangs that only the escalation ends (F6, F15).
const HANGS: [&str; 4] = [
    "[[ignore-cancel]][[gate:never]]",
    "[[reply:x]][[freeze]][[gate:never]]",
    "[[deaf]][[gate:never]]",
    "[[reply:x]][[no-answer]]",
];

/// Returns a prompt with the unique `marker`; the `witness` gets ordinary ones only.
pub fn prompt(random: &mut Random, witness: bool, hangs: bool, marker: &str) -> String {
    let kinds: [(u64, &[&str]); 9] = [
        (600, &ORDINARY),
        (130, &DEATHS),
        (60, &ANSWERS),
        (70, &NOISE),
        (20, &STUBBORN),
        (8, &UNRULY),
        (40, &["[[permission]]", "[[permission:always]]", "[[permission:none]]"]),
        (30, &["nothing but text"]),
        (if hangs { 6 } else { 0 }, &HANGS),
    ];
    let kind = if witness { &ORDINARY[..] } else { random.weighed(&kinds) };
    let words = random.pick(kind).replace("{marker}", marker);
    format!("{words} ={marker}=")
}
