//! What the demo prints: whole lines, told apart by colour where there is one.

use std::io::{self, IsTerminal, Write};

use crate::text::clean;

/// Stdout, for several threads.
#[derive(Clone, Copy)]
pub struct Screen {
    coloured: bool,
}

impl Screen {
    pub fn new() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Screen { coloured: !refused && io::stdout().is_terminal() }
    }

    /// What happens next.
    pub fn title(self, text: &str) {
        self.line("1", &format!("\n== {text}"));
    }

    pub fn plain(self, text: &str) {
        self.line("", &format!("   {text}"));
    }

    /// A line of the server's log.
    pub fn log(self, text: &str) {
        self.line("2", &format!("   log   {text}"));
    }

    /// A frame, of the first group or the other one.
    pub fn frame(self, first: bool, text: &str) {
        self.line(if first { "36" } else { "35" }, &format!("   frame {text}"));
    }

    fn line(self, colour: &str, text: &str) {
        // Without a reader there is nobody to show it to; the work goes on.
        let _ = writeln!(io::stdout(), "{}", self.paint(colour, &clean(text)));
    }

    fn paint(self, colour: &str, text: &str) -> String {
        match self.coloured && !colour.is_empty() {
            true => format!("\u{1b}[{colour}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_only_for_a_terminal() {
        assert_eq!(Screen { coloured: false }.paint("2", "x"), "x");
        assert_eq!(Screen { coloured: true }.paint("2", "x"), "\u{1b}[2mx\u{1b}[0m");
        assert_eq!(Screen { coloured: true }.paint("", "x"), "x");
    }
}
