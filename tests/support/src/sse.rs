//! A parser of Server-Sent Events that keeps every byte of `data`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
};

use serde_json::Value;

use super::{Log, TIMEOUT};

/// One event as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `None` if the event has no `id` field of its own.
    pub id: Option<u64>,
    pub event: String,
    pub data: String,
}

impl Event {
    /// The frame that the event carries.
    #[track_caller]
    pub fn frame(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|err| panic!("not JSON ({err}): {self:?}"))
    }

    /// Whether the event is a frame, not a marker such as `greenroom/synced`.
    pub fn is_frame(&self) -> bool {
        self.id.is_some()
    }
}

/// An open stream of events; dropping it closes the connection.
pub struct Events {
    stream: TcpStream,
    received: Receiver<Event>,
    log: Log,
}

impl Events {
    /// Opens a stream and checks the head of the response.
    #[track_caller]
    pub fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)], log: &Log) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n");
        request.push_str("Accept: text/event-stream\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let head = read_head(&mut reader);
        assert!(head[0].contains(" 200"), "{path}: {head:?}\n{}", log.tail());
        let has = |name: &str, word: &str| {
            head.iter().any(|line| {
                let line = line.to_ascii_lowercase();
                line.starts_with(name) && line.contains(word)
            })
        };
        assert!(has("content-type:", "text/event-stream"), "{path}: {head:?}");
        let chunked = has("transfer-encoding:", "chunked");
        // From here on, the timeout is the consumer's.
        stream.set_read_timeout(None).unwrap();
        let (sender, received) = channel();
        thread::spawn(move || {
            if chunked {
                forward(BufReader::new(Chunked { reader, left: 0 }), &sender);
            } else {
                forward(reader, &sender);
            }
        });
        Self { stream, received, log: log.clone() }
    }

    /// The next event, or `None` when the server has closed the stream.
    #[track_caller]
    pub fn next(&self) -> Option<Event> {
        match self.received.recv_timeout(TIMEOUT) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("no event in {TIMEOUT:?}\n{}", self.log.tail())
            }
        }
    }

    /// Returns all events up to and including the first that `fits` accepts.
    #[track_caller]
    pub fn until(&self, what: &str, fits: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = match self.received.recv_timeout(TIMEOUT) {
                Ok(event) => event,
                Err(err) => panic!(
                    "no event: {what} ({err}), after {} others, the last {:?}\n{}",
                    events.len(),
                    events.last(),
                    self.log.tail()
                ),
            };
            let found = fits(&event);
            events.push(event);
            if found {
                return events;
            }
        }
    }

    /// Returns all events up to and including `greenroom/synced`.
    #[track_caller]
    pub fn until_synced(&self) -> Vec<Event> {
        self.until("greenroom/synced", |event| event.event == "greenroom/synced")
    }

    /// Returns all events up to and including the end of the task.
    #[track_caller]
    pub fn until_task_ended(&self, task: &Value) -> Vec<Event> {
        self.until(&format!("the end of {task}"), |event| {
            event.event == "greenroom/task_ended" && event.frame()["task"] == *task
        })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

fn read_head(reader: &mut impl BufRead) -> Vec<String> {
    let lines = reader.lines().map(Result::unwrap);
    lines.take_while(|line| !line.is_empty()).collect()
}

/// Splits a stream into events and sends them on, until either side ends.
fn forward(reader: impl BufRead, sender: &Sender<Event>) {
    let empty = || Event { id: None, event: "message".into(), data: String::new() };
    let mut event = empty();
    let mut has_data = false;
    for line in reader.lines().map_while(Result::ok) {
        if line.is_empty() {
            if has_data && sender.send(event).is_err() {
                return;
            }
            (event, has_data) = (empty(), false);
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => event.id = value.parse().ok(),
            "event" => value.clone_into(&mut event.event),
            "data" => {
                if has_data {
                    event.data.push('\n');
                }
                event.data.push_str(value);
                has_data = true;
            }
            _ => {}
        }
    }
}

/// Decodes the chunked transfer coding.
struct Chunked<R> {
    reader: R,
    left: usize,
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            let mut line = String::new();
            // The line end of the previous chunk is read as an empty line.
            while line.trim().is_empty() {
                line.clear();
                if self.reader.read_line(&mut line)? == 0 {
                    return Ok(0);
                }
            }
            let size = line.trim().split(';').next().unwrap_or_default();
            self.left = usize::from_str_radix(size, 16).map_err(std::io::Error::other)?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let most = buffer.len().min(self.left);
        let read = self.reader.read(&mut buffer[..most])?;
        self.left -= read;
        Ok(read)
    }
}
