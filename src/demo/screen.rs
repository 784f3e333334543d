//! Prints the demo's output: whole lines, coloured by kind if stdout is a terminal.

use std::io::{self, IsTerminal, Write};

use crate::text::visible;

/// Stdout, shared by several threads.
#[derive(Clone, Copy)]
pub struct Screen {
    is_coloured: bool,
}

impl Screen {
    pub fn new() -> Self {
        let is_refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Screen { is_coloured: !is_refused && io::stdout().is_terminal() }
    }

    /// Prints a heading.
    pub fn title(self, text: &str) {
        self.line("1", &format!("\n== {text}"));
    }

    /// Prints an uncoloured line.
    pub fn plain(self, text: &str) {
        self.line("", &format!("   {text}"));
    }

    /// Prints a line of the server's log.
    pub fn log(self, text: &str) {
        self.line("2", &format!("   log   {text}"));
    }

    /// Prints a frame, of the first group or of the other one.
    pub fn frame(self, first: bool, text: &str) {
        self.line(if first { "36" } else { "35" }, &format!("   frame {text}"));
    }

    fn line(self, colour: &str, text: &str) {
        // If stdout is closed, the work continues unseen.
        _ = writeln!(io::stdout(), "{}", self.paint(colour, &visible(text)));
    }

    fn paint(self, colour: &str, text: &str) -> String {
        match self.is_coloured && !colour.is_empty() {
            true => format!("\u{1b}[{colour}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_gets_colour() {
        assert_eq!(Screen { is_coloured: false }.paint("2", "x"), "x");
        assert_eq!(Screen { is_coloured: true }.paint("2", "x"), "\u{1b}[2mx\u{1b}[0m");
        assert_eq!(Screen { is_coloured: true }.paint("", "x"), "x");
    }
}
