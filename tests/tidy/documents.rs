//! What people read: a short README, first lines, plain prose, rules and links that lead somewhere.

use std::{collections::BTreeSet, path::Path};

use super::{assert_none, read, root, sources, tracked};

/// The README is what a newcomer reads first, and all of it.
const README_BYTES_MAX: usize = 14_000;

/// Where the rules stand that sources cite.
const RULES: &str = "actors/core/README.md";

/// The families of rules, and the last number that one can have.
const FAMILIES: [(&str, u32); 10] = [
    ("AM-", 99),
    ("HL-", 99),
    ("DQ-", 99),
    ("TD-", 99),
    ("I", 16),
    ("F", 40),
    ("C", 30),
    ("R-", 9),
    ("A-", 9),
    ("API-", 9),
];

/// The one rule without a number: what real agents were recorded to do.
const RECORDINGS: &str = "RA";

/// Documents that are not in this repository.
const OUTSIDE: [(&str, &str); 4] =
    [("SE", "EDS"), ("RELIA", "BILITY"), ("ARCHI", "TECTURE"), ("REAL-", "AGENTS")];

/// Where a phrase has to stand: a stored key, a text for agents, words of recorded outcomes.
const STAYS: [(&str, (&str, &str)); 3] = [
    ("actors/core/src/digest/projection.rs", ("to", "ld")),
    ("actors/src/profile.rs", ("goes", " on")),
    ("actors/tests/fixtures/outcome.rs", ("to", "ld")),
];

/// Phrases that hide who acts, or for which the field has a word.
const STILTED: [(&str, &str); 12] = [
    ("made", " again"),
    ("to", "ld"),
    ("hea", "rd"),
    ("no", "body"),
    ("some", "body"),
    ("who", "ever"),
    ("an", "ew"),
    ("comes", " to"),
    ("came", " to"),
    ("goes", " on"),
    ("so", " many"),
    ("called", " off"),
];

#[test]
fn every_file_says_what_it_owns() {
    let silent =
        |(file, text): &(String, String)| (!text.starts_with("//! ")).then(|| file.clone());
    let wrong: Vec<String> = sources().iter().filter_map(silent).collect();
    assert_none(&wrong, "without a first line that says what the file owns");
}

#[test]
fn the_readme_is_short_and_maps_every_folder() {
    let readme = read("README.md");
    assert!(readme.len() <= README_BYTES_MAX, "README.md has {} bytes", readme.len());
    let mut wrong = Vec::new();
    for (file, _) in sources() {
        let shipped = ["src/", "actors/src/", "actors/core/src/"];
        let Some(root) = shipped.iter().find(|root| file.starts_with(**root)) else { continue };
        // A folder is also mapped by the row of the folder that it is in.
        let mut folders = Path::new(&file).ancestors().skip(1).map(Path::to_string_lossy);
        let mut within =
            folders.by_ref().take_while(|folder| format!("{folder}/").starts_with(root));
        if !within.any(|folder| readme.contains(&format!("]({folder})"))) {
            wrong.push(file);
        }
    }
    assert_none(&wrong, "in no folder of the README's map");
}

#[test]
fn prose_is_plain() {
    let mut wrong = Vec::new();
    for file in tracked().iter().filter(|file| is_prose(file)) {
        for (number, line) in (1..).zip(read(file).lines()) {
            let words = line.to_lowercase();
            for (first, second) in STILTED {
                if STAYS.contains(&(file.as_str(), (first, second))) {
                    continue;
                }
                let phrase = format!("{first}{second}");
                let bounded = |at: usize| {
                    let letter = |c: char| c.is_alphanumeric() || c == '_';
                    let before = words[..at].chars().next_back().is_some_and(letter);
                    let after = words[at + phrase.len()..].chars().next().is_some_and(letter);
                    !before && !after
                };
                if words.match_indices(&phrase).any(|(at, _)| bounded(at)) {
                    wrong.push(format!("{file}:{number} says {phrase:?}: {}", line.trim()));
                }
            }
        }
    }
    assert_none(&wrong, "stilted");
}

/// Whether a file holds prose of ours: not a recording, a lock file or a test's input.
fn is_prose(file: &str) -> bool {
    let kinds = [".rs", ".md", ".toml", ".py", ".sql", ".yml", ".service", "run"];
    let recorded = file.starts_with("tests/fixtures/") && !file.ends_with("README.md");
    kinds.iter().any(|kind| file.ends_with(kind)) && !recorded
}

