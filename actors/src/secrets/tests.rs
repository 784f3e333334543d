//! Redaction by value: forms, overlaps, names, and texts that are cut.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Redactor, is_secret_name};

fn redactor(secrets: &[(&str, &str)]) -> Redactor {
    Redactor::new(secrets.iter().map(|(name, value)| ((*name).into(), (*value).into())))
}

/// C16: a value is found wherever it stands, and a value below 8 characters nowhere.
#[test]
fn values_are_redacted_by_name() {
    let none = redactor(&[]);
    let redactor = redactor(&[
        ("A_KEY", "abcdefgh"),
        ("B_KEY", "1234567"),
        ("C_KEY", "ééééééé"),
        ("D_KEY", "  trimmed-value\n"),
        ("E_KEY", "line one\nline-two\nthree"),
        ("odd \"name\"", "oddly-named"),
        ("F_KEY", "abcdefgh"),
        ("G_KEY", "        "),
    ]);
    #[rustfmt::skip]
    let cases = [
        ("abcdefgh",                 "[redacted:A_KEY]"),
        ("key=abcdefgh!",            "key=[redacted:A_KEY]!"),
        ("abcdefghabcdefgh",         "[redacted:A_KEY][redacted:A_KEY]"),
        ("xabcdefghx",               "x[redacted:A_KEY]x"),
        ("abcdefg and bcdefgh",      "abcdefg and bcdefgh"),
        ("ABCDEFGH",                 "ABCDEFGH"),
        ("1234567 ééééééé",          "1234567 ééééééé"),
        ("trimmed-value",            "[redacted:D_KEY]"),
        ("a line one, a line-two",   "a [redacted:E_KEY], a [redacted:E_KEY]"),
        ("line one\nline-two\nthree", "[redacted:E_KEY]"),
        ("oddly-named",              "[redacted:odd??name?]"),
        ("",                         ""),
        ("        ",                 "        "),
    ];
    for (text, expected) in cases {
        assert_eq!(redactor.redacted(text), expected, "{text}");
    }
    assert_eq!(none.redacted("abcdefgh"), "abcdefgh");
}

/// C16: secrets that overlap, or hold one another, leave no rest. The longest gives the name.
#[test]
fn overlapping_values_leave_no_rest() {
    let redactor =
        redactor(&[("LONG", "abcdefgh12345678"), ("IN", "cdefgh12"), ("END", "12345678zzzz")]);
    #[rustfmt::skip]
    let cases = [
        ("abcdefgh12345678",          "[redacted:LONG]"),
        ("-cdefgh12-",                "-[redacted:IN]-"),
        ("(abcdefgh12345678zzzz)",    "([redacted:LONG])"),
        ("cdefgh12345678zzzz",        "[redacted:END]"),
        ("abcdefgh12345678 cdefgh12", "[redacted:LONG] [redacted:IN]"),
    ];
    for (text, expected) in cases {
        assert_eq!(redactor.redacted(text), expected, "{text}");
    }
}

/// C16: a value is found as a URL, JSON and base64 have it, at any place in what is encoded.
#[test]
fn encoded_values_are_redacted() {
    let value = r#"P/ä "w\Rd+1~<&>"#;
    let redactor = redactor(&[("KEY", value)]);
    let hidden = "[redacted:KEY]";
    for text in [
        value,
        r#"P/ä \"w\\Rd+1~<&>"#,
        r#"P\/ä \"w\\Rd+1~<&>"#,
        r#"P/\u00e4 \"w\\Rd+1~<&>"#,
        r#"P/ä \"w\\Rd+1~\u003c\u0026\u003e"#,
        "P%2F%C3%A4%20%22w%5CRd%2B1~%3C%26%3E",
        "P%2f%c3%a4%20%22w%5cRd%2b1~%3c%26%3e",
        "P%2F%C3%A4+%22w%5CRd%2B1~%3C%26%3E",
    ] {
        assert_eq!(redactor.redacted(text), hidden, "{text}");
    }
    for (before, after) in [("", ""), ("u:", ""), ("me:", "@"), ("user:", "\n\n"), ("x", "yz")] {
        let encoded = STANDARD.encode(format!("{before}{value}{after}"));
        let url_safe = encoded.replace('+', "-").replace('/', "_");
        for encoded in [encoded, url_safe] {
            let shown = redactor.redacted(&encoded);
            let rest = shown.replace(hidden, "");
            // What stands beside the value, and a part of a character of it on each side.
            let most = (before.len() + after.len()).div_ceil(3) * 4 + 4;
            assert!(shown.contains(hidden) && rest.len() <= most, "{before}: {encoded}: {shown}");
        }
    }
}

/// C16: a text that was cut within a secret does not show its beginning.
#[test]
fn the_beginning_of_a_value_at_a_cut_is_redacted() {
    let redactor = redactor(&[("KEY", "abcdefgh12345678"), ("WIDE", "éééééééééé")]);
    #[rustfmt::skip]
    let cases = [
        ("key abcdefgh1",          "key [redacted:KEY]"),
        ("key abcdefgh",           "key [redacted:KEY]"),
        ("key abcdefg",            "key abcdefg"),
        ("key abcdefgh1 ",         "key abcdefgh1 "),
        ("abcdefgh abcdefgh12",    "abcdefgh [redacted:KEY]"),
        ("abcdefgh12345678",       "[redacted:KEY]"),
        ("éééééé",                 "[redacted:WIDE]"),
        ("",                       ""),
    ];
    for (text, expected) in cases {
        assert_eq!(redactor.redacted_cut(text), expected, "{text}");
    }
}

#[test]
fn names_say_what_is_secret() {
    for name in ["OPENAI_API_KEY", "PGPASSWORD", "GITHUB_TOKEN_2", "client_secret", "X_CREDENTIALS"]
    {
        assert!(is_secret_name(name), "{name}");
    }
    for name in
        ["HERMES_HOME", "PWD", "TOKENIZER", "KEYBOARD", "SECRETARY", "", "_", "OPENAI_BASE_URL"]
    {
        assert!(!is_secret_name(name), "{name}");
    }
}
