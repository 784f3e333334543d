//! Makes text from agents safe for a terminal or a log line (C15).

pub mod frame;

use std::fmt::Write as _;

/// Whether `c` may stand in a line unescaped. False for control characters, line and paragraph
/// separators, characters that change the direction of text, and unassigned ones.
pub fn is_printable(c: char) -> bool {
    // The fast path for nearly every character of a log; the others need a table lookup.
    matches!(c, ' '..='~') || c.escape_debug().len() == 1
}

/// Escapes the raw characters of a JSON text that a terminal would act on. The result is equivalent
/// JSON: only strings hold such characters, and those below U+007F are escaped there already.
pub fn escape_json(line: &str) -> String {
    let mut escaped = String::with_capacity(line.len());
    for c in line.chars() {
        if is_printable(c) {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                _ = write!(escaped, "\\u{unit:04x}");
            }
        }
    }
    escaped
}

/// Removes the characters of `text` that a terminal would act on: control characters except LF and
/// TAB, and those that change the direction of text.
pub fn clean(text: &str) -> String {
    let is_harmless = |c: &char| match c {
        '\n' | '\t' => true,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        c => !c.is_control(),
    };
    text.chars().filter(is_harmless).collect()
}

/// Returns `text`, cleaned, as one line of at most `chars_max` characters.
pub fn one_line(text: &str, chars_max: usize) -> String {
    let line = clean(text).split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(chars_max) {
        Some(_) => line.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect(),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_a_terminal_acts_on_are_removed() {
        #[rustfmt::skip]
        let cases = [
            ("plain é 日本 👩\u{200d}💻", "plain é 日本 👩\u{200d}💻"),
            ("two\nlines\tand tab",     "two\nlines\tand tab"),
            ("\u{1b}[31mred\u{1b}[0m",   "[31mred[0m"),
            ("\u{9b}31m\u{7f}\0\r\u{8}",  "31m"),
            ("a\u{202e}b\u{2066}c",      "abc"),
        ];
        for (text, expected) in cases {
            assert_eq!(clean(text), expected);
        }
    }

    #[test]
    fn a_long_line_is_truncated() {
        assert_eq!(one_line(" a\n\n b\u{1b}c ", 10), "a bc");
        assert_eq!(one_line("éééé", 4), "éééé");
        assert_eq!(one_line("ééééé", 4), "ééé…");
    }
}
