//! Makes text from agents safe for a terminal or a log line (C15).

pub mod frame;
mod visible;

use std::fmt::Write as _;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

pub use self::visible::{Visible, is_invisible, visible};

/// Whether `c` may stand in a log line unescaped. False for what is invisible, changes the
/// direction of text or the character before it, and for unassigned characters.
pub fn is_printable(c: char) -> bool {
    // The fast path for nearly every character of a log; the others need a table lookup.
    matches!(c, ' '..='~') || (c.escape_debug().len() == 1 && !is_invisible(c))
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

/// Returns `text` as one line of at most `columns_max` columns, with everything visible.
pub fn one_line(text: &str, columns_max: usize) -> String {
    let line = visible(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    if width(&line) <= columns_max {
        return line;
    }
    let mut room = columns_max.saturating_sub(1);
    let fits = |c: &char| {
        let width = c.width().unwrap_or_default();
        let fits = width <= room;
        room = room.saturating_sub(width);
        fits
    };
    let kept: String = line.chars().take_while(fits).collect();
    // Of an emoji that was cut, no invisible part stays.
    kept.trim_end_matches(is_invisible).to_owned() + "…"
}

/// Returns how many columns of a terminal `text` takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// Returns `text` with spaces after it, so that it takes at least this many columns.
pub fn padded(text: &str, columns_min: usize) -> String {
    text.to_owned() + &" ".repeat(columns_min.saturating_sub(width(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_truncated() {
        #[rustfmt::skip]
        let cases = [
            (" a\n\n b\u{1b}c ",  20, r"a b\u{1b}c"),
            ("éééé",              4,  "éééé"),
            ("ééééé",             4,  "ééé…"),
            ("日本日本",          8,  "日本日本"),
            ("日本日本",          7,  "日本日…"),
            ("日本日本",          6,  "日本…"),
            ("e\u{301}e\u{301}e\u{301}", 2, "e\u{301}…"),
            ("👩\u{200d}💻👩",     4,  "👩\u{200d}💻👩"),
            ("👩\u{200d}💻👩",     3,  "👩…"),
            ("a\u{202e}b",         5,  r"a\u{…"),
            ("abc",               0,  "…"),
        ];
        for (text, columns_max, expected) in cases {
            assert_eq!(one_line(text, columns_max), expected, "{text:?} in {columns_max}");
        }
    }

    #[test]
    fn a_text_is_padded_by_its_columns() {
        for (text, expected) in
            [("ab", "ab  "), ("日", "日  "), ("e\u{301}", "e\u{301}   "), ("日本語", "日本語")]
        {
            assert_eq!(padded(text, 4), expected);
        }
    }

    /// C15: a log line shows what is invisible, too.
    #[test]
    fn what_is_invisible_is_not_printable() {
        for c in "\u{202e}\u{200b}\u{3164}\u{115f}\u{feff}\u{e0041}\u{fe0f}\u{ad}\u{2028}\n\u{9b}"
            .chars()
        {
            assert!(!is_printable(c), "{c:?}");
        }
        assert!("plain é日🦀…".chars().all(is_printable));
    }
}
