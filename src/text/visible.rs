//! Text from agents as a terminal may show it: what is invisible, or changes how other characters
//! are shown, is escaped as `\u{202e}`.

use std::mem;

const JOINER: char = '\u{200d}';
const SELECTORS: [char; 2] = ['\u{fe0e}', '\u{fe0f}'];
const KEYCAP: char = '\u{20e3}';
const BLACK_FLAG: char = '🏴';
/// The tags of the only flags that have some: England's, Scotland's and Wales'.
const FLAG_TAGS: [&str; 3] = [
    "\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
    "\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}\u{e007f}",
    "\u{e0067}\u{e0062}\u{e0077}\u{e006c}\u{e0073}\u{e007f}",
];

/// Returns `text` with everything visible. Line feeds, tabs and the invisible parts of an emoji
/// stay; CR LF is a line feed.
pub fn visible(text: &str) -> String {
    let mut stream = Visible::default();
    stream.push(text) + &stream.finish()
}

/// Whether `c` shows nothing, or changes how others are shown: a control character, a separator of
/// lines, or one of Unicode's Default_Ignorable_Code_Point or of interlinear annotation.
#[rustfmt::skip]
pub fn is_invisible(c: char) -> bool {
    c.is_control() || matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Whether `c` may be a part of an emoji. A superset, as only invisible characters depend on it.
#[rustfmt::skip]
fn is_emoji(c: char) -> bool {
    matches!(c,
        '©' | '®' | '‼' | '⁉' | '™' | 'ℹ' | 'Ⓜ' | '〰' | '〽' | '㊗' | '㊙'
        | '\u{2190}'..='\u{21ff}' | '\u{2300}'..='\u{23ff}' | '\u{25a0}'..='\u{27bf}'
        | '\u{2900}'..='\u{297f}' | '\u{2b00}'..='\u{2bff}' | '\u{1f000}'..='\u{1faff}'
    )
}

/// A text that arrives in pieces. What depends on the next piece is kept until it arrives.
#[derive(Default)]
pub struct Visible {
    pending: String,
    /// The last character that was shown as it is; `None` after an escape.
    last: Option<char>,
    /// Whether the last characters that were shown are an emoji.
    ends_with_emoji: bool,
}

/// What to do with the next characters.
#[derive(Clone, Copy)]
enum Next {
    /// Show this many as they are.
    Show(usize),
    /// Leave the next one out.
    Skip,
    Escape,
    /// The next piece decides.
    Wait,
}

impl Visible {
    /// Returns what can be shown with this piece.
    pub fn push(&mut self, piece: &str) -> String {
        self.pending.push_str(piece);
        self.advance(false)
    }

    /// Returns the rest at the end of the text. Another text may follow.
    pub fn finish(&mut self) -> String {
        let rest = self.advance(true);
        *self = Self::default();
        rest
    }

    fn advance(&mut self, is_last: bool) -> String {
        let pending = mem::take(&mut self.pending);
        let mut shown = String::with_capacity(pending.len());
        let mut rest = pending.as_str();
        while let Some(c) = rest.chars().next() {
            let length = match self.next(c, &rest[c.len_utf8()..], is_last) {
                Next::Show(count) => rest.chars().take(count).map(char::len_utf8).sum(),
                Next::Skip => {
                    rest = &rest[c.len_utf8()..];
                    continue;
                }
                Next::Escape => {
                    shown.extend(c.escape_unicode());
                    (self.last, self.ends_with_emoji) = (None, false);
                    rest = &rest[c.len_utf8()..];
                    continue;
                }
                Next::Wait => break,
            };
            shown.push_str(&rest[..length]);
            rest = &rest[length..];
            // What belongs to an emoji leaves it one.
            if !is_invisible(c) || c == '\n' || c == '\t' {
                self.ends_with_emoji = is_emoji(c);
            }
            self.last = Some(c);
        }
        self.pending = rest.to_owned();
        shown
    }

    /// Decides about `c`, which `after` follows.
    fn next(&self, c: char, after: &str, is_last: bool) -> Next {
        if !is_invisible(c) || c == '\n' || c == '\t' {
            return Next::Show(1);
        }
        let unknown = if is_last { Next::Escape } else { Next::Wait };
        // Decides by the next character.
        let by_next = |fits: fn(char) -> bool, then: Next| match after.chars().next() {
            Some(next) if fits(next) => then,
            Some(_) => Next::Escape,
            None => unknown,
        };
        match c {
            '\r' => by_next(|next| next == '\n', Next::Skip),
            JOINER if self.ends_with_emoji => by_next(is_emoji, Next::Show(1)),
            _ if SELECTORS.contains(&c) => match self.last {
                Some(last) if is_emoji(last) => Next::Show(1),
                Some('0'..='9' | '#' | '*') => by_next(|next| next == KEYCAP, Next::Show(1)),
                _ => Next::Escape,
            },
            '\u{e0000}'..='\u{e007f}' if self.last == Some(BLACK_FLAG) => {
                let is_flag =
                    |tags: &&str| tags.strip_prefix(c).is_some_and(|tags| after.starts_with(tags));
                let may_be =
                    |tags: &&str| tags.strip_prefix(c).is_some_and(|tags| tags.starts_with(after));
                match FLAG_TAGS.iter().find(|tags| is_flag(tags)) {
                    Some(tags) => Next::Show(tags.chars().count()),
                    None if FLAG_TAGS.iter().any(may_be) => unknown,
                    None => Next::Escape,
                }
            }
            _ => Next::Escape,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALES: &str = "🏴\u{e0067}\u{e0062}\u{e0077}\u{e006c}\u{e0073}\u{e007f}";

    /// C15: what is invisible is escaped, what belongs to an emoji or to a word is not; and so in
    /// pieces of any size.
    #[test]
    fn invisible_characters_are_escaped_in_one_piece_and_in_many() {
        #[rustfmt::skip]
        let cases = [
            ("plain é e\u{301} 日本 ไทย",         "plain é e\u{301} 日本 ไทย"),
            ("two\nlines\tand tab\r\nthree",      "two\nlines\tand tab\nthree"),
            ("back\rto the start\r",              r"back\u{d}to the start\u{d}"),
            ("\u{1b}[31mred\u{9b}0m\u{7f}\0\u{8}", r"\u{1b}[31mred\u{9b}0m\u{7f}\u{0}\u{8}"),
            ("a\u{202e}b\u{2066}c\u{200f}\u{61c}", r"a\u{202e}b\u{2066}c\u{200f}\u{61c}"),
            ("z\u{200b}w\u{200c}\u{2060}\u{feff}", r"z\u{200b}w\u{200c}\u{2060}\u{feff}"),
            ("soft\u{ad}hyphen\u{2028}",          r"soft\u{ad}hyphen\u{2028}"),
            ("tag\u{e0041}\u{e0100}",             r"tag\u{e0041}\u{e0100}"),
            ("filler\u{3164}\u{115f}\u{ffa0}",    r"filler\u{3164}\u{115f}\u{ffa0}"),
            ("👩\u{200d}💻 ❤\u{fe0f}\u{200d}🔥",  "👩\u{200d}💻 ❤\u{fe0f}\u{200d}🔥"),
            ("👩🏽\u{200d}⚕\u{fe0f} 🇩🇪",           "👩🏽\u{200d}⚕\u{fe0f} 🇩🇪"),
            ("1\u{fe0f}\u{20e3} ©\u{fe0e}",       "1\u{fe0f}\u{20e3} ©\u{fe0e}"),
            (WALES,                               WALES),
            ("a\u{200d}b 👩\u{200d}",             r"a\u{200d}b 👩\u{200d}"),
            ("👩\u{200d}x 👩\u{200d}\u{200d}💻",  r"👩\u{200d}x 👩\u{200d}\u{200d}💻"),
            ("\u{200d}💻 \n\u{200d}💻",           "\\u{200d}💻 \n\\u{200d}💻"),
            ("1\u{fe0f} a\u{fe0f} \u{fe0f}",      r"1\u{fe0f} a\u{fe0f} \u{fe0f}"),
            ("❤\u{fe0f}\u{fe0f} ❤\u{fe01}",       "❤\u{fe0f}\\u{fe0f} ❤\\u{fe01}"),
            ("🏴\u{e0067}\u{e0062}\u{e0061}",     r"🏴\u{e0067}\u{e0062}\u{e0061}"),
            ("🏴\u{e0067}\u{e0062}",              r"🏴\u{e0067}\u{e0062}"),
        ];
        for (text, expected) in cases {
            assert_eq!(visible(text), expected, "{text:?}");
            let mut stream = Visible::default();
            let shown: String =
                text.chars().map(|c| stream.push(c.encode_utf8(&mut [0; 4]))).collect();
            assert_eq!(shown + &stream.finish(), expected, "{text:?} in pieces");
        }
    }

    /// Only what the next piece decides is kept back.
    #[test]
    fn a_piece_is_shown_at_once() {
        let mut stream = Visible::default();
        #[rustfmt::skip]
        let pieces = [("one", "one"), ("👩", "👩"), ("\u{200d}", ""), ("💻\u{202e}", "\u{200d}💻\\u{202e}"), ("\r", ""), ("x", "\\u{d}x")];
        for (piece, expected) in pieces {
            assert_eq!(stream.push(piece), expected, "{piece:?}");
        }
        assert_eq!(stream.finish(), "");
    }
}
