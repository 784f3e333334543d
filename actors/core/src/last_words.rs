//! Which line of a program's stderr says why it ended.

/// How the rows of a stack begin that say where an error was, and not which.
const ROW_STARTS: [&str; 5] = ["at ", "File \"", "Node.js v", "note: run with", "^"];
/// What opens and closes the lines of an object that a program prints after its error.
const BRACKETS: [(char, char); 2] = [('{', '}'), ('[', ']')];

/// Returns the last line that says something: it is not blank, has a letter or a digit, and is
/// neither a row of a stack nor a part of the object after it. Without one, returns the last line
/// that is not blank.
pub(crate) fn last_words(stderr: &str) -> Option<&str> {
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut rest = &*lines;
    while let Some((line, before)) = rest.split_last() {
        // The line that opens an object may be the message itself.
        let (said, earlier) = match opening(before, line) {
            Some(at) => (before[at], &before[..at]),
            None => (*line, before),
        };
        if says_something(said) {
            return Some(said);
        }
        rest = earlier;
    }
    lines.last().copied()
}

/// Returns the line before that opens what `line` closes, if it only closes something.
fn opening(before: &[&str], line: &str) -> Option<usize> {
    let (open, close) = BRACKETS.into_iter().find(|(_, close)| line.starts_with(*close))?;
    if line.chars().any(char::is_alphanumeric) {
        return None;
    }
    let mut depth = 1_usize;
    before.iter().rposition(|line| {
        // Brackets within a line balance each other.
        if line.starts_with(close) {
            depth += 1;
        }
        if line.ends_with(open) {
            depth -= 1;
        }
        depth == 0
    })
}

fn says_something(line: &str) -> bool {
    let is_row = ROW_STARTS.iter().any(|start| line.starts_with(start));
    !is_row && line.chars().any(char::is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F7: the line for a person is the message, wherever a program's runtime puts it.
    #[test]
    fn the_last_words_are_the_last_line_that_says_something() {
        #[rustfmt::skip]
        let cases = [
            ("nothing",             "",                                                                      None),
            ("blank",               " \n\t\n",                                                               None),
            ("one line",            "no key\n",                                                              Some("no key")),
            ("the last of two",     "a warning\nno key",                                                     Some("no key")),
            ("blank lines after",   "no key\n\n \n",                                                         Some("no key")),
            ("a bracket after",     "no key\n}\n",                                                           Some("no key")),
            ("marks after",         "no key\n-----\n});\n",                                                  Some("no key")),
            ("rows of a stack",     "Error: no key\n    at main (a.js:1:2)\n    at b.js:3\n",                Some("Error: no key")),
            ("and an object",       "Error: no key\n    at a.js:1 {\n  code: 'E_KEY',\n  path: []\n}\n\nNode.js v22.1.0\n", Some("Error: no key")),
            ("nested objects",      "Error: no key\n    at a.js:1 {\n  a: {\n    b: 1\n  }\n}\n",            Some("Error: no key")),
            ("an object of its own", "request failed {\n  status: 401\n}\n",                                 Some("request failed {")),
            ("a traceback",         "Traceback (most recent call last):\n  File \"a.py\", line 1\n    x()\nValueError: no key\n", Some("ValueError: no key")),
            ("a panic",             "thread 'main' panicked at a.rs:1:2:\nno key\nnote: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n", Some("no key")),
            ("JSON",                "{\"error\":\"no key\"}\n",                                              Some("{\"error\":\"no key\"}")),
            ("no beginning",        "  code: 1\n}\n",                                                        Some("code: 1")),
            ("only marks",          "}\n]\n",                                                                Some("]")),
            ("another script",      "Fehler: kein Schlüssel\n}\n",                                           Some("Fehler: kein Schlüssel")),
        ];
        for (name, stderr, expected) in cases {
            assert_eq!(last_words(stderr), expected, "{name}");
        }
    }
}
