//! The reasons that an agent's error gives beside its message.
//!
//! Many agents answer any failure with "Internal error", and say in `data` what happened.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{
    bounds::{ERROR_BYTES_MAX, append_bounded},
    fields::{elements, fields, lossy_text, object},
};
use crate::secrets;

/// How deep causes are nested at most.
const DEPTH_MAX: usize = 8;
/// How many of a list's members are read.
const LIST_MAX: usize = 16;
/// The part of a text in which secrets are searched: more than is shown, so that none is cut.
const READ_BYTES_MAX: usize = 2 * ERROR_BYTES_MAX;
/// What keys and tokens of model providers begin with.
#[rustfmt::skip]
const SECRET_STARTS: [&str; 15] = [
    "sk-", "sk_", "ghp_", "gho_", "ghs_", "github_pat_", "xoxb-", "AIza", "ya29.", "eyJ", "gsk_",
    "xai-", "hf_", "AKIA", "glpat-",
];
/// Words after which a secret stands.
const SECRET_NAMES: [&str; 6] = ["api_key", "api-key", "apikey", "token", "password", "secret"];
/// The schemes of HTTP's `Authorization`, after which a secret stands.
const SCHEMES: [&str; 2] = ["bearer", "basic"];
/// What is shown in place of a secret.
const REDACTED: &str = "[redacted]";

/// Returns the message of an error with the reasons that its `data` gives: each once, up to
/// [`ERROR_BYTES_MAX`] bytes, without keys and tokens.
pub(super) fn with_causes(message: &str, data: Option<&RawValue>) -> String {
    let mut shown = Shown::default();
    append_bounded(&mut shown.text, &redacted(message), ERROR_BYTES_MAX);
    if let Some(data) = data {
        shown.add_causes(data, DEPTH_MAX);
    }
    shown.text
}

/// The part of an error that is shown so far.
#[derive(Default)]
struct Shown {
    text: String,
}

impl Shown {
    fn is_full(&self) -> bool {
        self.text.len() >= ERROR_BYTES_MAX
    }

    fn add(&mut self, cause: &str) {
        let cause = redacted(cause.trim());
        if !cause.is_empty() && !self.text.contains(&*cause) {
            append_bounded(&mut self.text, &format!(": {cause}"), ERROR_BYTES_MAX);
        }
    }

    /// Adds the texts of `data`: itself, or those of its members that name a reason, outermost
    /// first.
    fn add_causes(&mut self, data: &RawValue, depth: usize) {
        fields! {
            struct Data {
                message: "message",
                details: "details" | "detail",
                reason: "reason",
                description: "description" | "error_description",
                error: "error",
                errors: "errors",
                data: "data",
                cause: "cause",
            }
        }
        let Some(next) = depth.checked_sub(1).filter(|_| !self.is_full()) else { return };
        if let Some(text) = lossy_text(data) {
            self.add(&text);
        } else if data.get().starts_with('[') {
            let listed = elements(data).into_iter().take(LIST_MAX);
            listed.for_each(|element| self.add_causes(element, next));
        } else if let Some(found) = object::<Data<'_>>(data) {
            let Data { message, details, reason, description, error, errors, data, cause } = found;
            let members = [message, details, reason, description, error, errors, data, cause];
            members.into_iter().flatten().for_each(|member| self.add_causes(member, next));
        }
    }
}

/// Returns the text without the secrets of the configuration, and with each word replaced that
/// looks like a key or a token, or that stands after a name of one. A text that is longer than any
/// that is shown loses its end.
pub fn redacted(text: &str) -> Cow<'_, str> {
    // First the values: of one of several words, the other words would be left.
    match secrets::redacted_cut(&text[..text.floor_char_boundary(READ_BYTES_MAX)]) {
        Cow::Borrowed(text) => without_words(text),
        Cow::Owned(text) => without_words(&text).into_owned().into(),
    }
}

fn without_words(text: &str) -> Cow<'_, str> {
    let is_part = |byte: char| byte.is_ascii_alphanumeric() || "-_.+/~".contains(byte);
    let (mut shown, mut rest, mut named) = (String::new(), text, None);
    while let Some(at) = rest.find(is_part) {
        let (before, from) = rest.split_at(at);
        let (word, after) = from.split_at(from.find(|c| !is_part(c)).unwrap_or(from.len()));
        let is_secret = begins_like_one(word) || named.is_some_and(|by| is_named(by, before, word));
        shown.push_str(before);
        shown.push_str(if is_secret { REDACTED } else { word });
        named = Name::of(word);
        rest = after;
    }
    if !shown.contains(REDACTED) {
        return Cow::Borrowed(text);
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

/// What a word announces.
#[derive(Clone, Copy, PartialEq)]
enum Name {
    /// A secret after a mark (`token: abc`, `"api_key": "abc"`), or in prose.
    Secret,
    /// A secret after a space: `Bearer abc`.
    Scheme,
}

impl Name {
    fn of(word: &str) -> Option<Self> {
        let name = word.to_ascii_lowercase();
        if SCHEMES.contains(&&*name) {
            return Some(Self::Scheme);
        }
        SECRET_NAMES.iter().any(|known| name.ends_with(known)).then_some(Self::Secret)
    }
}

/// Whether a word begins as keys do. Keys hold digits, names of packages seldom.
fn begins_like_one(word: &str) -> bool {
    let begins = SECRET_STARTS.iter().any(|start| word.starts_with(start));
    begins && word.len() > 12 && word.bytes().any(|byte| byte.is_ascii_digit())
}

/// Whether a word after such a name, with `between` before it, is the secret.
fn is_named(by: Name, between: &str, word: &str) -> bool {
    if word.len() < 8 || !between.chars().all(|c| " \t:=\"'".contains(c)) {
        return false;
    }
    let has = |of: fn(&u8) -> bool| word.bytes().any(|byte| of(&byte));
    let has_digit = has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic);
    match by {
        Name::Scheme => has_digit || is_mixed(word),
        Name::Secret if between.contains([':', '=']) => has_digit && !word.starts_with('/'),
        // In prose, a name such as "gpt-4-turbo" may follow.
        Name::Secret => has_digit && changes(word) >= 2,
    }
}

