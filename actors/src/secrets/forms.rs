//! The forms in which a secret value is found: as it is, and as programs encode it.

use std::{collections::BTreeSet, fmt::Write as _};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};

use super::VALUE_CHARS_MIN;

/// Returns all forms of a value and of each of its lines; none of what is too short.
pub fn of(value: &str) -> BTreeSet<String> {
    // A text is read by the line, and a value is often trimmed before its use.
    let parts = std::iter::once(value.trim()).chain(value.lines().map(str::trim));
    let parts = parts.filter(|part| part.chars().count() >= VALUE_CHARS_MIN);
    parts.flat_map(of_part).collect()
}

fn of_part(value: &str) -> BTreeSet<String> {
    let json = in_json(value);
    let percent = in_url(value, |byte| format!("%{byte:02X}"));
    let mut forms = BTreeSet::from([
        value.to_owned(),
        json.replace('/', "\\/"),
        for_html(&json),
        in_ascii(&json),
        json,
        in_url(value, |byte| format!("%{byte:02x}")),
        percent.replace("%20", "+"),
        percent,
        STANDARD_NO_PAD.encode(value),
        URL_SAFE_NO_PAD.encode(value),
    ]);
    for offset in 0..3 {
        let bytes = [&[0; 2][..offset], value.as_bytes()].concat();
        // The characters before and after depend on what stands beside the value, too.
        let whole = (offset * 8).div_ceil(6)..bytes.len() * 8 / 6;
        forms.insert(STANDARD_NO_PAD.encode(&bytes)[whole.clone()].to_owned());
        forms.insert(URL_SAFE_NO_PAD.encode(&bytes)[whole].to_owned());
    }
    forms
}

/// Returns the value as it stands in a string of JSON.
fn in_json(value: &str) -> String {
    let quoted = serde_json::Value::from(value).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// Escapes what is not ASCII, as Python's JSON does.
fn in_ascii(json: &str) -> String {
    let mut escaped = String::new();
    for c in json.chars() {
        if c.is_ascii() {
            escaped.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            _ = write!(escaped, "\\u{unit:04x}");
        }
    }
    escaped
}

/// Escapes what HTML would read, as Go's JSON does.
fn for_html(json: &str) -> String {
    json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

/// Returns the value with all but RFC 3986's unreserved characters encoded.
fn in_url(value: &str, encode: fn(u8) -> String) -> String {
    let mut encoded = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&encode(byte));
        }
    }
    encoded
}
