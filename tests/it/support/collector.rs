//! A collector of OpenTelemetry spans, as small as one can be: keeps what it is sent, and answers
//! what it is told to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use serde_json::Value;

use super::server::id;
use super::setup::Port;
use super::{Log, PATIENCE};

const BODY_BYTES_MAX: usize = 4 << 20;
const HEADERS_MAX: usize = 64;

/// What to say to one batch.
#[derive(Clone, Debug)]
pub enum Answer {
    /// This status, with these further lines of a header, and this body.
    Status(u16, &'static str, &'static str),
    /// Nothing: the connection ends.
    HangUp,
    /// Nothing, and the connection stays.
    Silence,
}

/// One batch as it came, and whether it was answered with 200.
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
    /// What is said to the next batches.
    next: VecDeque<Answer>,
    /// What is said to all others; none: 200.
    always: Option<Answer>,
}

/// A listening collector, until the test process ends.
pub struct Collector {
    address: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
    log: Log,
}

impl Collector {
    /// On any port.
    pub fn start() -> Self {
        Self::listen(TcpListener::bind(("127.0.0.1", 0)).unwrap())
    }

    /// On a port that nobody else has.
    pub fn start_at(port: &Port) -> Self {
        Self::listen(TcpListener::bind(port.address()).unwrap())
    }

    fn listen(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = shared.clone();
                thread::spawn(move || converse(&stream, &shared));
            }
        });
        Self { address, state, log: Log::default() }
    }

    /// Shows this server's log when something is waited for in vain.
    pub fn with_log(mut self, log: &Log) -> Self {
        self.log = log.clone();
        self
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Says this to the next batches, one each.
    pub fn answer(&self, answers: &[Answer]) {
        self.lock().next.extend(answers.iter().cloned());
    }

    /// Says this to every batch from now on; none: 200.
    pub fn always(&self, answer: Option<Answer>) {
        self.lock().always = answer;
    }

    pub fn batches(&self) -> Vec<Batch> {
        self.lock().batches.clone()
    }

    /// The spans that were taken, in the order in which they came.
    pub fn spans(&self) -> Vec<Value> {
        let taken = self.batches().into_iter().filter(|batch| batch.taken);
        taken.flat_map(|batch| batch.spans).collect()
    }

    /// Waits until so many batches came, taken or not.
    #[track_caller]
    pub fn wait_batches(&self, count: usize) -> Vec<Batch> {
        self.wait(&format!("{count} batches"), |batches| batches.len() >= count);
        self.batches()
    }

    /// Waits until the spans of all these tasks were taken, and gives them in the tasks' order.
    #[track_caller]
    pub fn wait_spans(&self, tasks: &[&Value]) -> Vec<Value> {
        fn by_task(batches: &[Batch]) -> HashMap<&str, &Value> {
            let taken = batches.iter().filter(|batch| batch.taken);
            let spans = taken.flat_map(|batch| &batch.spans);
            spans.map(|span| (said(span, "greenroom.task").as_str().unwrap(), span)).collect()
        }
        self.wait("spans of all tasks", |batches| {
            let spans = by_task(batches);
            tasks.iter().all(|task| spans.contains_key(id(task)))
        });
        let batches = self.batches();
        let spans = by_task(&batches);
        tasks.iter().map(|task| spans[id(task)].clone()).collect()
    }

    #[track_caller]
    fn wait(&self, what: &str, fits: impl Fn(&[Batch]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lock();
        while !fits(&state.batches) {
            let left = deadline.saturating_duration_since(Instant::now());
            let came = state.batches.len();
            assert!(!left.is_zero(), "{what}: {came} batches came\n{}", self.log.tail());
            let waited = self.state.1.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a span's attribute says, whatever kind of value it is.
pub fn said<'a>(span: &'a Value, key: &str) -> &'a Value {
    let attributes = span["attributes"].as_array().unwrap();
    let found = attributes.iter().find(|attribute| attribute["key"] == key);
    let value = found.and_then(|attribute| attribute["value"].as_object()?.values().next());
    value.unwrap_or(&Value::Null)
}

/// Answers the batches of one connection.
fn converse(stream: &TcpStream, state: &(Mutex<State>, Condvar)) {
    let mut reader = BufReader::new(stream);
    while let Some(mut batch) = read(&mut reader) {
        let answer = {
            let mut state = state.0.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = state.next.pop_front().or_else(|| state.always.clone());
            let answer = answer.unwrap_or(Answer::Status(200, "", "{}"));
            batch.taken = matches!(answer, Answer::Status(200, ..));
            state.batches.push(batch);
            answer
        };
        state.1.notify_all();
        match answer {
            Answer::Status(status, header, body) => {
                let length = body.len();
                let mut out = stream;
                let told = write!(
                    out,
                    "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n\
                     Content-Length: {length}\r\n{header}\r\n{body}"
                );
                if told.is_err() {
                    return;
                }
            }
            Answer::HangUp => return,
            // Until the client gives up.
            Answer::Silence => _ = reader.read(&mut [0]),
        }
    }
}

/// One request; `None` at the end of the connection.
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
