//! Checks that any reader takes a body: parts of it are stored as they are, and shown to others.

use std::fmt;

use greenroom_core::json::DEPTH_MAX;
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};

/// Reads any JSON value and keeps nothing of it. Half a surrogate pair, a number that no `f64`
/// holds, and a value that nests too deep are errors at their place.
pub struct Strict {
    /// How many levels the value may have.
    levels: usize,
}

impl Strict {
    /// The check of a whole body: each of its fields may have [`DEPTH_MAX`] levels.
    pub fn body() -> Self {
        Self { levels: DEPTH_MAX + 1 }
    }

    fn inner<E: Error>(&self) -> Result<Self, E> {
        match self.levels.checked_sub(1) {
            Some(levels) => Ok(Self { levels }),
            None => Err(E::custom(format_args!("it nests deeper than {DEPTH_MAX}"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner: Self = self.inner()?;
        while items.next_element_seed(Self { ..inner })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let inner: Self = self.inner()?;
        while fields.next_key::<String>()?.is_some() {
            fields.next_value_seed(Self { ..inner })?;
        }
        Ok(())
    }
}
