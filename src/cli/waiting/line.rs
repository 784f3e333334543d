//! One line on stderr about a wait: rewritten in place on a terminal, else printed once a change.

use std::{
    env,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use rustix::termios::tcgetwinsize;
use unicode_width::UnicodeWidthChar;

use super::reason::span;

/// Columns of a terminal that does not report its width.
const COLUMNS: usize = 80;

/// Where the line is written, and what of it is visible.
pub struct Line {
    out: Box<dyn Write + Send>,
    /// On a terminal: returns its present width in columns.
    columns: Option<fn() -> usize>,
    /// On a terminal: the visible line; empty if there is none.
    shown: String,
    /// Rows of the terminal that it occupies; 0 if there is none.
    rows: usize,
    /// Whether the answer before the cursor ends within a row of this terminal.
    is_mid_row: bool,
    /// Whether the answer is written to a terminal too, which is then taken for the same one.
    shares_terminal: bool,
}

impl Line {
    /// The line of this process's stderr.
    pub fn stderr() -> Self {
        let is_dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        let is_terminal = io::stderr().is_terminal() && !is_dumb;
        Self {
            out: Box::new(io::stderr()),
            columns: is_terminal.then_some(columns),
            shown: String::new(),
            rows: 0,
            is_mid_row: false,
            shares_terminal: is_terminal && io::stdout().is_terminal(),
        }
    }

    /// A line for tests: without `columns`, not on a terminal.
    #[cfg(test)]
    pub fn new(out: impl Write + Send + 'static, columns: Option<fn() -> usize>) -> Self {
        let shares_terminal = columns.is_some();
        let out = Box::new(out);
        Self { out, columns, shown: String::new(), rows: 0, is_mid_row: false, shares_terminal }
    }

    /// Whether the line can be rewritten in place.
    pub fn is_live(&self) -> bool {
        self.columns.is_some()
    }

    /// Whether the answer ends within a row, which the line would break.
    pub fn is_mid_row(&self) -> bool {
        self.is_mid_row
    }

    /// Shows `text` instead of the line before; on a terminal also for how long it has applied.
    ///
    /// Failures are ignored: a wait that cannot be reported is still a wait.
    pub fn show(&mut self, text: &str, elapsed: Duration) {
        let Some(columns) = self.columns else {
            _ = writeln!(self.out, "waiting: {text}");
            return;
        };
        let shown = format!("waiting: {text} ({})", span(elapsed));
        if shown == self.shown {
            return;
        }
        let mut line = String::new();
        if self.is_mid_row {
            self.is_mid_row = false;
            line.push('\n');
        }
        self.erase(&mut line);
        self.rows = rows(&shown, columns());
        line.push_str(&shown);
        self.shown = shown;
        self.write(&line);
    }

    /// Removes the line from the terminal.
    pub fn clear(&mut self) {
        let mut codes = String::new();
        self.erase(&mut codes);
        if !codes.is_empty() {
            self.write(&codes);
        }
    }

    /// Prints a line that stays.
    pub fn say(&mut self, text: &str) {
        self.clear();
        self.write(&format!("{text}\n"));
    }

    /// Notes that text was written to stdout, and whether it ended with a line end.
    pub fn printed(&mut self, ends_row: bool) {
        self.is_mid_row = self.shares_terminal && !ends_row;
    }

    /// Adds the codes that remove the line: to its first row, then erase to the end of the screen.
    fn erase(&mut self, codes: &mut String) {
        self.shown.clear();
        match std::mem::take(&mut self.rows) {
            0 => {}
            1 => codes.push_str("\r\x1b[J"),
            rows => codes.push_str(&format!("\r\x1b[{}A\x1b[J", rows - 1)),
        }
    }

    fn write(&mut self, text: &str) {
        _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}

/// Returns the width of the terminal at stderr.
fn columns() -> usize {
    let size = tcgetwinsize(io::stderr()).ok();
    size.map(|size| usize::from(size.ws_col)).filter(|&columns| columns > 0).unwrap_or(COLUMNS)
}

/// Returns how many rows of a terminal `text` takes. A wide letter does not fit into a last column.
fn rows(text: &str, columns: usize) -> usize {
    let (mut rows, mut used) = (1, 0);
    for width in text.chars().filter_map(UnicodeWidthChar::width) {
        if used + width > columns.max(width) {
            rows += 1;
            used = 0;
        }
        used += width;
    }
    rows
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cli::waiting::Sink;

    fn line(columns: Option<fn() -> usize>) -> (Line, Sink) {
        let sink = Sink::default();
        (Line::new(sink.clone(), columns), sink)
    }

    #[test]
    fn without_a_terminal_each_change_is_a_plain_line() {
        let (mut line, sink) = line(None);
        line.show("one", Duration::from_secs(9));
        line.clear();
        line.say("stays");
        line.printed(false);
        line.show("two", Duration::ZERO);
        assert_eq!(sink.text(), "waiting: one\nstays\nwaiting: two\n");
    }

    #[test]
    fn on_a_terminal_the_line_is_rewritten_with_its_time_and_removed() {
        let (mut line, sink) = line(Some(|| 40));
        line.show("one", Duration::ZERO);
        line.show("one", Duration::from_millis(999));
        line.show("one", Duration::from_secs(61));
        line.clear();
        line.clear();
        assert_eq!(sink.take(), "waiting: one (0 s)\r\x1b[Jwaiting: one (1 min 1 s)\r\x1b[J");
        line.show("one", Duration::ZERO);
        line.say("stays");
        assert_eq!(sink.take(), "waiting: one (0 s)\r\x1b[Jstays\n");
    }

    #[test]
    fn a_line_of_several_rows_is_removed_from_its_first_row() {
        let (mut line, sink) = line(Some(|| 10));
        for (text, up) in [("a", ""), ("ab", "\x1b[1A"), ("aaaaaaaaaaaa", "\x1b[2A")] {
            // "waiting: " and " (0 s)" take 15 columns.
            line.show(text, Duration::ZERO);
            line.clear();
            let up = if text == "a" { "\x1b[1A" } else { up };
            assert_eq!(sink.take(), format!("waiting: {text} (0 s)\r{up}\x1b[J"));
        }
        line.show("日本日", Duration::ZERO);
        line.clear();
        assert!(sink.take().ends_with("\r\x1b[2A\x1b[J"), "wide letters take two columns");
    }

    #[test]
    fn letters_take_the_columns_that_terminals_give_them() {
        #[rustfmt::skip]
        let cases = [
            ("", 10, 1), ("1234567890", 10, 1), ("12345678901", 10, 2), ("12345678901", 0, 11),
            ("日本日本日", 10, 1), ("a日本日本日", 10, 2), ("日本日本日本", 11, 2),
            ("e\u{301}e\u{301}e\u{301}", 3, 1), ("…“ẞ”—€ก", 7, 1),
        ];
        for (text, columns, expected) in cases {
            assert_eq!(rows(text, columns), expected, "{text:?} in {columns}");
        }
    }

    #[test]
    fn a_line_below_an_unfinished_answer_leaves_the_answer_whole() {
        let (mut line, sink) = line(Some(|| 80));
        line.printed(false);
        assert!(line.is_mid_row());
        line.show("one", Duration::ZERO);
        assert!(!line.is_mid_row());
        line.clear();
        line.printed(true);
        line.show("two", Duration::ZERO);
        assert_eq!(sink.take(), "\nwaiting: one (0 s)\r\x1b[Jwaiting: two (0 s)");
    }
}
