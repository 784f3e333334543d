//! Parses TOML into a tree in which every value has its origin: file and line, variable or flag.
//!
//! Knows TOML and lines, and no key.

use std::{collections::BTreeMap, fmt, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::ConfigError;

/// The place of a value, as error messages begin with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file that is compiled into the program.
    Builtin { line: usize },
    /// A file of the user; lines count from 1.
    File { name: String, line: usize },
    /// An environment variable.
    Env(String),
    /// A command-line flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Builtin { line } => write!(f, "built-in greenroom.toml:{line}"),
            Origin::File { name, line } => write!(f, "{name}:{line}"),
            Origin::Env(name) => write!(f, "environment variable {name}"),
            Origin::Flag(name) => write!(f, "{name}"),
        }
    }
}

/// A value and its place; `key_at` is the place of its key.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key_at: Origin,
    pub at: Origin,
    pub value: Value,
}

pub type Table = BTreeMap<String, Entry>;

#[derive(Debug, Clone)]
pub enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Date,
    List(Vec<Entry>),
    Table(Table),
}

impl Value {
    /// Returns the kind of value with its article, for "expected …, found …".
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Bool(_) => "a boolean",
            Value::Date => "a date",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// One text, whose offsets map to lines.
pub struct Lines<'a> {
    /// None for the built-in text.
    name: Option<&'a str>,
    text: &'a str,
}

impl<'a> Lines<'a> {
    pub fn builtin(text: &'a str) -> Self {
        Lines { name: None, text }
    }

    pub fn file(name: &'a str, text: &'a str) -> Self {
        Lines { name: Some(name), text }
    }

    /// Returns the place of byte `offset`.
    pub fn origin(&self, offset: usize) -> Origin {
        let line = line_of(self.text.as_bytes(), offset);
        match self.name {
            Some(name) => Origin::File { name: name.to_owned(), line },
            None => Origin::Builtin { line },
        }
    }

    /// Parses the whole text.
    ///
    /// # Errors
    ///
    /// A syntax error, a duplicate key, or an integer that exceeds 64 bits, with its line.
    pub fn parse(&self) -> Result<Table, ConfigError> {
        let document = DeTable::parse(self.text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            ConfigError::at(&self.origin(offset), error.message())
        })?;
        self.table(document.into_inner())
    }

    fn table(&self, table: DeTable<'_>) -> Result<Table, ConfigError> {
        table.into_iter().map(|(key, value)| self.pair(key, value)).collect()
    }

    fn pair(
        &self,
        key: Spanned<std::borrow::Cow<'_, str>>,
        value: Spanned<DeValue<'_>>,
    ) -> Result<(String, Entry), ConfigError> {
        let key_at = self.origin(key.span().start);
        let entry = self.entry(value, key_at)?;
        Ok((key.into_inner().into_owned(), entry))
    }

    fn entry(&self, value: Spanned<DeValue<'_>>, key_at: Origin) -> Result<Entry, ConfigError> {
        let span: Range<usize> = value.span();
        let at = self.origin(span.start);
        let value = match value.into_inner() {
            DeValue::String(text) => Value::Text(text.into_owned()),
            DeValue::Integer(number) => Value::Integer(
                i64::from_str_radix(number.as_str(), number.radix())
                    .map_err(|_| ConfigError::at(&at, format!("{number} is out of range")))?,
            ),
            DeValue::Float(number) => Value::Float(
                number
                    .as_str()
                    .parse()
                    .map_err(|_| ConfigError::at(&at, format!("{number} is not a number")))?,
            ),
            DeValue::Boolean(yes) => Value::Bool(yes),
            DeValue::Datetime(_) => Value::Date,
            DeValue::Array(items) => Value::List(self.list(items)?),
            DeValue::Table(table) => Value::Table(self.table(table)?),
        };
        Ok(Entry { key_at, at, value })
    }

    fn list(&self, items: toml::de::DeArray<'_>) -> Result<Vec<Entry>, ConfigError> {
        items
            .into_iter()
            .map(|item| {
                let at = self.origin(item.span().start);
                self.entry(item, at)
            })
            .collect()
    }
}

/// Returns the line, from 1, that holds byte `offset` of `text`.
pub fn line_of(text: &[u8], offset: usize) -> usize {
    1 + text[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}
