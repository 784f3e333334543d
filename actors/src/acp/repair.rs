//! Repairs a line that is no JSON, as far as an answer may be in it.

use std::borrow::Cow;

use serde_json::value::RawValue;

/// What programs write in place of a number that JSON does not have.
const NO_NUMBERS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];

/// A line that became JSON.
#[derive(Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The JSON object.
    pub text: String,
    /// Whether all its strings are as the agent wrote them.
    pub keeps_strings: bool,
}

/// Returns the line with U+FFFD for what is not UTF-8, spaces for control characters and `null` for
/// numbers that JSON does not have; `None` if it is no JSON object then.
///
/// The result is for decisions only: a transcript keeps what the agent wrote.
pub fn repaired(line: &[u8]) -> Option<Repaired> {
    let line = String::from_utf8_lossy(line);
    let mut keeps_strings = matches!(line, Cow::Borrowed(_));
    let line = line.trim_start_matches('\u{feff}').trim();
    let mut repaired = String::with_capacity(line.len());
    let (mut rest, mut in_string, mut escaped) = (line, false, false);
    while let Some(first) = rest.chars().next() {
        let no_number = NO_NUMBERS.iter().find(|word| !in_string && rest.starts_with(**word));
        let length = no_number.map_or(first.len_utf8(), |word| word.len());
        match first {
            _ if no_number.is_some() => repaired.push_str("null"),
            control if control.is_control() => {
                keeps_strings &= !in_string;
                repaired.push(' ');
            }
            other => repaired.push(other),
        }
        in_string ^= first == '"' && !escaped;
        escaped = in_string && first == '\\' && !escaped;
        rest = &rest[length..];
    }
    let is_object = repaired.starts_with('{');
    (is_object && serde_json::from_str::<&RawValue>(&repaired).is_ok())
        .then_some(Repaired { text: repaired, keeps_strings })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line, and what becomes of it.
    type Case<'a> = (&'a [u8], Option<(&'a str, bool)>);

    #[test]
    fn what_no_json_has_is_replaced() {
        #[rustfmt::skip]
        let cases: [Case<'_>; 10] = [
            (br#"{"a":NaN,"b":[-Infinity,Infinity]}"#, Some((r#"{"a":null,"b":[null,null]}"#, true))),
            (br#"{"a":"NaN \" NaN\\","b":NaN}"#,       Some((r#"{"a":"NaN \" NaN\\","b":null}"#, true))),
            (b"{\"a\":\"caf\xe9\"}",                   Some(("{\"a\":\"caf\u{fffd}\"}", false))),
            (b"\xef\xbb\xbf {\"a\":\"one\ttwo\x00\"}", Some(("{\"a\":\"one two \"}", false))),
            (b"{\x00\"a\":\"x\"}",                    Some(("{ \"a\":\"x\"}", true))),
            (b"{\"a\":\"x\\\ty\"}",                  None),
            (br#"{"a":1"#,                             None),
            (br#"["NaN"]"#,                            None),
            (b"NaN",                                   None),
            (b"",                                      None),
        ];
        for (line, expected) in cases {
            let name = line.escape_ascii();
            let repaired = repaired(line);
            let found = repaired.as_ref().map(|line| (&*line.text, line.keeps_strings));
            assert_eq!(found, expected, "{name}");
        }
    }
}
