//! How a run reads the lines of its agent: each is a message, has messages in it, or is rejected.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use greenroom_core::{ErrorKind, Event};
use memchr::memmem;

use super::RunLoop;
use crate::acp::{self, ParseError, RpcError, glued::Part};

/// The part of a rejected line that is stored.
const REJECTED_BYTES_MAX: usize = 64 << 10;

impl RunLoop {
    /// Handles one line, without its line feed.
    pub(super) fn on_line(&mut self, bytes: &[u8]) {
        // Lines after a protocol error are dropped.
        if self.termination.is_protocol_error() {
            return;
        }
        // A carriage return is white space in JSON and a line's end in Server-Sent Events.
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        if bytes.len() > self.line_bytes_max {
            let max = self.line_bytes_max;
            return self.on_protocol_error(&format!("the agent wrote a line over {max} bytes"));
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let handled = match std::str::from_utf8(bytes) {
            Ok(text) => self.on_text(text.strip_prefix('\u{feff}').unwrap_or(text)),
            Err(_) => Err(ParseError::NoMessage("it is not UTF-8".into())),
        };
        match handled {
            Ok(()) => {}
            Err(ParseError::NoMessage(reason)) => self.on_unreadable(bytes, reason),
            Err(err) => self.on_unparsed(bytes, err),
        }
    }

    fn on_text(&mut self, text: &str) -> Result<(), ParseError> {
        let text = match memchr::memchr(b'\r', text.as_bytes()) {
            Some(_) => Cow::Owned(text.replace('\r', " ")),
            None => Cow::Borrowed(text),
        };
        let message = acp::parse(&text)?;
        self.noise.on_message();
        self.on_message(&text, message);
        Ok(())
    }

    /// Handles a line that is no message: an answer ends its turn, whatever is in it, and messages
    /// that the agent wrote without a line end between them are still messages.
    fn on_unreadable(&mut self, bytes: &[u8], reason: String) {
        if let Some(line) = acp::repaired(bytes)
            && let Ok(acp::Message::Response { id, outcome }) = acp::parse(&line.text)
        {
            let is_sure = line.keeps_strings || !self.opens_session(id);
            let outcome =
                outcome.and_then(|result| match is_sure || names_session(bytes, result) {
                    true => Ok(result),
                    false => Err(RpcError {
                        code: None,
                        kind: ErrorKind::Passing,
                        message: format!("its answer is unreadable: {reason}"),
                    }),
                });
            self.noise.on_message();
            return self.on_message(&line.text, acp::Message::Response { id, outcome });
        }
        if let Ok(text) = std::str::from_utf8(bytes)
            && let Some(error) = acp::unaddressed_error(text.trim_start_matches('\u{feff}'))
            && let Some(id) = self.only_request(error.is_of_unknown)
        {
            self.noise.on_message();
            let answer = acp::Message::Response { id, outcome: Err(error.error) };
            return self.on_message(text, answer);
        }
        for part in acp::glued::parts(bytes) {
            match part {
                Part::Message(text) => {
                    if let Err(err) = self.on_text(text) {
                        self.on_unparsed(text.as_bytes(), err);
                    }
                }
                Part::Rejected(bytes) => self.reject(bytes, reason.clone()),
            }
            if self.termination.is_protocol_error() {
                return;
            }
        }
    }

    fn on_unparsed(&mut self, bytes: &[u8], err: ParseError) {
        self.reject(bytes, err.to_string());
        if err == ParseError::TooDeep {
            self.on_protocol_error("the agent wrote JSON that nests too deep");
        }
    }

    fn reject(&mut self, bytes: &[u8], reason: String) {
        // Whether it begins as a message does decides whether it is output (A-4).
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
        let kept = &bytes[..bytes.len().min(REJECTED_BYTES_MAX)];
        let (run, encoded) = (self.run, STANDARD.encode(kept));
        self.batch.push_sized(Event::OutputRejected { run, reason, bytes: encoded }, kept.len());
        let is_broken = kept.starts_with(b"{") && !acp::is_log_record(bytes);
        if let Some(why) = self.noise.on_rejected(kept.len(), is_broken) {
            self.on_protocol_error(&why);
        }
    }
}

/// Whether the id of the session that `result` opens stands in the line just so: in a line that was
/// repaired, it may be another.
fn names_session(line: &[u8], result: &str) -> bool {
    let stands = |id: &str| memmem::find(line, format!("\"{id}\"").as_bytes()).is_some();
    acp::opened_session(result).is_ok_and(|session| stands(&session.0))
}
