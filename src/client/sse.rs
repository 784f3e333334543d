//! Parses Server-Sent Events (WHATWG HTML section 9.2) from any reader.

use std::io::{self, BufRead};

/// Maximum bytes of one event. A frame holds one line of an agent, by default at most 16 MiB,
/// escaped once more.
const EVENT_BYTES_MAX: usize = 128 << 20;

/// One event with data. Comments and events without data are skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The id of this event, if the server sent one with it.
    pub id: Option<String>,
    /// The event's name; `message` if the server sent none.
    pub kind: String,
    /// All `data` lines, joined by LF.
    pub data: String,
}

/// Reads events until the stream ends; drops an incomplete last one.
pub struct Events<R> {
    reader: R,
    /// The last line ended in CR: an LF right after it belongs to that line end.
    after_cr: bool,
    first_line: bool,
}

impl<R: BufRead> Events<R> {
    pub fn new(reader: R) -> Self {
        Events { reader, after_cr: false, first_line: true }
    }

    /// Returns the next line without its end (CR, LF or both); `None` at the end of the stream.
    /// Does not wait for a byte after CR.
    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if buffer.is_empty() {
                return Ok(None);
            }
            if std::mem::take(&mut self.after_cr) && buffer[0] == b'\n' {
                self.reader.consume(1);
                continue;
            }
            let end = buffer.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            line.extend_from_slice(&buffer[..end.unwrap_or(buffer.len())]);
            self.after_cr = end.is_some_and(|end| buffer[end] == b'\r');
            let used = end.map_or(buffer.len(), |end| end + 1);
            self.reader.consume(used);
            if EVENT_BYTES_MAX < line.len() {
                return Err(too_long());
            }
            if end.is_some() {
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
        }
    }

    fn event(&mut self) -> io::Result<Option<Event>> {
        let (mut id, mut kind, mut data) = (None, String::new(), None::<String>);
        while let Some(line) = self.line()? {
            let mut line = line.as_str();
            if std::mem::take(&mut self.first_line) {
                line = line.strip_prefix('\u{feff}').unwrap_or(line);
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() => match data.take() {
                    Some(data) => {
                        let kind = if kind.is_empty() { "message".to_owned() } else { kind };
                        return Ok(Some(Event { id, kind, data }));
                    }
                    None => (id, kind) = (None, String::new()),
                },
                "id" if !value.contains('\0') => id = Some(value.to_owned()),
                "event" => value.clone_into(&mut kind),
                "data" => {
                    let data = match &mut data {
                        Some(data) => {
                            data.push('\n');
                            data
                        }
                        None => data.insert(String::new()),
                    };
                    data.push_str(value);
                    if EVENT_BYTES_MAX < data.len() {
                        return Err(too_long());
                    }
                }
                // A comment (no field), `retry`, or an unknown field.
                _ => {}
            }
        }
        Ok(None)
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an event from the server is too long")
}

impl<R: BufRead> Iterator for Events<R> {
    type Item = io::Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        self.event().transpose()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{BufReader, Cursor, Read};

    use super::*;

    fn event(id: Option<&str>, kind: &str, data: &str) -> Event {
        Event { id: id.map(str::to_owned), kind: kind.into(), data: data.into() }
    }

    fn read(bytes: &[u8]) -> Vec<Event> {
        Events::new(Cursor::new(bytes)).map(Result::unwrap).collect()
    }

    #[test]
    fn fields_are_parsed_by_the_standard() {
        #[rustfmt::skip]
        let cases: [(&str, &str, Vec<Event>); 14] = [
            ("nothing",               "",                                    vec![]),
            ("all fields",            "id: 7\nevent: a/b\ndata: x\n\n",      vec![event(Some("7"), "a/b", "x")]),
            ("no name",               "data: x\n\n",                         vec![event(None, "message", "x")]),
            ("multi-line data",       "data: a\ndata:\ndata: b\n\n",         vec![event(None, "message", "a\n\nb")]),
            ("one space is removed",  "data:  x \n\n",                       vec![event(None, "message", " x ")]),
            ("no space, colons",      "data:a:b: c\n\n",                     vec![event(None, "message", "a:b: c")]),
            ("empty data counts",     "data\n\n",                            vec![event(None, "message", "")]),
            ("comment",               ": hi\n\n:data: x\ndata: y\n\n",       vec![event(None, "message", "y")]),
            ("event without data",    "id: 1\nevent: a\n\ndata: x\n\n",      vec![event(None, "message", "x")]),
            ("unknown, retry",        "retry: 1\nfoo: 2\ndata: x\n\n",       vec![event(None, "message", "x")]),
            ("not complete",          "data: x\n\ndata: y\n",                vec![event(None, "message", "x")]),
            ("not complete, line",    "data: x",                             vec![]),
            ("id with NUL",           "id: 1\0\ndata: x\n\n",                vec![event(None, "message", "x")]),
            ("byte order mark",       "\u{feff}data: x\n\n",                 vec![event(None, "message", "x")]),
        ];
        for (name, text, expected) in cases {
            assert_eq!(read(text.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn every_line_end_and_every_split_parses_the_same() {
        let lines = "id: 1\nevent: a\ndata: é1\ndata: 2\n\n: ping\n\nid: 2\ndata: 3\n\n";
        let expected = [event(Some("1"), "a", "é1\n2"), event(Some("2"), "message", "3")];
        for end in ["\n", "\r", "\r\n"] {
            let bytes = lines.replace('\n', end).into_bytes();
            assert_eq!(read(&bytes), expected, "{end:?}");
            for at in 0..=bytes.len() {
                let (head, tail) = bytes.split_at(at);
                let reader = BufReader::new(Cursor::new(head).chain(Cursor::new(tail)));
                let events: Vec<Event> = Events::new(reader).map(Result::unwrap).collect();
                assert_eq!(events, expected, "{end:?} split at {at}");
            }
            let reader = BufReader::with_capacity(1, Cursor::new(&bytes));
            let events: Vec<Event> = Events::new(reader).map(Result::unwrap).collect();
            assert_eq!(events, expected, "{end:?} byte by byte");
        }
    }

    /// Returns its bytes, and panics on a read beyond them.
    struct NoMore<'a>(&'a [u8]);

    impl Read for NoMore<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            assert!(!self.0.is_empty(), "read beyond the event");
            self.0.read(into)
        }
    }

    #[test]
    fn an_event_that_ends_in_cr_is_returned_at_once() {
        let mut events = Events::new(BufReader::new(NoMore(b"data: x\r\r")));
        assert_eq!(events.next().unwrap().unwrap(), event(None, "message", "x"));
    }

    #[test]
    fn a_broken_stream_is_an_error() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let mut events = Events::new(BufReader::new(Cursor::new(b"data: x\n\nda").chain(Broken)));
        assert!(events.next().unwrap().is_ok());
        assert!(events.next().unwrap().is_err());
    }
}
