//! JSON as answers show it: readers refuse what is stored as an agent wrote it.
//!
//! A strict reader refuses half a surrogate pair, a number that no `f64` holds, and deep nesting,
//! and with it the whole list that it is in. Nearly all JSON has none of these, so [`readable`]
//! first looks for their traces.

use std::borrow::Cow;

use memchr::memmem;

/// How deep a value may nest. Of the usual readers, .NET's give up first, at 64, and an answer
/// nests up to four levels around a value.
pub const DEPTH_MAX: usize = 60;

/// The bytes that are looked at together.
const CHUNK: usize = 32;
/// How far a trace extends beyond its first byte: a digit, `e`, a sign and the first two digits.
const LOOKAHEAD: usize = 4;

/// Returns one JSON value as any reader takes it: U+FFFD in place of half a surrogate pair; and as
/// a string with its text, a number that no `f64` holds, and an object or an array that nests
/// deeper than [`DEPTH_MAX`].
pub fn readable(json: &str) -> Cow<'_, str> {
    if has_odd_token(json) || may_nest_too_deep(json) { rewritten(json) } else { json.into() }
}

/// Whether a value may nest too deep, by the number of its brackets.
pub fn may_nest_too_deep(json: &str) -> bool {
    // `[` and `{` differ in this bit only.
    let opens = |bytes: &[u8]| bytes.iter().map(|byte| u8::from(byte | 0x20 == b'{')).sum::<u8>();
    // The sum holds the brackets of a chunk of this size.
    let chunks = json.as_bytes().chunks(192);
    chunks.map(|chunk| usize::from(opens(chunk))).sum::<usize>() > DEPTH_MAX
}

/// Whether JSON may have half a surrogate pair, or a number that no `f64` holds. It may be any
/// number of values with white space between them.
pub fn has_odd_token(json: &str) -> bool {
    let bytes = json.as_bytes();
    has_odd_escape(bytes) || has_odd_number(bytes)
}

fn has_odd_escape(bytes: &[u8]) -> bool {
    // The escape of a surrogate begins so; that of most other characters does not.
    [b"\\ud", b"\\uD"]
        .iter()
        .any(|begin| memmem::find_iter(bytes, begin).any(|at| is_odd_escape(bytes, at)))
}

fn has_odd_number(bytes: &[u8]) -> bool {
    for from in (0..bytes.len()).step_by(CHUNK) {
        let to = bytes.len().min(from + CHUNK);
        let has_trace = match bytes[from..].first_chunk() {
            Some(window) => has_trace(window),
            None => {
                let mut window = [0; CHUNK + LOOKAHEAD];
                window[..bytes.len() - from].copy_from_slice(&bytes[from..]);
                has_trace(&window)
            }
        };
        // Without an exponent of three digits, only two hundred digits are out of range; and those
        // fill a chunk.
        if bytes[from..to].iter().all(u8::is_ascii_digit) {
            return true;
        }
        let mut pairs = (from..to).zip(bytes[from..].windows(2));
        if has_trace && pairs.any(|(at, pair)| pair[1] | 0x20 == b'e' && is_odd_number(bytes, at)) {
            return true;
        }
    }
    false
}

/// Whether a digit, `e`, any byte and two digits are in a chunk: part of each long exponent.
/// Without branches, so that it is compiled to vector instructions.
fn has_trace(window: &[u8; CHUNK + LOOKAHEAD]) -> bool {
    let digit = |byte: u8| u8::from(byte.wrapping_sub(b'0') < 10);
    let [first, second, fourth, fifth]: [&[u8]; 4] =
        [0, 1, 3, 4].map(|offset| &window[offset..offset + CHUNK]);
    let mut found = 0;
    for at in 0..CHUNK {
        let is_e = u8::from(second[at] | 0x20 == b'e');
        found |= digit(first[at]) & is_e & digit(fourth[at]) & digit(fifth[at]);
    }
    found != 0
}

/// Whether the bytes at a place look like half a surrogate pair.
fn is_odd_escape(bytes: &[u8], at: usize) -> bool {
    let Some(unit) = surrogate(bytes, at) else { return false };
    // A backslash before it may make it plain text, and its neighbour too.
    let is_escaped = at.checked_sub(1).is_some_and(|before| bytes[before] == b'\\');
    let is_paired = match unit {
        0xd800..=0xdbff => is_low(surrogate(bytes, at + 6)),
        _ => at.checked_sub(6).is_some_and(|before| is_high(surrogate(bytes, before))),
    };
    is_escaped || !is_paired
}

