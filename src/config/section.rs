//! Reads one table of the configuration key by key into types.
//!
//! Every error begins with the place of the value and names the accepted values.

use std::{collections::BTreeMap, fmt::Display, ops::RangeInclusive, time::Duration};

use bytesize::ByteSize;

use super::{
    ConfigError,
    source::{Entry, Origin, Table, Value},
};

/// Longest duration of any key, well below the range of 64-bit milliseconds.
pub const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Shortest timeout.
pub const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// Maximum of any count: it catches typing errors.
const COUNT_MAX: u32 = 1_000_000;

/// Largest size of any key but an rlimit. A larger limit would no longer protect the server.
const SIZE_MAX: u64 = 1 << 30;

/// A table whose keys are all known.
pub struct Section<'a> {
    name: &'a str,
    at: Origin,
    table: Table,
}

impl<'a> Section<'a> {
    /// Opens the table in `entry`, which the user writes as `[name]`.
    ///
    /// # Errors
    ///
    /// The entry is not a table, or the table has a key that is not among `known`.
    pub fn open(name: &'a str, entry: Entry, known: &[&str]) -> Result<Self, ConfigError> {
        let Value::Table(table) = entry.value else {
            let problem = format!("[{name}] must be a table, found {}", entry.value.kind());
            return Err(ConfigError::at(&entry.key_at, problem));
        };
        refuse_unknown(&format!("in [{name}]"), &table, known)?;
        Ok(Section { name, at: entry.key_at, table })
    }

    /// Returns an error about the value of `key`.
    pub fn bad(&self, at: &Origin, key: &str, problem: impl Display) -> ConfigError {
        ConfigError::at(at, format!("{key} in [{}] {problem}", self.name))
    }

    fn wrong_kind(&self, key: &str, entry: &Entry, expected: &str) -> ConfigError {
        let found = entry.value.kind();
        self.bad(&entry.at, key, format_args!("must be {expected}, found {found}"))
    }

    /// Removes and returns a required key.
    pub fn take(&mut self, key: &str) -> Result<Entry, ConfigError> {
        self.table.remove(key).ok_or_else(|| {
            ConfigError::at(&self.at, format!("[{}] lacks the required key {key}", self.name))
        })
    }

    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether the value of `key` is a table.
    pub fn is_table(&self, key: &str) -> bool {
        matches!(self.table.get(key), Some(Entry { value: Value::Table(_), .. }))
    }

    /// Removes and returns an optional key.
    pub fn take_if(&mut self, key: &str) -> Option<Entry> {
        self.table.remove(key)
    }

    /// Reads a text, and its place.
    pub fn text(&mut self, key: &str) -> Result<(String, Origin), ConfigError> {
        let entry = self.take(key)?;
        match entry.value {
            Value::Text(text) => Ok((text, entry.at)),
            _ => Err(self.wrong_kind(key, &entry, "a string")),
        }
    }

    /// Reads a duration such as `"30s"`, within `range`.
    pub fn duration(
        &mut self,
        key: &str,
        range: RangeInclusive<Duration>,
    ) -> Result<Duration, ConfigError> {
        let entry = self.take(key)?;
        let Value::Text(text) = &entry.value else {
            return Err(self.wrong_kind(key, &entry, "a duration such as \"30s\""));
        };
        let duration = match text.trim() {
            "0" => Duration::ZERO,
            text => humantime::parse_duration(text).map_err(|error| {
                let problem = format!("must be a duration such as \"30s\": {error}");
                self.bad(&entry.at, key, problem)
            })?,
        };
        if !range.contains(&duration) {
            let least = humantime::format_duration(*range.start());
            let most = humantime::format_duration(*range.end());
            let problem = format!("must be from {least} to {most}, found \"{text}\"");
            return Err(self.bad(&entry.at, key, problem));
        }
        Ok(duration)
    }

