//! Files are short, and lines fit.

use super::{assert_none, sources};

const LINES_MAX: usize = 600;

const COLUMNS_MAX: usize = 100;

/// Lines that may be wide: tables, one line a case, and texts that are quoted as they come.
const WIDE: [&str; 3] = ["r#\"", "http://", "https://"];

#[test]
fn files_are_short_and_lines_fit() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            wrong.push(format!("{file} has {lines} lines"));
        }
        let tables = table_lines(&text);
        for (number, line) in (1..).zip(text.lines()) {
            let columns = line.chars().count();
            let wide = WIDE.iter().any(|quoted| line.contains(quoted));
            if columns > COLUMNS_MAX && !wide && !tables.contains(&number) {
                wrong.push(format!("{file}:{number} has {columns} columns"));
            }
        }
    }
    assert_none(&wrong, "sizes");
}

/// The lines that rustfmt leaves alone: from the attribute to the end of its statement,
/// which is where the indentation comes back to the attribute's.
fn table_lines(text: &str) -> Vec<usize> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let lines: Vec<&str> = text.lines().collect();
    let mut tables = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        if !line.trim_start().starts_with("#[rustfmt::skip]") {
            continue;
        }
        let depth = indent(line);
        let rest = lines.iter().enumerate().skip(start + 2);
        let ends = |line: &str| !line.trim().is_empty() && indent(line) <= depth;
        let end = rest.clone().find(|(_, line)| ends(line)).map_or(lines.len(), |(at, _)| at);
        tables.extend(start + 1..=end + 1);
    }
    tables
}
