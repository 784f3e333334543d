//! JSON that is passed on unchanged, and how answers show it.

// What of it readers refuse, and the form that they take.
mod readable;

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

pub use self::readable::{DEPTH_MAX, has_odd_token, may_nest_too_deep, readable, well_formed};

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

/// A JSON value as answers show it: see [`readable`]. Storage has the original text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Readable(Json);

impl From<Json> for Readable {
    fn from(json: Json) -> Self {
        let shown = match readable(json.as_str()) {
            Cow::Borrowed(_) => None,
            Cow::Owned(shown) => Json::parse(shown).ok(),
        };
        Self(shown.unwrap_or(json))
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

/// Replaces line ends by spaces. In valid JSON they are between tokens only: strings escape them.
fn on_one_line(text: String) -> String {
    if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ") } else { text }
}
