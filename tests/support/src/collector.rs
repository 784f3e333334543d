//! A minimal collector of OpenTelemetry spans: it keeps every batch, and answers as scripted.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Read, Write},
    mem,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use serde_json::Value;

use super::{Log, eventually};

const BODY_BYTES_MAX: usize = 4 << 20;
const HEADERS_MAX: usize = 64;

/// The answer to one batch.
#[derive(Clone, Debug)]
pub enum Answer {
    /// This status, with these additional header lines, and this body.
    Status(u16, &'static str, &'static str),
    /// No answer: the collector closes the connection.
    HangUp,
    /// No answer, and the connection stays open.
    Silence,
}

/// One batch as received; `taken` if it was answered with 200.
#[derive(Clone, Debug)]
pub struct Batch {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    pub spans: Vec<Value>,
    pub taken: bool,
}

#[derive(Default)]
struct State {
    batches: Vec<Batch>,
    /// The answers to the next batches.
    next: VecDeque<Answer>,
    /// The answer to all others; `None`: 200.
    always: Option<Answer>,
}

/// A listening collector, until the test process ends.
pub struct Collector {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    log: Log,
}

impl Collector {
    /// Listens on any port.
    pub fn start() -> Self {
        Self::listen(TcpListener::bind(("127.0.0.1", 0)).unwrap(), &[])
    }

    /// Listens; the first batches get these answers, one each.
    pub fn listen(listener: TcpListener, answers: &[Answer]) -> Self {
        let address = listener.local_addr().unwrap();
        let state = State { next: answers.iter().cloned().collect(), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = shared.clone();
                thread::spawn(move || serve_connection(&stream, &shared));
            }
        });
        Self { address, state, log: Log::default() }
    }

    /// Shows this server's log when a wait times out.
    pub fn with_log(mut self, log: &Log) -> Self {
        self.log = log.clone();
        self
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Gives the next batches these answers, one each.
    pub fn answer(&self, answers: &[Answer]) {
        self.lock().next.extend(answers.iter().cloned());
    }

    /// Gives every batch from now on this answer; `None`: 200.
    pub fn always(&self, answer: Option<Answer>) {
        self.lock().always = answer;
    }

    pub fn batches(&self) -> Vec<Batch> {
        self.lock().batches.clone()
    }

    /// The spans that were answered with 200, in the order of arrival.
    pub fn spans(&self) -> Vec<Value> {
        let state = self.lock();
        let taken = state.batches.iter().filter(|batch| batch.taken);
        taken.flat_map(|batch| batch.spans.clone()).collect()
    }

    /// Waits until this number of batches arrived, whatever their answers.
    #[track_caller]
    pub fn wait_batches(&self, count: usize) -> Vec<Batch> {
        eventually(&format!("{count} batches"), &self.log, || {
            (count <= self.lock().batches.len()).then_some(())
        });
        self.batches()
    }

    /// Waits until the spans of all these tasks were answered with 200, and returns them in the
    /// tasks' order.
    #[track_caller]
    pub fn wait_spans(&self, tasks: &[&Value]) -> Vec<Value> {
        let mut seen = 0;
        eventually("spans of all tasks", &self.log, || {
            // All spans are searched again only when a batch more has arrived.
            let arrived = self.lock().batches.len();
            if mem::replace(&mut seen, arrived) == arrived {
                return None;
            }
            let spans = self.spans();
            let of = |task: &Value| {
                let is_of = |span: &&Value| attribute(span, "greenroom.task") == &task["id"];
                spans.iter().rfind(is_of).cloned()
            };
            tasks.iter().map(|task| of(task)).collect()
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the value of a span's attribute, whatever its type; `Null` if the span has none.
pub fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let attributes = span["attributes"].as_array().unwrap();
    let found = attributes.iter().find(|candidate| candidate["key"] == key);
    let value = found.and_then(|found| found["value"].as_object()?.values().next());
    value.unwrap_or(&Value::Null)
}

/// Answers the batches of one connection.
fn serve_connection(stream: &TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    while let Some(mut batch) = read(&mut reader) {
        let answer = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = state.next.pop_front().or_else(|| state.always.clone());
            let answer = answer.unwrap_or(Answer::Status(200, "", "{}"));
            batch.taken = matches!(answer, Answer::Status(200, ..));
            state.batches.push(batch);
            answer
        };
        match answer {
            Answer::Status(status, header, body) => {
                let length = body.len();
                let mut out = stream;
                let written = write!(
                    out,
                    "HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\n\
                     Content-Length: {length}\r\n{header}\r\n{body}"
                );
                if written.is_err() {
                    return;
                }
            }
            Answer::HangUp => return,
            // Until the client gives up.
            Answer::Silence => _ = reader.read(&mut [0]),
        }
    }
}

/// Reads one request; `None` at the end of the connection.
fn read(reader: &mut impl BufRead) -> Option<Batch> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        assert!(headers.len() <= HEADERS_MAX);
    }
    let length: usize = headers.get("content-length")?.parse().ok()?;
    assert!(length <= BODY_BYTES_MAX);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).ok()?;
    let request: Value = serde_json::from_str(&body).unwrap();
    let spans = request["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone();
    Some(Batch { path, headers, body, spans, taken: false })
}
