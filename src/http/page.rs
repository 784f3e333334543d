//! Pages of lists: the limit, the order, the cursors.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::error::ApiError;

/// Returns the number of items on a page: `limit`, or 100 by default.
///
/// # Errors
///
/// [`ApiError::InvalidQuery`] if it is out of range.
pub fn page_limit(limit: Option<usize>) -> Result<usize, ApiError> {
    match limit.unwrap_or(100) {
        limit @ 1..=1000 => Ok(limit),
        _ => Err(ApiError::InvalidQuery("limit is a number from 1 to 1000".into())),
    }
}

/// The bytes of stored rows with which a page ends (I11). It has one item at least.
pub const PAGE_BYTES_MAX: usize = 8 << 20;

/// What was read for a page.
pub struct Found<T> {
    /// The rows.
    pub found: T,
    /// Whether a list ended at [`PAGE_BYTES_MAX`].
    pub is_cut: bool,
}

/// The order of a list.
#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The oldest first.
    Asc,
    /// The newest first.
    Desc,
}

/// A page of a list.
#[derive(Serialize)]
pub struct Page<T> {
    /// The items, in the order of the list.
    pub items: Vec<T>,
    /// The cursor of the next page; `None` on the last one.
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// Builds a page from items that were read with a limit of `limit + 1`: one item too many shows
    /// that there is a next page, as does a list that was cut. `cursor` gives the cursor after an
    /// item.
    pub fn new(read: Found<Vec<T>>, limit: usize, cursor: impl Fn(&T) -> String) -> Self {
        let Found { found: mut items, is_cut } = read;
        let has_next = is_cut || items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| has_next).map(cursor);
        Self { items, next_cursor }
    }

    /// Converts each item, and keeps the cursor.
    pub fn map<U>(self, convert: impl FnMut(T) -> U) -> Page<U> {
        let items = self.items.into_iter().map(convert).collect();
        Page { items, next_cursor: self.next_cursor }
    }
}

/// A page of a list that can be read in both directions.
#[derive(Serialize)]
pub struct BiPage<T> {
    /// The items, and the cursor of the next page.
    #[serde(flatten)]
    pub page: Page<T>,
    /// The cursor of the page before this one; `None` on the first one.
    pub prev_cursor: Option<String>,
}

/// A place in a list that can be read in both directions, and the direction to read in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cursor {
    /// Forward, after the item with this ordinal.
    Next(u64),
    /// Backward, before the item with this ordinal.
    Prev(u64),
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Next(ordinal) => write!(f, "{ordinal}"),
            Self::Prev(ordinal) => write!(f, "prev-{ordinal}"),
        }
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (number, cursor): (_, fn(u64) -> Self) = match text.strip_prefix("prev-") {
            Some(number) => (number, Self::Prev),
            None => (&*text, Self::Next),
        };
        u64::from_str(number)
            .map(cursor)
            .map_err(|_| de::Error::custom("cursor must come from a page of this list"))
    }
}