/// Whether a digit at a place is the last one before an exponent of three digits or more, in what
/// may be a number and not text.
fn is_odd_number(bytes: &[u8], at: usize) -> bool {
    let has_exponent = bytes.get(at).is_some_and(u8::is_ascii_digit)
        && bytes.get(at + 1).is_some_and(|byte| byte | 0x20 == b'e');
    if !has_exponent {
        return false;
    }
    let exponent = bytes.get(at + 2..).unwrap_or_default();
    let exponent = exponent.strip_prefix(b"+").unwrap_or(exponent);
    if exponent.iter().take(3).filter(|byte| byte.is_ascii_digit()).count() < 3 {
        return false;
    }
    let before = bytes[..at].iter().rev().find(|byte| !is_number_part(**byte));
    before.is_none_or(|before| b" \t\n\r:,[".contains(before))
}

fn is_number_part(byte: u8) -> bool {
    byte.is_ascii_digit() || b"+-.eE".contains(&byte)
}

fn surrogate(bytes: &[u8], at: usize) -> Option<u16> {
    let escape = bytes.get(at..at.checked_add(6)?)?;
    let digits = std::str::from_utf8(escape.strip_prefix(b"\\u")?).ok()?;
    let unit = u16::from_str_radix(digits, 16).ok()?;
    (0xd800..=0xdfff).contains(&unit).then_some(unit)
}

fn is_high(unit: Option<u16>) -> bool {
    unit.is_some_and(|unit| unit < 0xdc00)
}

fn is_low(unit: Option<u16>) -> bool {
    unit.is_some_and(|unit| unit >= 0xdc00)
}

/// Goes through all tokens of a JSON value, and replaces what readers refuse.
fn rewritten(json: &str) -> Cow<'_, str> {
    let mut kept = String::with_capacity(json.len() + 16);
    let (mut at, mut depth) = (0, 0_usize);
    // Where the value begins that is shown as its text.
    let mut deep_from = None;
    while let Some(first) = json[at..].chars().next() {
        let token = match first {
            '"' => string(&json[at..]),
            '-' | '0'..='9' => number(&json[at..]),
            other => &json[at..at + other.len_utf8()],
        };
        if matches!(first, '{' | '[') {
            depth += 1;
            if depth > DEPTH_MAX && deep_from.is_none() {
                deep_from = Some(at);
            }
        }
        if deep_from.is_none() {
            match first {
                '"' => kept.push_str(well_formed(token).as_deref().unwrap_or(token)),
                '-' | '0'..='9' if token.parse().is_ok_and(f64::is_infinite) => {
                    kept.push('"');
                    kept.push_str(token);
                    kept.push('"');
                }
                _ => kept.push_str(token),
            }
        }
        at += token.len();
        if matches!(first, '}' | ']') {
            depth = depth.saturating_sub(1);
            if depth == DEPTH_MAX
                && let Some(from) = deep_from.take()
            {
                kept.push_str(&serde_json::Value::from(&json[from..at]).to_string());
            }
        }
    }
    if kept == json { json.into() } else { kept.into() }
}

/// Returns the string at the beginning, with its quotes.
fn string(json: &str) -> &str {
    let mut escaped = false;
    let end = json.bytes().skip(1).position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(json, |end| &json[..end + 2])
}

/// Returns the number at the beginning.
fn number(json: &str) -> &str {
    let end = json.bytes().position(|byte| !is_number_part(byte));
    &json[..end.unwrap_or(json.len())]
}

