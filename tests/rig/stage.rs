//! The shared state of all threads of one run, and the client that sends every request.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use greenroom_test_support::{
    Home,
    http::{self, Reply},
};
use serde_json::Value;

use crate::{
    history::{Exchange, History},
    plan::Plan,
};

/// The longest that a caller waits for an answer.
const EXCHANGE: Duration = Duration::from_secs(10);

/// One run in progress.
pub struct Stage {
    pub plan: Plan,
    pub home: Home,
    /// Counts the server's lives, from 1.
    pub life: AtomicUsize,
    /// The load ends: callers submit no more work.
    pub calm: AtomicBool,
    /// The run is over.
    pub over: AtomicBool,
    address: Mutex<Option<SocketAddr>>,
    record: Mutex<History>,
    began: Instant,
}

impl Stage {
    pub fn new(plan: Plan, home: Home) -> Self {
        Self {
            plan,
            home,
            life: AtomicUsize::new(0),
            calm: AtomicBool::new(false),
            over: AtomicBool::new(false),
            address: Mutex::default(),
            record: Mutex::default(),
            began: Instant::now(),
        }
    }

    /// Returns the server's address, if it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes the server's address.
    pub fn set_address(&self, address: Option<SocketAddr>) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }

    /// Returns the history so far.
    pub fn record(&self) -> MutexGuard<'_, History> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the microseconds since the run began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub fn life(&self) -> usize {
        self.life.load(Ordering::SeqCst)
    }

    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::SeqCst)
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Returns a new client.
    pub fn client(&self) -> Client<'_> {
        Client { stage: self, agent: http::client(EXCHANGE) }
    }
}

/// Sends requests and records each in the history.
pub struct Client<'a> {
    stage: &'a Stage,
    agent: ureq::Agent,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: &'static str,
    pub path: String,
    pub key: Option<String>,
    pub body: Value,
}

impl Ask {
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: "GET", path: path.into(), key: None, body: Value::Null }
    }

    pub fn post(path: impl Into<String>, body: Value) -> Self {
        Self { method: "POST", path: path.into(), key: None, body }
    }
}

impl Client<'_> {
    /// Sends a request; `None` if no server listens, and then nothing was sent.
    pub fn send(&self, ask: &Ask) -> Option<Exchange> {
        let address = self.stage.address()?;
        let life = self.stage.life();
        let sent = self.stage.now();
        let mut headers: Vec<(&str, &str)> = Vec::new();
        headers.extend(ask.key.iter().map(|key| ("Idempotency-Key", key.as_str())));
        let body = (!ask.body.is_null()).then(|| ask.body.to_string());
        headers.extend(body.iter().map(|_| ("Content-Type", "application/json")));
        let (url, body) = (format!("http://{address}{}", ask.path), body.as_deref());
        let body = body.map(str::as_bytes);
        let reply = http::exchange(&self.agent, ask.method, &url, &headers, body);
        let Reply { status, body, .. } = reply.unwrap_or_default();
        let exchange = Exchange {
            life,
            sent,
            answered: self.stage.now(),
            method: ask.method,
            path: ask.path.clone(),
            key: ask.key.clone(),
            body: ask.body.clone(),
            status,
            answer: serde_json::from_slice(&body).unwrap_or_default(),
        };
        self.stage.record().exchanges.push(exchange.clone());
        Some(exchange)
    }

    /// Reads without a record in the history. Returns the answer, if there is one.
    pub fn get(&self, path: &str) -> Option<Reply> {
        let url = format!("http://{}{path}", self.stage.address()?);
        http::exchange(&self.agent, "GET", &url, &[], None).ok()
    }

    /// Reads likewise. Returns the answer's text, if it was 200.
    pub fn read(&self, path: &str) -> Option<String> {
        self.get(path).filter(|reply| reply.status == 200).map(|reply| reply.text())
    }

    /// [`Self::read`] of a JSON value.
    pub fn json(&self, path: &str) -> Option<Value> {
        serde_json::from_str(&self.read(path)?).ok()
    }

    /// Returns the year by the server's clock.
    pub fn year(&self) -> Option<u64> {
        self.date()?.split(' ').nth(3)?.parse().ok()
    }

    /// Returns the time by the server's clock, in HTTP's format.
    fn date(&self) -> Option<String> {
        Some(self.get("/healthz")?.header("date")?.to_owned())
    }

    /// Returns the seconds of the day by the server's clock.
    pub fn clock(&self) -> Option<u64> {
        let date = self.date()?;
        let time = date.split(' ').find(|word| word.contains(':'))?;
        let parts = time.split(':').map(|part| part.parse::<u64>().ok());
        parts.collect::<Option<Vec<_>>>().map(|parts| parts.iter().fold(0, |sum, n| sum * 60 + n))
    }
}
