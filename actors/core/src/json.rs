//! JSON that is passed on unchanged.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

/// A JSON value, kept as its original text and shared. It is on one line: line feeds between its
/// tokens become spaces, so that a transcript can put a line feed between values.
#[derive(Clone)]
pub struct Json(Arc<RawValue>);

impl Json {
    /// Parses `text` as one JSON value.
    ///
    /// # Errors
    ///
    /// The parse error if `text` is not exactly one JSON value.
    pub fn parse(text: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(on_one_line(text)).map(|raw| Self(raw.into()))
    }

    /// Writes `value` as JSON.
    ///
    /// # Errors
    ///
    /// The serializer's error if `value` has no JSON form.
    pub fn write(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(|raw| Self(raw.into()))
    }

    /// Returns the original text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        if raw.get().contains(['\n', '\r']) {
            return Self::parse(raw.get().to_owned()).map_err(de::Error::custom);
        }
        Ok(Self(raw.into()))
    }
}

/// Deserializes a caller's own JSON, which others get in answers: what strict readers refuse, such
/// as half a surrogate pair, a number out of range or deep nesting, is an error.
pub fn readable<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Json>, D::Error> {
    let json = Option::<Json>::deserialize(from)?;
    if let Some(json) = &json {
        // Readers give up at a depth of 128, and an answer nests a little itself.
        let within = format!("{}{}{}", "[".repeat(16), json.as_str(), "]".repeat(16));
        serde_json::from_str::<serde_json::Value>(&within)
            .map_err(|err| de::Error::custom(format!("not every reader can read it: {err}")))?;
    }
    Ok(json)
}

/// Replaces line ends by spaces. In valid JSON they are between tokens only: strings escape them.
fn on_one_line(text: String) -> String {
    if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ") } else { text }
}