#[test]
fn every_cited_rule_is_in_the_table_and_every_row_is_cited() {
    let table = read(RULES);
    let rows: BTreeSet<String> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .filter(|id| rule_ids(id).next().is_some_and(|(_, first)| first == *id))
        .map(str::to_owned)
        .collect();
    assert!(rows.len() > 100, "these are not all rules: {rows:?}");
    let mut cited = BTreeSet::new();
    let mut wrong = Vec::new();
    for file in tracked().iter().filter(|file| is_prose(file) && !file.ends_with(".md")) {
        for (number, line) in (1..).zip(read(file).lines()) {
            for (first, second) in OUTSIDE {
                let document = format!("{first}{second}");
                if line.contains(&document) {
                    wrong.push(format!("{file}:{number} cites {document}, which is not here"));
                }
            }
            for (_, id) in rule_ids(line) {
                if !rows.contains(&id) {
                    wrong.push(format!("{file}:{number} cites {id}, which has no row in {RULES}"));
                }
                cited.insert(id);
            }
        }
    }
    wrong.extend(rows.difference(&cited).map(|id| format!("no source cites {id}")));
    assert_none(&wrong, "rules");
}

/// The rules that a line cites, and where: a family's letters, and a number; `AM-23`, `I7`, `F13`.
fn rule_ids(line: &str) -> impl Iterator<Item = (usize, String)> {
    let bounded = |at: usize| {
        let before = line[..at].chars().next_back();
        // `%C3` is an encoded letter, and `\u{F1}` another.
        before.is_none_or(|c| !c.is_alphanumeric() && !"_%-#{\\".contains(c))
    };
    let cited = FAMILIES.iter().flat_map(move |(family, last)| {
        line.match_indices(family).filter_map(move |(at, _)| {
            let rest = &line[at + family.len()..];
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let number: u32 = rest[..digits].parse().ok()?;
            let ends =
                rest[digits..].chars().next().is_none_or(|c| !c.is_alphanumeric() && c != '_');
            let fits = (1..=*last).contains(&number) && !rest.starts_with('0');
            (bounded(at) && ends && fits).then(|| (at, format!("{family}{number}")))
        })
    });
    let recordings = line.match_indices(RECORDINGS).filter_map(move |(at, word)| {
        let after = line[at + word.len()..].chars().next();
        let ends = after.is_none_or(|c| !c.is_alphanumeric() && !"_-".contains(c));
        (bounded(at) && ends).then(|| (at, word.to_owned()))
    });
    cited.chain(recordings)
}

#[test]
fn every_link_and_every_named_test_is_there() {
    let mut wrong = Vec::new();
    let tests: BTreeSet<String> =
        sources().iter().flat_map(|(file, text)| test_names(file, text)).collect();
    for file in tracked().iter().filter(|file| file.ends_with(".md")) {
        let text = read(file);
        let folder = Path::new(file).parent().unwrap_or(Path::new(""));
        for (number, line) in (1..).zip(text.lines()) {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let path = target.split('#').next().unwrap_or_default();
                let is_outside = path.is_empty() || path.contains("://");
                if !is_outside && !root().join(folder).join(path).exists() {
                    wrong.push(format!("{file}:{number} links to {target}"));
                }
            }
            if file == "tests/README.md" {
                for name in line.split('`').skip(1).step_by(2).filter(|name| is_test_name(name)) {
                    if !tests.contains(name) {
                        wrong.push(format!("{file}:{number} names the test {name}"));
                    }
                }
            }
        }
    }
    assert_none(&wrong, "links and names that lead nowhere");
}

/// Whether a word of a document names a test: `file::test`.
fn is_test_name(word: &str) -> bool {
    let lower = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    word.split_once("::").is_some_and(|(file, test)| lower(file) && lower(test))
}

/// The functions of a file, as documents name tests: by the file's name, or its folder's if all
/// files of a folder are called the same.
fn test_names(file: &str, text: &str) -> Vec<String> {
    let path = Path::new(file);
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let folder = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let stem = if matches!(&*stem, "main" | "mod" | "tests") { folder } else { stem };
    let functions = text.lines().filter_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("pub ").unwrap_or(line);
        line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "))
    });
    let names = functions.filter_map(|rest| rest.split(['(', '<']).next());
    names.map(|name| format!("{stem}::{name}")).collect()
}
