//! How files depend on each other: layers, no circles, one style of imports.

use std::collections::{BTreeMap, BTreeSet};

use super::{assert_none, code, sources};

/// Which folders of the actors' crate may not name which modules of it: a whiteboard check.
#[rustfmt::skip]
const LAYERS: &[(&str, &[&str])] = &[
    ("actors/src/acp",         &["agent", "group", "pool", "process", "projections", "storage", "supervisor"]),
    ("actors/src/process",     &["acp", "agent", "group", "pool", "projections", "storage", "supervisor"]),
    ("actors/src/transcript",  &["agent", "group", "pool", "process", "projections", "storage", "supervisor"]),
    ("actors/src/storage",     &["agent", "group", "pool", "projections", "supervisor"]),
    ("actors/src/projections", &["agent", "group", "pool", "process", "supervisor"]),
    ("actors/src/agent",       &["group", "projections", "storage", "supervisor"]),
    ("actors/src/pool",        &["agent", "group", "projections", "storage", "supervisor"]),
    ("actors/src/group",       &["supervisor"]),
];

#[test]
fn each_layer_names_only_those_below_it() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (_, above) in LAYERS.iter().filter(|(folder, _)| file.starts_with(folder)) {
            let named = paths(&module("actors/src/", &file), &text);
            let up = named.iter().filter(|path| above.contains(&path[0].as_str()));
            wrong.extend(up.map(|path| format!("{file} names {}", path.join("::"))));
        }
    }
    assert_none(&wrong, "a layer that names one above it");
}

/// Each crate of the outside is imported once in a file, as one tree.
#[test]
fn imports_have_one_style() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let mut seen = BTreeSet::new();
        for line in text.lines() {
            let Some(path) = line.strip_prefix("use ") else { continue };
            let first = path.split([':', ';', ' ']).next().unwrap_or_default().to_owned();
            if !seen.insert(first.clone()) {
                wrong.push(format!("{file} imports {first} twice"));
            }
        }
    }
    assert_none(&wrong, "one tree for each crate");
}

/// A file names others only in one direction: no two files need each other, by whatever way round.
/// A module and those within it are one room here.
#[test]
fn files_form_no_circle() {
    let mut wrong = Vec::new();
    for root in ["src/", "actors/src/", "actors/core/src/"] {
        let files: BTreeMap<Vec<String>, String> = sources()
            .into_iter()
            .filter(|(file, _)| file.starts_with(root) && !file.ends_with("/tests.rs"))
            .map(|(file, text)| (module(root, &file), text))
            .collect();
        let needs: BTreeMap<&Vec<String>, BTreeSet<&Vec<String>>> = files
            .iter()
            .map(|(own, text)| {
                let named = paths(own, text);
                let found = named.iter().filter_map(|path| {
                    let ends = (1..=path.len()).rev();
                    ends.filter_map(|end| files.get_key_value(&path[..end]))
                        .map(|(file, _)| file)
                        .next()
                });
                let beside =
                    found.filter(|other| !other.starts_with(own) && !own.starts_with(other));
                (own, beside.collect())
            })
            .collect();
        for start in needs.keys() {
            let (mut reached, mut next) = (BTreeSet::new(), vec![*start]);
            while let Some(file) = next.pop() {
                for other in needs.get(file).into_iter().flatten() {
                    if reached.insert(*other) {
                        next.push(other);
                    }
                }
            }
            if reached.contains(start) {
                let back = reached.iter().filter(|other| needs[**other].contains(start));
                let back: Vec<String> = back.map(|other| other.join("::")).collect();
                wrong.push(format!(
                    "{root}: {} is needed by {}",
                    start.join("::"),
                    back.join(", ")
                ));
            }
        }
    }
    assert_none(&wrong, "circles of files");
}

/// A file's module, from its crate's root.
fn module(root: &str, file: &str) -> Vec<String> {
    let path = file[root.len()..].trim_end_matches(".rs").trim_end_matches("/mod");
    let path = if path == "lib" || path == "main" { "" } else { path };
    path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// The paths within its own crate that a module names, from the crate's root.
fn paths(own: &[String], text: &str) -> Vec<Vec<String>> {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String = code(text).map(|(_, line)| format!("{line}\n")).collect();
    let mut found = Vec::new();
    for (word, base) in
        [("crate::", 0), ("super::", own.len().saturating_sub(1)), ("self::", own.len())]
    {
        for (at, _) in code.match_indices(word) {
            expand(&code[at + word.len()..], &own[..base], &mut found);
        }
    }
    found
}

/// Reads one path, or a tree of them in braces, and returns what follows it.
fn expand<'t>(text: &'t str, base: &[String], found: &mut Vec<Vec<String>>) -> &'t str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = expand(rest, base, found).trim_start();
            match rest.chars().next() {
                Some(',') => rest = &rest[1..],
                Some('}') => return &rest[1..],
                _ => return rest,
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let path: Vec<String> = base.iter().cloned().chain([text[..end].to_owned()]).collect();
    match text[end..].strip_prefix("::") {
        Some(rest) => expand(rest, &path, found),
        None => {
            found.push(path);
            let rest = text[end..].trim_start();
            // `name as other` ends where the other name does.
            rest.strip_prefix("as ").map_or(rest, |other| {
                other.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_')
            })
        }
    }
}
