//! A reader of Server-Sent Events that keeps every byte of `data`.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    mem,
    net::{Shutdown, SocketAddr, TcpStream},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
};

use serde_json::Value;

use super::{Log, TIMEOUT};

/// One event as it was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// Connects and sends the request for a stream, in HTTP/1.0: so that the body is everything until
/// the end, without chunks. The command line and the slowest readers of the tests use HTTP/1.1.
pub fn connect(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    let headers: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let accept = "Accept: text/event-stream";
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n{accept}\r\n{headers}\r\n")?;
    Ok(stream)
}

/// Splits a response into events. After an error by the socket's read timeout it may be continued.
pub struct Stream {
    reader: BufReader<TcpStream>,
    line: Vec<u8>,
    head: String,
    is_open: bool,
    event: Event,
}

impl Stream {
    /// Reads what [`connect`] requested.
    pub fn new(stream: TcpStream) -> Self {
        let (line, head) = (Vec::new(), String::new());
        let reader = BufReader::new(stream);
        Self { reader, line, head, is_open: false, event: Event::default() }
    }

    /// Reads the head of the response.
    ///
    /// # Errors
    ///
    /// It is no stream of events, or the socket fails.
    pub fn open(&mut self) -> io::Result<()> {
        while !self.is_open {
            let line = self.line()?.unwrap_or_default().to_ascii_lowercase();
            self.head.push_str(&line);
            self.is_open = line.is_empty();
            let fits = |words| self.head.contains(words);
            if self.is_open && !(fits(" 200 ") && fits("content-type: text/event-stream")) {
                return Err(io::Error::other(format!("no stream of events: {}", self.head)));
            }
        }
        Ok(())
    }

    /// The next event with data; `None` when the server has closed the stream.
    ///
    /// # Errors
    ///
    /// Those of [`Self::open`].
    pub fn read(&mut self) -> io::Result<Option<Event>> {
        self.open()?;
        while let Some(line) = self.line()? {
            if line.is_empty() {
                let mut event = mem::take(&mut self.event);
                // Each line of data ends with a line feed, and the last one is not part of it.
                if event.data.pop().is_some() {
                    return Ok(Some(event));
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => self.event.id = value.parse().ok(),
                "event" => value.clone_into(&mut self.event.event),
                "data" => self.event.data.extend([value, "\n"]),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Reads a line; after a timeout, the rest of one.
    fn line(&mut self) -> io::Result<Option<String>> {
        self.reader.read_until(b'\n', &mut self.line)?;
        let line = String::from_utf8(mem::take(&mut self.line)).map_err(io::Error::other)?;
        Ok(line.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line).to_owned()))
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
        let stream = connect(address, path, headers).unwrap();
        let mut events = Stream::new(stream.try_clone().unwrap());
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        events.open().unwrap_or_else(|err| panic!("{path}: {err}\n{}", log.tail()));
        // From here on, the timeout is the consumer's.
        stream.set_read_timeout(None).unwrap();
        let (sender, received) = channel();
        thread::spawn(move || {
            while let Ok(Some(event)) = events.read()
                && sender.send(event).is_ok()
            {}
        });
        Self { stream, received, log: log.clone() }
    }

    /// The next event, or `None` when the server has closed the stream.
    #[track_caller]
    pub fn next(&self) -> Option<Event> {
        match self.received.recv_timeout(TIMEOUT) {
            Err(RecvTimeoutError::Timeout) => panic!("no event\n{}", self.log.tail()),
            received => received.ok(),
        }
    }

    /// Returns all events up to and including the first that `fits` accepts.
    #[track_caller]
    pub fn until(&self, what: &str, fits: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        while !events.last().is_some_and(&fits) {
            match self.received.recv_timeout(TIMEOUT) {
                Ok(event) => events.push(event),
                Err(err) => {
                    let (seen, last) = (events.len(), events.last());
                    let tail = self.log.tail();
                    panic!(
                        "no event: {what} ({err}), after {seen} others, the last {last:?}\n{tail}"
                    )
                }
            }
        }
        events
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
