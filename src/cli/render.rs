//! Tables for people, lines of JSON for programs.

use std::io::{self, Write};

use serde_json::Value;

use crate::text::{self, escape_json, one_line, padded};

/// Columns that a cell shows of a value.
const SHOWN_MAX: usize = 100;

/// Writes `value` as one line of equivalent JSON, free of characters that a terminal would act on.
pub fn json_line(out: &mut impl Write, value: &Value) -> io::Result<()> {
    writeln!(out, "{}", escape_json(&value.to_string()))
}

/// Writes `rows` below `header`, in aligned columns.
pub fn table<const N: usize>(
    out: &mut impl Write,
    header: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let header = header.map(str::to_owned);
    let rows = std::iter::once(&header).chain(rows);
    let width =
        |column: usize| rows.clone().map(|row| text::width(&row[column])).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| padded(cell, width));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// Returns a JSON value as the text of a cell: `-` for null.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => one_line(text, SHOWN_MAX),
        other => one_line(&other.to_string(), SHOWN_MAX),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// C15: columns are aligned as a terminal shows them, also beside what is escaped.
    #[test]
    fn a_table_is_aligned_by_the_width_of_its_texts() {
        let texts = ["日本", "e\u{301}", "a\u{202e}", "👩\u{200d}💻"];
        let rows = texts.map(|text| [cell(&text.into()), "|".to_owned()]);
        let mut out = Vec::new();
        table(&mut out, ["A", "B"], &rows).unwrap();
        let expected = "\
A          B
日本       |
e\u{301}          |
a\\u{202e}  |
👩\u{200d}💻         |
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