/// Whether a capital follows a small letter, as in base64 and seldom in a language.
fn is_mixed(word: &str) -> bool {
    let pairs = word.as_bytes().windows(2);
    pairs.filter(|pair| pair[0].is_ascii_lowercase() && pair[1].is_ascii_uppercase()).count() > 0
}

/// Counts how often a letter and a digit stand side by side.
fn changes(word: &str) -> usize {
    let is_change = |pair: &&[u8]| {
        (pair[0].is_ascii_digit() && pair[1].is_ascii_alphabetic())
            || (pair[0].is_ascii_alphabetic() && pair[1].is_ascii_digit())
    };
    word.as_bytes().windows(2).filter(is_change).count()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shown(message: &str, data: &str) -> String {
        with_causes(message, Some(&RawValue::from_string(data.to_owned()).unwrap()))
    }

    /// RA: what agents put into `data`.
    #[test]
    fn the_reasons_in_data_are_shown() {
        #[rustfmt::skip]
        let cases = [
            (r#"{"details":"Rate limit exceeded"}"#,                                  "Internal error: Rate limit exceeded"),
            (r#""overloaded""#,                                                        "Internal error: overloaded"),
            (r#"{"message":"no login","cause":{"message":"401","cause":"no token"}}"#, "Internal error: no login: 401: no token"),
            (r#"{"error":{"message":"no such model","type":"x"}}"#,                    "Internal error: no such model"),
            (r#"{"details":"Internal error"}"#,                                        "Internal error"),
            (r#"{"details":" ","code":7}"#,                                            "Internal error"),
            (r#"{"details":"cut \ud83d off"}"#,                                        "Internal error: cut \u{fffd} off"),
            (r#"[1,"x"]"#,                                                              "Internal error: x"),
            (r#"{"errors":[{"message":"one"},{"message":"two"},7]}"#,                  "Internal error: one: two"),
            (r#"{"reason":"why","description":"more"}"#,                               "Internal error: why: more"),
            ("null",                                                                    "Internal error"),
        ];
        for (data, expected) in cases {
            assert_eq!(shown("Internal error", data), expected, "{data}");
        }
        assert_eq!(with_causes("plain", None), "plain");
    }

    /// I11: an error of any size and depth is shown in bounded length.
    #[test]
    fn the_shown_reasons_are_bounded() {
        let long = "é".repeat(ERROR_BYTES_MAX);
        assert!(shown(&long, r#""more""#).len() <= ERROR_BYTES_MAX);
        assert!(shown("short", &format!("\"{long}\"")).len() <= ERROR_BYTES_MAX);
        let many = format!("[{}]", vec![format!("{:?}", "y".repeat(999)); 99].join(","));
        assert!(shown("short", &many).len() <= ERROR_BYTES_MAX);
        assert!(redacted(&"sk-a1 ".repeat(1 << 20)).len() <= READ_BYTES_MAX);
        let deep = format!(r#"{}"end"{}"#, r#"{"cause":"#.repeat(50), "}".repeat(50));
        assert_eq!(shown("deep", &deep), "deep");
    }

    #[test]
    fn keys_and_tokens_are_redacted() {
        #[rustfmt::skip]
        let cases = [
            ("Incorrect API key provided: sk-proj-abcDEF123456.", "Incorrect API key provided: [redacted]"),
            ("Authorization: Bearer abc123def456 refused",        "Authorization: Bearer [redacted] refused"),
            (r#"{"api_key": "a1b2c3d4e5"}"#,                      r#"{"api_key": "[redacted]"}"#),
            ("Authorization: Basic dXNlcjpwYXNzd29yZA== refused", "Authorization: Basic [redacted]== refused"),
            ("gsk_a1b2c3d4e5f6 and xai-a1b2c3d4e5f6",              "[redacted] and [redacted]"),
            ("hf_a1b2c3d4e5f6 and ghs_a1b2c3d4e5f6",               "[redacted] and [redacted]"),
            ("AKIA1234567890ABCDEF",                               "[redacted]"),
            ("password=hunter22",                                  "password=[redacted]"),
            ("Basic authentication is off",                        "Basic authentication is off"),
            ("Bearer authentication failed",                       "Bearer authentication failed"),
            ("the token 128000000 of gpt-4-turbo",                 "the token 128000000 of gpt-4-turbo"),
            ("the token gpt-4-turbo-preview",                      "the token gpt-4-turbo-preview"),
            ("secret: 2026-11-20",                                 "secret: 2026-11-20"),
            ("the sk-learn-contrib package",                       "the sk-learn-contrib package"),
            ("token expired at 15:00",                            "token expired at 15:00"),
            ("a token of 128000 is the limit",                    "a token of 128000 is the limit"),
            ("invalid token configuration; token 15 is bad",      "invalid token configuration; token 15 is bad"),
            ("the sk-learn package",                              "the sk-learn package"),
        ];
        for (text, expected) in cases {
            assert_eq!(redacted(text), expected, "{text}");
        }
    }
}
