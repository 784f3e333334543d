//! Finds the messages in a line that is none as a whole: two writers, or a lost line end.
//!
//! What is returned as a message surely is one. A line that begins with text may be a log line that
//! quotes a message, so only an answer that no other protocol gives is recovered from it.

use serde_json::value::RawValue;

use super::{
    Message, ParseError,
    fields::{fields, read, text, whole},
    parse,
};

/// The most parts of one line.
const PARTS_MAX: usize = 16;
/// How many places at the end of a line are tried, and in how many bytes.
const PLACES_MAX: usize = 32;
const TAIL_BYTES_MAX: usize = 256 << 10;
/// The members that a message may begin with.
const MEMBERS: [&[u8]; 6] = [b"jsonrpc", b"id", b"method", b"params", b"result", b"error"];

/// A part of a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A message, or JSON that nests too deep to be one.
    Message(&'a str),
    /// It is no message.
    Rejected(&'a [u8]),
}

/// Returns the messages in a line, and what lies around them, in order. A line without one is one
/// part; so is text with an answer at its end, which is followed by that answer.
pub fn parts(line: &[u8]) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii_start();
    while parts.len() < PARTS_MAX
        && let Some(object) = first_object(rest)
    {
        let is_message = !matches!(parse(object), Err(ParseError::NoMessage(_)));
        parts.push(match is_message {
            true => Part::Message(object),
            false => Part::Rejected(object.as_bytes()),
        });
        rest = rest[object.len()..].trim_ascii_start();
    }
    match last_message(rest) {
        // A line that begins as a message is no log line.
        Some(message) if rest.starts_with(b"{") => {
            parts.push(Part::Rejected(&rest[..rest.len() - message.len()]));
            parts.push(Part::Message(message));
        }
        // The answer is no frame, so the text keeps it.
        Some(message) if is_sure_answer(message) => {
            parts.extend([Part::Rejected(rest), Part::Message(message)]);
        }
        _ if rest.is_empty() => {}
        _ => parts.push(Part::Rejected(rest)),
    }
    if parts.iter().all(|part| matches!(part, Part::Rejected(_))) {
        return vec![Part::Rejected(line)];
    }
    parts
}

/// Returns the JSON object at the beginning of `bytes`.
fn first_object(bytes: &[u8]) -> Option<&str> {
    if !bytes.starts_with(b"{") {
        return None;
    }
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<&RawValue>();
    values.next()?.ok().map(RawValue::get)
}

/// Returns the message at the end of `bytes`, if something else is before it.
fn last_message(bytes: &[u8]) -> Option<&str> {
    let from = bytes.len().saturating_sub(TAIL_BYTES_MAX).max(1);
    let tail = bytes.get(from..)?;
    let places = memchr::memrchr_iter(b'{', tail).filter(|place| {
        let member = tail[place + 1..].trim_ascii_start().strip_prefix(b"\"");
        let begins = |name: &&[u8]| {
            member
                .and_then(|rest| rest.strip_prefix(*name))
                .is_some_and(|rest| rest.starts_with(b"\""))
        };
        // The value of a member or an element is a part of what holds it, and a quoted message
        // is one that was sent or received elsewhere.
        let before = bytes[..from + place].trim_ascii_end().last();
        MEMBERS.iter().any(begins) && !before.is_some_and(|byte| b":=,[(<>\"'`|".contains(byte))
    });
    places.take(PLACES_MAX).find_map(|place| {
        let message = std::str::from_utf8(&tail[place..]).ok()?;
        serde_json::from_str::<&RawValue>(message).ok()?;
        parse(message).is_ok().then_some(message)
    })
}

