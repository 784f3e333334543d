//! Reads a JSON object leniently: each field by itself, so that an odd one spoils no other.
//!
//! Fields are kept as raw text, and the reader of each decides what it can be: a string, a number.
//! One that cannot be read counts as absent, as `null` does; of a repeated one, the last counts.

use std::{borrow::Cow, fmt, marker::PhantomData};

use greenroom_core::json::well_formed;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// Numbers up to this one have an exact `f64`.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// The fields of an object that greenroom reads.
pub(super) trait Fields<'a>: Default {
    /// Sets the field `name`, if it is one of them; `None` for `null`.
    fn set(&mut self, name: &str, value: Option<&'a RawValue>);
}

/// Declares structs of raw fields, each with its names in JSON.
macro_rules! fields {
    ($(
        $(#[$about:meta])*
        $visibility:vis struct $kind:ident {
            $($(#[$field_about:meta])* $field:ident: $($name:literal)|+),+ $(,)?
        }
    )+) => {$(
        $(#[$about])*
        #[derive(Default)]
        $visibility struct $kind<'a> {
            $($(#[$field_about])* $visibility $field: Option<&'a serde_json::value::RawValue>,)+
        }

        impl<'a> $crate::acp::fields::Fields<'a> for $kind<'a> {
            fn set(&mut self, name: &str, value: Option<&'a serde_json::value::RawValue>) {
                match name {
                    $($($name)|+ => self.$field = value,)+
                    _ => {}
                }
            }
        }
    )+};
}
pub(super) use fields;

/// An object's fields. serde's own structs accept an array too, field by field; this does not.
pub(super) struct Object<T>(pub T);

impl<'a, 'de: 'a, T: Fields<'a>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'a, 'de: 'a, T: Fields<'a>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let mut fields = T::default();
        while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            if let Some(name) = text(name) {
                fields.set(&name, (value.get() != "null").then_some(value));
            }
        }
        Ok(fields)
    }
}

/// Parses an object.
///
/// # Errors
///
/// The parse error if `json` is no JSON object.
pub(super) fn read<'a, T: Fields<'a>>(json: &'a str) -> Result<T, serde_json::Error> {
    serde_json::from_str(json).map(|Object(fields)| fields)
}

/// Parses an object; `None` if it is another value.
pub(super) fn object<'a, T: Fields<'a>>(raw: &'a RawValue) -> Option<T> {
    raw.get().starts_with('{').then(|| read(raw.get()).ok())?
}

/// Parses an array; empty if it is another value.
pub(super) fn elements(raw: &RawValue) -> Vec<&RawValue> {
    serde_json::from_str(raw.get()).unwrap_or_default()
}

/// Parses a value of any other type.
pub(super) fn value<T: DeserializeOwned>(raw: &RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

/// Returns a JSON string's text, borrowed if nothing in it is escaped. `None` if it has a lone
/// surrogate: what a name is must be certain.
pub(super) fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inner = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    match memchr::memchr(b'\\', inner.as_bytes()) {
        None => Some(Cow::Borrowed(inner)),
        Some(_) => serde_json::from_str(raw.get()).ok().map(Cow::Owned),
    }
}

/// Returns a JSON string's text for people, with U+FFFD in place of each lone surrogate.
pub(super) fn lossy_text(raw: &RawValue) -> Option<Cow<'_, str>> {
    text(raw).or_else(|| serde_json::from_str(&well_formed(raw.get())?).ok().map(Cow::Owned))
}

/// Returns a whole number: also one that is written as `9.0` or `"9"`.
pub(super) fn whole<T: TryFrom<i64>>(raw: &RawValue) -> Option<T> {
    let digits = text(raw).unwrap_or(Cow::Borrowed(raw.get()));
    let number = digits.parse().ok().or_else(|| {
        let number: f64 = digits.parse().ok()?;
        (number.fract() == 0.0 && number.abs() <= EXACT_MAX).then_some(number as i64)
    });
    T::try_from(number?).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn raw(json: &str) -> &RawValue {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_lone_surrogate_becomes_a_replacement_character_and_the_rest_stays() {
        #[rustfmt::skip]
        let cases = [
            (r#""plain""#,                 Some("plain"),                Some("plain")),
            (r#""a\u00e4\n\ud83d\ude00""#, Some("aä\n😀"),               Some("aä\n😀")),
            (r#""cut \ud83d""#,            None,                         Some("cut \u{fffd}")),
            (r#""\ude00 \ud83d\n\ud83d""#, None,                         Some("\u{fffd} \u{fffd}\n\u{fffd}")),
            (r#""\ud83d\ud83d\ude00""#,    None,                         Some("\u{fffd}😀")),
            (r#""\\ud83d \ud83d\\""#,      None,                         Some("\\ud83d \u{fffd}\\")),
            (r#""\uD83Dä""#,               None,                         Some("\u{fffd}ä")),
            ("7",                          None,                         None),
            ("null",                       None,                         None),
            (r#"["\ud83d"]"#,              None,                         None),
        ];
        for (json, strict, lossy) in cases {
            assert_eq!(text(raw(json)).as_deref(), strict, "{json}");
            assert_eq!(lossy_text(raw(json)).as_deref(), lossy, "{json}");
        }
    }

    #[test]
    fn a_whole_number_has_several_forms() {
        #[rustfmt::skip]
        let cases = [
            ("9", Some(9)), ("9.0", Some(9)), ("9e0", Some(9)), (r#""9""#, Some(9)), ("-1", Some(-1)),
            ("9.5", None), (r#""x""#, None), (r#""""#, None), (r#""NaN""#, None), ("1e400", None),
            ("1e300", None), ("99999999999999999999", None), ("null", None), ("[9]", None),
        ];
        for (json, number) in cases {
            assert_eq!(whole::<i64>(raw(json)), number, "{json}");
        }
        assert_eq!(whole::<u64>(raw("-1")), None);
    }

    #[test]
    fn each_field_is_read_by_itself() {
        fields! {
            struct Pair { one: "one" | "eins", two: "two" }
        }
        let of = |json: &'static str| {
            let pair: Pair<'_> = object(raw(json))?;
            Some([pair.one, pair.two].map(|field| field.map(RawValue::get)))
        };
        #[rustfmt::skip]
        let cases = [
            (r#"{"one":"\ud83d","two":1e999}"#,     Some([Some(r#""\ud83d""#), Some("1e999")])),
            (r#"{"eins":1,"\ud83d":[],"x":{}}"#,    Some([Some("1"), None])),
            (r#"{"one":1,"one":2,"two":null}"#,     Some([Some("2"), None])),
            (r#"{"\u006fne":1}"#,                   Some([Some("1"), None])),
            ("[1,2]",                               None),
            ("null",                                None),
        ];
        for (json, fields) in cases {
            assert_eq!(of(json), fields, "{json}");
        }
    }
}