    /// [`Self::duration`] in whole milliseconds.
    pub fn duration_ms(
        &mut self,
        key: &str,
        range: RangeInclusive<Duration>,
    ) -> Result<u64, ConfigError> {
        let duration = self.duration(key, range)?;
        Ok(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    /// Reads a size such as `"1MiB"`; returns bytes, at least 1.
    pub fn size(&mut self, key: &str) -> Result<usize, ConfigError> {
        let bytes = self.size_up_to(key, SIZE_MAX)?;
        Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// [`Self::size`] with another maximum.
    pub fn size_up_to(&mut self, key: &str, max: u64) -> Result<u64, ConfigError> {
        let entry = self.take(key)?;
        let Value::Text(text) = &entry.value else {
            return Err(self.wrong_kind(key, &entry, "a size such as \"1MiB\""));
        };
        let size: ByteSize = text.trim().parse().map_err(|_| {
            self.bad(
                &entry.at,
                key,
                format_args!("must be a size such as \"1MiB\", found {text:?}"),
            )
        })?;
        if size.0 == 0 || max < size.0 {
            let problem = format!("must be from 1 byte to {}, found {text:?}", ByteSize(max));
            return Err(self.bad(&entry.at, key, problem));
        }
        Ok(size.0)
    }

    /// Reads a whole number within `range`.
    pub fn integer(&mut self, key: &str, range: RangeInclusive<u32>) -> Result<u32, ConfigError> {
        let entry = self.take(key)?;
        let Value::Integer(number) = entry.value else {
            return Err(self.wrong_kind(key, &entry, "an integer"));
        };
        u32::try_from(number).ok().filter(|number| range.contains(number)).ok_or_else(|| {
            let problem =
                format!("must be from {} to {}, found {number}", range.start(), range.end());
            self.bad(&entry.at, key, problem)
        })
    }

    /// Reads how many of something there may be, at least 1.
    pub fn count(&mut self, key: &str) -> Result<usize, ConfigError> {
        let count = self.integer(key, 1..=COUNT_MAX)?;
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// Reads a share, 0 to 1.
    pub fn share(&self, key: &str, entry: &Entry) -> Result<f64, ConfigError> {
        let share = match entry.value {
            Value::Integer(0) => 0.0,
            Value::Integer(1) => 1.0,
            // Any other integer is out of range.
            Value::Integer(number) => return Err(self.not_a_share(key, entry, number)),
            Value::Float(number) => number,
            _ => return Err(self.wrong_kind(key, entry, "a number from 0 to 1")),
        };
        if (0.0..=1.0).contains(&share) {
            Ok(share)
        } else {
            Err(self.not_a_share(key, entry, share))
        }
    }

    fn not_a_share(&self, key: &str, entry: &Entry, found: impl Display) -> ConfigError {
        self.bad(&entry.at, key, format_args!("must be from 0 to 1, found {found}"))
    }

    pub fn boolean(&mut self, key: &str) -> Result<bool, ConfigError> {
        let entry = self.take(key)?;
        match entry.value {
            Value::Bool(yes) => Ok(yes),
            _ => Err(self.wrong_kind(key, &entry, "true or false")),
        }
    }

    /// Reads one of `words`; returns its meaning.
    pub fn choice<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Result<T, ConfigError> {
        let (text, at) = self.text(key)?;
        self.one_of(key, &text, &at, words)
    }

    /// Returns the meaning of `text`, found at `at`, among `words`.
    pub fn one_of<T: Copy>(
        &self,
        key: &str,
        text: &str,
        at: &Origin,
        words: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            let words = words.join(", ");
            self.bad(at, key, format_args!("must be one of {words}, found {text:?}"))
        })
    }

    /// Reads a list of texts, each with its place.
    pub fn texts(&mut self, key: &str) -> Result<Vec<(String, Origin)>, ConfigError> {
        let entry = self.take(key)?;
        let Value::List(items) = entry.value else {
            return Err(self.wrong_kind(key, &entry, "a list of strings"));
        };
        items
            .into_iter()
            .map(|item| match item.value {
                Value::Text(text) => Ok((text, item.at)),
                _ => Err(self.wrong_kind(key, &item, "a list of strings")),
            })
            .collect()
    }

    /// Reads a list of ports.
    pub fn ports(&mut self, key: &str) -> Result<Vec<u16>, ConfigError> {
        const EXPECTED: &str = "a list of ports, 1 to 65535";
        let entry = self.take(key)?;
        let Value::List(items) = entry.value else {
            return Err(self.wrong_kind(key, &entry, EXPECTED));
        };
        let port = |item: Entry| match item.value {
            Value::Integer(number) => match u16::try_from(number) {
                Ok(port @ 1..) => Ok(port),
                _ => Err(self.bad(&item.at, key, format!("must be {EXPECTED}, found {number}"))),
            },
            _ => Err(self.wrong_kind(key, &item, EXPECTED)),
        };
        items.into_iter().map(port).collect()
    }

    /// Reads a list of `words`; returns their meanings.
    pub fn choices<T: Copy>(
        &mut self,
        key: &str,
        words: &[(&str, T)],
    ) -> Result<Vec<T>, ConfigError> {
        let texts = self.texts(key)?;
        texts.iter().map(|(text, at)| self.one_of(key, text, at, words)).collect()
    }

    /// Reads a table of texts, each with its place.
    pub fn text_table(
        &mut self,
        key: &str,
    ) -> Result<BTreeMap<String, (String, Origin)>, ConfigError> {
        let entry = self.take(key)?;
        let Value::Table(table) = entry.value else {
            return Err(self.wrong_kind(key, &entry, "a table of strings"));
        };
        table
            .into_iter()
            .map(|(name, item)| match item.value {
                Value::Text(text) => Ok((name, (text, item.at))),
                _ => {
                    let expected = format!("a table of strings, also for {name:?}");
                    Err(self.wrong_kind(key, &item, &expected))
                }
            })
            .collect()
    }
}

/// Rejects a table that has an unknown key.
///
/// # Errors
///
/// `table`, described by `place` ("in [server]"), has a key that is not among `known`.
pub fn refuse_unknown(place: &str, table: &Table, known: &[&str]) -> Result<(), ConfigError> {
    let unknown = table.iter().find(|(key, _)| !known.contains(&key.as_str()));
    unknown.map_or(Ok(()), |(key, entry)| {
        let known = known.join(", ");
        let problem = format!("unknown key {key:?} {place}; known keys: {known}");
        Err(ConfigError::at(&entry.key_at, problem))
    })
}
