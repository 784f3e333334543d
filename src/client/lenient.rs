//! Reads JSON that strict readers refuse: an agent's words are passed on as it wrote them.

use greenroom_actors::acp::well_formed;
use serde_json::Value;

/// Deeper values are left out: readers give up at 128.
const DEPTH_MAX: usize = 100;

/// Parses JSON; in place of half a surrogate pair it reads U+FFFD, and `null` for a number out of
/// range or a value that nests deeper than [`DEPTH_MAX`].
///
/// # Errors
///
/// The parse error if it is no JSON.
pub fn read_json(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|err| serde_json::from_str(&strict(text)).map_err(|_| err))
}

fn strict(text: &str) -> String {
    let mut strict = String::with_capacity(text.len());
    let (mut rest, mut depth) = (text, 0_usize);
    while let Some(first) = rest.chars().next() {
        depth += usize::from(matches!(first, '{' | '['));
        let (token, is_number) = match first {
            '"' => (string(rest), false),
            '-' | '0'..='9' => (number(rest), true),
            other => (&rest[..other.len_utf8()], false),
        };
        rest = &rest[token.len()..];
        let is_infinite = || token.parse().is_ok_and(f64::is_infinite);
        if depth > DEPTH_MAX {
            // The value at this depth has one opening bracket, whatever is in it.
            strict.push_str(if depth == DEPTH_MAX + 1 && opens(first) { "null" } else { "" });
        } else if first == '"' {
            strict.push_str(well_formed(token).as_deref().unwrap_or(token));
        } else {
            strict.push_str(if is_number && is_infinite() { "null" } else { token });
        }
        depth = depth.saturating_sub(usize::from(matches!(first, '}' | ']')));
    }
    strict
}

fn opens(first: char) -> bool {
    matches!(first, '{' | '[')
}

/// Returns the string at the beginning, with its quotes.
fn string(text: &str) -> &str {
    let mut escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text, |end| &text[..end + 2])
}

/// Returns the number at the beginning.
fn number(text: &str) -> &str {
    let is_part = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
    &text[..text.find(|c| !is_part(c)).unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn what_strict_readers_refuse_is_read() {
        let deep = |depth: usize| format!("{}7{}", "[".repeat(depth), "]".repeat(depth));
        #[rustfmt::skip]
        let cases = [
            (r#"{"a":"cut \ud83d","b":"\\ud83d \"x","c":1}"#.to_owned(), json!({ "a": "cut \u{fffd}", "b": "\\ud83d \"x", "c": 1 })),
            (r#"{"a":1e999,"b":[-1e999,1.5e3]}"#.to_owned(),             json!({ "a": null, "b": [null, 1500.0] })),
            (format!(r#"{{"a":{},"b":"ä"}}"#, deep(99)),                 json!({ "a": serde_json::from_str::<Value>(&deep(99)).unwrap(), "b": "ä" })),
        ];
        for (text, expected) in cases {
            assert_eq!(read_json(&text).unwrap(), expected, "{text}");
        }
        let read = read_json(&format!(r#"{{"a":{},"b":{{"c":"]"}}}}"#, deep(5000))).unwrap();
        assert_eq!(read["b"]["c"], "]");
        let mut value = &read["a"];
        while let Some(inner) = value.get(0) {
            value = inner;
        }
        assert_eq!(*value, Value::Null);
        for bad in ["", "{", r#"{"a":"\ud83d"#, "nul", r#"{"a":"\x"}"#] {
            assert!(read_json(bad).is_err(), "{bad}");
        }
    }
}
