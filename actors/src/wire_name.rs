//! The API's words: how rows, logs and lists write a value of a closed set.

use serde::Serialize;

/// Returns the word for `value`, without quotes.
pub fn wire_name(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default().trim_matches('"').to_owned()
}
