//! Text from agents, made fit for a terminal or a line of a log (C15).

use std::fmt::Write as _;

/// Whether `c` may stand in a line as it is. Not: control characters, line and paragraph
/// separators, what turns the direction of text, what is not assigned.
pub fn is_printable(c: char) -> bool {
    // Nearly every character of a log is one of these; the rest takes a look into tables.
    matches!(c, ' '..='~') || c.escape_debug().len() == 1
}

/// Escapes what a JSON text holds raw and a terminal would act on. The text stays the same JSON:
/// below U+007F only strings hold such characters, and there they are escaped already.
pub fn escape_json(line: &str) -> String {
    let mut escaped = String::with_capacity(line.len());
    for c in line.chars() {
        if is_printable(c) {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        }
    }
    escaped
}

/// `text` without what a terminal would act on: all control characters but LF and TAB, and those
/// that turn the direction of what follows.
pub fn clean(text: &str) -> String {
    let harmless = |c: &char| match c {
        '\n' | '\t' => true,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        c => !c.is_control(),
    };
    text.chars().filter(harmless).collect()
}

/// `text`, clean, as one line of at most `chars_max` characters.
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
    fn text_is_cleaned_of_what_a_terminal_acts_on() {
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
    fn a_line_is_cut_where_it_must_be() {
        assert_eq!(one_line(" a\n\n b\u{1b}c ", 10), "a bc");
        assert_eq!(one_line("éééé", 4), "éééé");
        assert_eq!(one_line("ééééé", 4), "ééé…");
    }
}
