//! A reader of Server-Sent Events that keeps every byte of `data`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;

use serde_json::Value;

use super::{Log, PATIENCE};

/// One event as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `None` if the event brought no `id` field of its own.
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

    /// Whether the event is a frame, not a sign such as `greenroom/synced`.
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
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
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
        // From here the reader waits as long as its consumer does, and longer.
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
        match self.received.recv_timeout(PATIENCE) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("no event in {PATIENCE:?}\n{}", self.log.tail())
            }
        }
    }

    /// All events up to and with the first that fits.
    #[track_caller]
    pub fn until(&self, what: &str, fits: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = match self.received.recv_timeout(PATIENCE) {
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

    /// All events up to and with the seam between replay and live.
    #[track_caller]
    pub fn until_synced(&self) -> Vec<Event> {
        self.until("greenroom/synced", |event| event.event == "greenroom/synced")
    }

    /// All events up to and with the end of the task.
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
    let fresh = || Event { id: None, event: "message".into(), data: String::new() };
    let mut event = fresh();
    let mut has_data = false;
    for line in reader.lines().map_while(Result::ok) {
        if line.is_empty() {
            if has_data && sender.send(event).is_err() {
                return;
            }
            (event, has_data) = (fresh(), false);
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

/// Takes the chunked transfer coding off.
struct Chunked<R> {
    reader: R,
    left: usize,
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            let mut line = String::new();
            // The line end of the chunk before counts as an empty line.
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