/// Whether it is a response with a result that only an agent's answer to `initialize`,
/// `session/new` or `session/prompt` has.
fn is_sure_answer(message: &str) -> bool {
    fields! {
        struct Answer {
            stop_reason: "stopReason",
            session: "sessionId",
            version: "protocolVersion",
        }
    }
    let Ok(Message::Response { outcome: Ok(result), .. }) = parse(message) else { return false };
    let Answer { stop_reason, session, version } = read(result).unwrap_or_default();
    let is_text = |field: Option<&RawValue>| field.and_then(text).is_some();
    // MCP, which agents speak to their tools, has versions too; they are dates.
    let is_version = version.is_some_and(|raw| text(raw).is_none() && whole::<i64>(raw).is_some());
    is_text(stop_reason) || is_text(session) || is_version
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: &str = r#"{"jsonrpc":"2.0","method":"session/update","params":{"x":{"id":1}}}"#;
    const ANSWER: &str = r#"{"jsonrpc":"2.0","id":9,"result":{"stopReason":"end_turn"}}"#;
    const ERROR: &str = r#"{"id":9,"error":{"code":-32603,"message":"no"},"jsonrpc":"2.0"}"#;

    /// Returns the parts as text, rejected ones with a minus before them.
    fn split(line: &str) -> Vec<String> {
        let text = |part| match part {
            Part::Message(text) => text.to_owned(),
            Part::Rejected(bytes) => format!("-{}", String::from_utf8_lossy(bytes)),
        };
        parts(line.as_bytes()).into_iter().map(text).collect()
    }

    /// F13: messages without a line end between them are messages.
    #[test]
    fn glued_messages_are_found() {
        let cut = r#"{"jsonrpc":"2.0","method":"session/up"#;
        let log = r#"{"level":30}"#;
        #[rustfmt::skip]
        let cases: Vec<(String, Vec<String>)> = vec![
            (format!("{CHUNK}{ANSWER}"),             vec![CHUNK.into(), ANSWER.into()]),
            (format!("\u{feff} {CHUNK} {ERROR} "),   vec![CHUNK.into(), ERROR.into()]),
            (format!("{log}{CHUNK}"),                vec![format!("-{log}"), CHUNK.into()]),
            (format!("{ANSWER}Done."),               vec![ANSWER.into(), "-Done.".into()]),
            (format!("{CHUNK}bye{ANSWER}"),          vec![CHUNK.into(), format!("-bye{ANSWER}"), ANSWER.into()]),
            (format!("{cut}{ANSWER}"),               vec![format!("-{cut}"), ANSWER.into()]),
            (format!("{cut}{ERROR}"),                vec![format!("-{cut}"), ERROR.into()]),
            (format!("{cut}{CHUNK}"),                vec![format!("-{cut}"), CHUNK.into()]),
            (format!("date\"}}}}}}{ANSWER}"),        vec![format!("-date\"}}}}}}{ANSWER}"), ANSWER.into()]),
            (format!("Thinking... {ANSWER}"),        vec![format!("-Thinking... {ANSWER}"), ANSWER.into()]),
        ];
        for (line, expected) in cases {
            assert_eq!(split(&line), expected, "{line}");
        }
        let glued = CHUNK.repeat(PARTS_MAX + 1);
        let found = split(&glued);
        assert_eq!((found.len(), &*found[PARTS_MAX]), (PARTS_MAX + 1, &*format!("-{CHUNK}")));
    }

    /// F13: a log line that quotes a message, or a message that holds one, is none.
    #[test]
    fn what_may_be_a_quotation_is_rejected_whole() {
        let mcp = r#"{"jsonrpc":"2.0","id":9,"result":{"content":[]}}"#;
        let hello = r#"{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-06-18"}}"#;
        for line in [
            "plain".to_owned(),
            r#"{"level":30}"#.to_owned(),
            format!("sent {CHUNK}"),
            format!("sent: {ANSWER}"),
            format!("<<< {ANSWER}"),
            format!("got {ERROR}"),
            format!("mcp {mcp}"),
            format!("mcp {hello}"),
            format!("{ANSWER}x").replace('{', "[{"),
            format!(r#"{{"jsonrpc":"2.0","method":"x","params":{ANSWER}"#),
            format!(r#"{{"method":"x","params":[{CHUNK},{ANSWER}"#),
        ] {
            assert_eq!(split(&line), [format!("-{line}")], "{line}");
        }
        assert!(parts(b"caf\xe9 {}").len() == 1);
        let braces = "{\"id\"".repeat(100_000);
        assert_eq!(parts(braces.as_bytes()).len(), 1);
    }
}
