//! The words of a prompt or a script.

use std::collections::VecDeque;

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

pub fn two_numbers(argument: &str) -> Option<(u64, u64)> {
    let (first, second) = argument.split_once(':')?;
    Some((first.parse().ok()?, second.parse().ok()?))
}

/// Splits an argument into an error's code and message.
pub fn error_of(argument: &str) -> Option<(i64, &str)> {
    let (code, message) = argument.split_once(':').unwrap_or((argument, "scripted"));
    Some((code.parse().ok()?, message))
}