/// Replaces the escapes of lone surrogates in a JSON string by that of U+FFFD; `None` if it is no
/// string.
pub fn well_formed(string: &str) -> Option<String> {
    let surrogate = |escape: &str, at| surrogate(escape.as_bytes(), at);
    let mut replaced = String::with_capacity(string.len());
    let mut rest = string.starts_with('"').then_some(string)?;
    while let Some(at) = rest.find('\\') {
        let (plain, escape) = rest.split_at(at);
        replaced.push_str(plain);
        let (length, kept) = match (surrogate(escape, 0), surrogate(escape, 6)) {
            (high, low) if is_high(high) && is_low(low) => (12, &escape[..12]),
            (Some(_), _) => (6, "\\ufffd"),
            (None, _) => (2, escape.get(..2)?),
        };
        replaced.push_str(kept);
        rest = &escape[length..];
    }
    replaced.push_str(rest);
    Some(replaced)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn nested(depth: usize, inner: &str) -> String {
        format!("{}{inner}{}", "[".repeat(depth), "]".repeat(depth))
    }

    /// C15: what strict readers refuse is shown in another form, and all else as it is written.
    #[test]
    fn what_strict_readers_refuse_is_shown_in_another_form() {
        let digits = |count: usize| "7".repeat(count);
        let deep = nested(DEPTH_MAX, r#"{"b":["\ud83d"]}"#);
        let deep_shown = nested(DEPTH_MAX, &json!(r#"{"b":["\ud83d"]}"#).to_string());
        #[rustfmt::skip]
        let cases = [
            ("half a pair",           r#"{"a":"cut \ud83d"}"#.to_owned(),      r#"{"a":"cut \ufffd"}"#.to_owned()),
            ("the other half",        r#"["\uDE00\uD83D"]"#.into(),            r#"["\ufffd\ufffd"]"#.into()),
            ("in a key",              r#"{"\ud83d":1}"#.into(),                r#"{"\ufffd":1}"#.into()),
            ("after a backslash",     r#""\\\ud83d""#.into(),                  r#""\\\ufffd""#.into()),
            ("a text before a half",  r#""\\ud83d\ude00""#.into(),             r#""\\ud83d\ufffd""#.into()),
            ("a large exponent",      r#"{"a":1e999,"b":[-1E+0400]}"#.into(),  r#"{"a":"1e999","b":["-1E+0400"]}"#.into()),
            ("alone",                 "1e999".into(),                          r#""1e999""#.into()),
            ("many digits",           format!("[{}]", digits(400)),            format!("[\"{}\"]", digits(400))),
            ("digits and exponent",   format!("[{}e99]", digits(300)),         format!("[\"{}e99\"]", digits(300))),
            ("one level too deep",    deep,                                    deep_shown),
        ];
        for (name, json, shown) in cases {
            assert_eq!(readable(&json), shown, "{name}");
            serde_json::from_str::<Value>(&shown).unwrap();
            // Wherever it begins, also across two chunks.
            for before in 0..2 * CHUNK {
                let (json, shown) = [&json, &shown]
                    .map(|json| format!("{{\"x\":\"{}\",\"y\":{json}}}", "x".repeat(before)))
                    .into();
                if name != "one level too deep" {
                    assert_eq!(readable(&json), shown, "{name} after {before}");
                }
            }
        }
    }

    #[test]
    fn all_else_is_shown_as_it_is_written() {
        let id = "0b3e1234-57e8-4e99-9e12-3e4567e89012";
        #[rustfmt::skip]
        let cases = [
            r#"{"a":"a whole \ud83d\ude00","b":"\\ud83d"}"#.to_owned(),
            r#"{"a": 1.50 , "b":1e2,"c":1.5E+300,"d":1e-999,"e":-0}"#.into(),
            format!(r#"{{"sessionId":"{id}","text":"wait 1e999 s: [1e999, \"1e999\"]"}}"#),
            format!(r#"["{}",{}]"#, "7".repeat(500), "7".repeat(300)),
            nested(DEPTH_MAX, ""),
            format!(r#"["{}"]"#, "[".repeat(5000)),
            format!("[{}]", vec!["[]"; 500].join(",")),
            "7".into(), "".into(), r#""""#.into(),
        ];
        for json in cases {
            assert_eq!(readable(&json), json);
        }
        assert!(!has_odd_token(&format!(r#"{{"sessionId":"{id}"}}"#)), "most need no second look");
        assert!(!has_odd_token(r#"{"a":"\ud83d\ude00\ud83d\ude00"}"#));
    }

    #[test]
    fn a_lone_surrogate_becomes_a_replacement_character() {
        #[rustfmt::skip]
        let cases = [
            (r#""plain""#,                 Some(r#""plain""#)),
            (r#""a\u00e4\n\ud83d\ude00""#, Some(r#""a\u00e4\n\ud83d\ude00""#)),
            (r#""\ude00 \ud83d\n\ud83d""#, Some(r#""\ufffd \ufffd\n\ufffd""#)),
            (r#""\ud83d\ud83d\ude00""#,    Some(r#""\ufffd\ud83d\ude00""#)),
            (r#""\\ud83d \ud83d\\""#,      Some(r#""\\ud83d \ufffd\\""#)),
            (r#""\uD83Dä""#,               Some(r#""\ufffdä""#)),
            ("7",                          None),
        ];
        for (json, expected) in cases {
            assert_eq!(well_formed(json).as_deref(), expected, "{json}");
        }
    }
}
