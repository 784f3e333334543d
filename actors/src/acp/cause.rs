//! The reasons that an agent's error gives beside its message.
//!
//! Many agents answer any failure with "Internal error", and say in `data` what happened.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{
    bounds::{ERROR_BYTES_MAX, append_bounded},
    fields::{fields, lossy_text, object},
};

/// How deep causes are nested at most.
const DEPTH_MAX: usize = 8;
/// What keys and tokens of model providers begin with.
const SECRET_STARTS: [&str; 9] =
    ["sk-", "sk_", "ghp_", "gho_", "github_pat_", "xoxb-", "AIza", "ya29.", "eyJ"];
/// Words after which a secret stands.
const SECRET_NAMES: [&str; 7] =
    ["bearer", "api_key", "api-key", "apikey", "token", "password", "secret"];
/// What is shown in place of a secret.
const REDACTED: &str = "[redacted]";

/// Returns the message of an error with the reasons that its `data` gives: each once, up to
/// [`ERROR_BYTES_MAX`] bytes, without keys and tokens.
pub(super) fn with_causes(message: &str, data: Option<&RawValue>) -> String {
    let mut shown = String::new();
    append_bounded(&mut shown, &redacted(message), ERROR_BYTES_MAX);
    let mut causes = Vec::new();
    if let Some(data) = data {
        add_causes(data, DEPTH_MAX, &mut causes);
    }
    for cause in causes {
        let cause = redacted(cause.trim());
        if !cause.is_empty() && !shown.contains(&*cause) {
            append_bounded(&mut shown, &format!(": {cause}"), ERROR_BYTES_MAX);
        }
    }
    shown
}

/// Adds the texts of `data`: itself, or those of its members that name a reason, outermost first.
fn add_causes<'a>(data: &'a RawValue, depth: usize, causes: &mut Vec<Cow<'a, str>>) {
    fields! {
        struct Data {
            message: "message",
            details: "details" | "detail",
            reason: "reason" | "description" | "error_description",
            error: "error",
            data: "data",
            cause: "cause",
        }
    }
    if let Some(text) = lossy_text(data) {
        causes.push(text);
    } else if let Some(next) = depth.checked_sub(1)
        && let Some(Data { message, details, reason, error, data, cause }) = object(data)
    {
        for member in [message, details, reason, error, data, cause].into_iter().flatten() {
            add_causes(member, next, causes);
        }
    }
}

/// Returns the text with each word replaced that looks like a key or a token, or that stands after
/// a name of one.
pub(super) fn redacted(text: &str) -> Cow<'_, str> {
    let is_part = |byte: char| byte.is_ascii_alphanumeric() || "-_.+/~".contains(byte);
    let (mut shown, mut rest, mut is_named) = (String::new(), text, false);
    while let Some(at) = rest.find(is_part) {
        let (before, from) = rest.split_at(at);
        let (word, after) = from.split_at(from.find(|c| !is_part(c)).unwrap_or(from.len()));
        // A name counts for the next word: "token: abc", "Bearer abc", `"api_key": "abc"`.
        let is_separate = before.chars().all(|c| " \t:=\"'".contains(c));
        let begins_like_one =
            SECRET_STARTS.iter().any(|start| word.starts_with(start) && word.len() > 12);
        let is_secret = begins_like_one || (is_named && is_separate && is_random(word));
        shown.push_str(before);
        shown.push_str(if is_secret { REDACTED } else { word });
        let name = word.to_ascii_lowercase();
        is_named = SECRET_NAMES.iter().any(|known| name.ends_with(known));
        rest = after;
    }
    if !shown.contains(REDACTED) {
        return Cow::Borrowed(text);
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

/// Whether a word is long and holds digits, as secrets do and words of a language do not.
fn is_random(word: &str) -> bool {
    word.len() >= 8 && word.bytes().any(|byte| byte.is_ascii_digit())
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
            (r#"[1,"x"]"#,                                                              "Internal error"),
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
