//! The words of a prompt or a script.

use std::{collections::VecDeque, env};

/// Returns the words of a text, each with its argument (empty if it has none).
pub fn words(text: &str) -> VecDeque<(&str, &str)> {
    let parts = text.split("[[").skip(1).filter_map(|part| part.split_once("]]"));
    parts.map(|(word, _)| parted(word)).collect()
}

/// Returns the text outside of the words.
pub fn plain(text: &str) -> String {
    let mut parts = text.split("[[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once("]]").map_or(part, |(_, rest)| rest))
}

/// Splits a word into its name and its argument.
pub fn parted(word: &str) -> (&str, &str) {
    word.split_once(':').unwrap_or((word, ""))
}

/// Returns an argument with the values of its environment for `${NAME}`.
pub fn with_variables(argument: &str) -> String {
    let mut parts = argument.split("${");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| match part.split_once('}') {
        Some((name, rest)) => text + &env::var(name).unwrap_or_default() + rest,
        None => text + "${" + part,
    })
}

pub fn two_numbers(argument: &str) -> Option<(u64, u64)> {
    let (first, second) = argument.split_once(':')?;
    Some((first.parse().ok()?, second.parse().ok()?))
}

/// Splits an argument into an error's code and message.
pub fn error_of(argument: &str) -> Option<(i64, &str)> {
    let (code, message) = argument.split_once(':').unwrap_or((argument, "scripted"));
    Some((code.parse().ok()?, message))
}
