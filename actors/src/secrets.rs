//! The secret values of the configuration: redacts them in texts that leave the process.
//!
//! A secret is found by its value, also in the encodings that programs print it in. What only looks
//! like a secret is found by [`crate::acp::redacted`]. Stored messages of agents are not redacted.

// The encodings of a value.
mod forms;

use std::{borrow::Cow, collections::BTreeMap, sync::OnceLock};

use aho_corasick::AhoCorasick;
use memchr::memmem;

/// A value with fewer characters is not redacted: it would be found in ordinary words.
pub const VALUE_CHARS_MIN: usize = 8;
/// How the names of variables end whose values are secrets.
#[rustfmt::skip]
const NAME_ENDS: [&str; 11] = [
    "KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "KEYS", "TOKENS",
    "SECRETS", "CREDENTIALS",
];

/// The secrets of this process. They are read once, with the configuration.
static SECRETS: OnceLock<Redactor> = OnceLock::new();

/// Sets the secrets of this process: names with values. Only the first call has an effect.
pub fn set(secrets: impl IntoIterator<Item = (String, String)>) {
    _ = SECRETS.set(Redactor::new(secrets));
}

/// Returns the text with each secret of this process replaced by `[redacted:NAME]`.
pub fn redacted(text: &str) -> Cow<'_, str> {
    SECRETS.get().map_or(Cow::Borrowed(text), |secrets| secrets.redacted(text))
}

/// The same for a text that may be cut at its end: also replaces the beginning of a secret there.
pub fn redacted_cut(text: &str) -> Cow<'_, str> {
    SECRETS.get().map_or(Cow::Borrowed(text), |secrets| secrets.redacted_cut(text))
}

/// Whether the value of a variable with this name is a secret: `OPENAI_API_KEY`, `PGPASSWORD`,
/// `GITHUB_TOKEN_2`.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_');
    NAME_ENDS.iter().any(|end| name.ends_with(end))
}

/// Finds secrets in texts.
#[derive(Default)]
struct Redactor {
    /// `None`: there are no secrets.
    finder: Option<AhoCorasick>,
    /// The forms of all secrets, in the order of the finder's patterns, with their names.
    forms: Vec<(String, String)>,
}

/// A part of a text to replace.
struct Found<'a> {
    start: usize,
    end: usize,
    name: &'a str,
    /// The length of the form whose name counts.
    length: usize,
}

impl Redactor {
    /// Creates a redactor of these secrets, names with values. Of two names with the same value the
    /// first counts.
    fn new(secrets: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut forms = BTreeMap::new();
        for (name, value) in secrets {
            for form in forms::of(&value) {
                forms.entry(form).or_insert_with(|| shown_name(&name));
            }
        }
        let forms: Vec<(String, String)> = forms.into_iter().collect();
        let finder =
            (!forms.is_empty()).then(|| AhoCorasick::new(forms.iter().map(|(form, _)| form)));
        // Fails only for gigabytes of patterns.
        Self { finder: finder.and_then(Result::ok), forms }
    }

    fn redacted<'a>(&self, text: &'a str) -> Cow<'a, str> {
        replaced(text, &self.find(text))
    }

    fn redacted_cut<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut found = self.find(text);
        if let Some(last) = self.find_cut(text) {
            add(&mut found, last);
        }
        replaced(text, &found)
    }

    /// Returns all parts of secrets, in order. Secrets that overlap or hold one another are one
    /// part, so that no rest of them is left.
    fn find(&self, text: &str) -> Vec<Found<'_>> {
        let mut parts = Vec::new();
        for found in self.finder.iter().flat_map(|finder| finder.find_overlapping_iter(text)) {
            let (start, end) = (found.start(), found.end());
            let name = &self.forms[found.pattern().as_usize()].1;
            add(&mut parts, Found { start, end, name, length: end - start });
        }
        parts
    }

    /// Returns the longest end of the text that is the beginning of a secret.
    fn find_cut(&self, text: &str) -> Option<Found<'_>> {
        let bytes = text.as_bytes();
        let cuts = self.forms.iter().filter_map(|(form, name)| {
            let form = form.as_bytes();
            let head = &form[..VALUE_CHARS_MIN.min(form.len())];
            let from = bytes.len().saturating_sub(form.len() - 1);
            let start = memmem::find_iter(&bytes[from..], head)
                .map(|at| from + at)
                .find(|start| form.starts_with(&bytes[*start..]))?;
            Some(Found { start, end: bytes.len(), name, length: bytes.len() - start })
        });
        cuts.max_by_key(|cut| cut.length)
    }
}

/// Adds a part that ends after all others, and joins those that it overlaps. The longest gives the
/// name.
fn add<'a>(parts: &mut Vec<Found<'a>>, mut next: Found<'a>) {
    while let Some(last) = parts.pop_if(|last| last.end > next.start) {
        next.start = next.start.min(last.start);
        next.end = next.end.max(last.end);
        if last.length > next.length {
            (next.name, next.length) = (last.name, last.length);
        }
    }
    parts.push(next);
}

fn replaced<'a>(text: &'a str, parts: &[Found<'_>]) -> Cow<'a, str> {
    if parts.is_empty() {
        return Cow::Borrowed(text);
    }
    let (mut shown, mut from) = (String::with_capacity(text.len()), 0);
    for part in parts {
        shown.push_str(&text[from..part.start]);
        shown.push_str("[redacted:");
        shown.push_str(part.name);
        shown.push(']');
        from = part.end;
    }
    shown.push_str(&text[from..]);
    Cow::Owned(shown)
}

/// Returns a name in characters that keep a text of JSON valid, and a line one line.
fn shown_name(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    name.chars().map(|c| if is_plain(c) { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests;
