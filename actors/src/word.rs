//! The contract's words: how a value that is one of a few is written in rows, logs and lists.

use serde::Serialize;

/// The word for `value`, without quotes.
pub fn word(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default().trim_matches('"').to_owned()
}
