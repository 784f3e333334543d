//! Ended tasks as OpenTelemetry spans, sent to a collector. Off unless it is configured.
//!
//! A thread of its own that nobody waits for: it reads what ended from the database, behind a place
//! that is stored with each batch that a collector took. So nothing is lost while either of the two
//! is down, and what is sent again is the same span again.

mod backoff;
mod collector;
mod progress;
mod span;
mod totals;
mod wire;

use std::{
    io,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use greenroom_actors::{
    clock,
    storage::{Archive, EndedAt, EndedFilter, Ledger, StoreError, chain},
};
use greenroom_core::{Timestamp, lock::Now};
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
};

pub use self::totals::Totals;
use self::{
    backoff::Backoff,
    collector::{Collector, Verdict},
    progress::{Progress, SENT_MAX},
    totals::Fate,
    wire::{Attribute, Request, Resource, Scope, Span},
};
use crate::config::Otlp;

/// By what name the database knows how far spans were sent.
const NAME: &str = "otlp";
/// Spans of one batch. A span is below 2 KiB, so that a batch is below 1 MiB.
const SPANS_MAX: usize = 256;
/// How long the last try may take when the server ends.
const LAST: Duration = Duration::from_secs(2);
/// The first wait for a collector that takes nothing.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// How often a batch is sent to a collector that answers with an error for which OTLP knows no
/// second try.
const HOPELESS_MAX: u32 = 5;

/// The thread that sends spans, as long as it is held.
pub struct Export {
    stop: mpsc::Sender<()>,
    done: oneshot::Receiver<()>,
}

/// Starts to send what ends from now on, or from where it was left, and to count that; `None` if
/// that is not wanted.
///
/// # Errors
///
/// The system has no thread left.
pub fn start(otlp: &Otlp, ledger: Ledger, totals: Totals) -> io::Result<Option<Export>> {
    let Some(url) = &otlp.endpoint else { return Ok(None) };
    let (stop, on_stop) = mpsc::channel();
    let (ended, done) = oneshot::channel();
    let begun = clock::moment();
    let own = otlp.clone();
    let collector = Collector::new(url, own.headers.clone());
    thread::Builder::new().name("otlp".into()).spawn(move || {
        // It waits for answers of actors, and for nothing else.
        match Builder::new_current_thread().build() {
            Ok(runtime) => {
                Exporter::new((runtime, ledger), collector, own, begun, totals).run(&on_stop);
            }
            Err(err) => {
                totals.stall(true);
                log::error!(target: "greenroom::otlp", err:%; "no spans are sent");
            }
        }
        // Nobody may wait any more.
        _ = ended.send(());
    })?;
    log::info!(target: "greenroom::otlp", url:%; "ended tasks are sent as spans");
    Ok(Some(Export { stop, done }))
}

impl Export {
    /// Sends what ended meanwhile, if that is done soon.
    pub async fn finish(self) {
        drop(self.stop);
        if tokio::time::timeout(LAST, self.done).await.is_err() {
            log::info!(target: "greenroom::otlp", "the last spans are sent after the next start");
        }
    }
}

/// What to do after a step.
#[derive(Debug)]
enum Next {
    /// There may be more.
    GoOn,
    /// All is sent.
    Rest,
    /// The collector takes nothing.
    Wait(Duration),
}

struct Exporter {
    runtime: Runtime,
    ledger: Ledger,
    collector: Collector,
    otlp: Otlp,
    resource: Resource,
    backoff: Backoff,
    /// When the server was started, before it went on with anything.
    begun: Timestamp,
    /// When the clock was last looked at, by one that cannot be set.
    looked_ms: u64,
    /// Unknown until it is read.
    progress: Option<Progress>,
    stored: Option<EndedAt>,
    /// Answers to this batch for which OTLP knows no second try.
    odd_errors: u32,
    /// Since when the collector takes nothing.
    down: Option<Instant>,
    totals: Totals,
}

impl Exporter {
    fn new(
        (runtime, ledger): (Runtime, Ledger),
        collector: Collector,
        otlp: Otlp,
        begun: Now,
        totals: Totals,
    ) -> Self {
        Self {
            runtime,
            ledger,
            collector,
            resource: resource(&otlp.service_name),
            backoff: Backoff::new(otlp.interval.min(FIRST_WAIT)),
            otlp,
            begun: begun.wall,
            looked_ms: begun.up.ms,
            progress: None,
            stored: None,
            odd_errors: 0,
            down: None,
            totals,
        }
    }

    fn run(mut self, on_stop: &mpsc::Receiver<()>) {
        loop {
            let stepped = self.step(self.otlp.timeout);
            self.totals.stall(matches!(stepped, Ok(Next::Wait(_)) | Err(_)));
            let wait = match stepped {
                Ok(Next::GoOn) => Duration::ZERO,
                Ok(Next::Rest) => self.otlp.interval,
                Ok(Next::Wait(wait)) => wait,
                Err(err) => {
                    self.fault(&err);
                    self.otlp.interval
                }
            };
            match on_stop.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.last_words();
        let of = |fate| self.totals.of(fate);
        log::info!(
            target: "greenroom::otlp",
            sent = of(Fate::Sent), refused = of(Fate::Refused), rejected = of(Fate::Rejected);
            "no more spans are sent"
        );
    }

    /// What ended since the last step, in what little time is left.
    fn last_words(&mut self) {
        let deadline = Instant::now() + LAST;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            match self.step(left.min(self.otlp.timeout)) {
                Ok(Next::GoOn) => {}
                Ok(Next::Rest | Next::Wait(_)) => return,
                Err(err) => return self.fault(&err),
            }
        }
    }

    fn fault(&self, err: &StoreError) {
        log::log!(
            target: "greenroom::otlp", err.level(), err:% = chain(err);
            "ended tasks cannot be read; spans wait"
        );
    }

    /// Sends one batch, if there is one.
    fn step(&mut self, timeout: Duration) -> Result<Next, StoreError> {
        let mut progress = match self.progress.take() {
            Some(progress) => progress,
            None => self.begin()?,
        };
        let next = self.send(&mut progress, timeout);
        self.progress = Some(progress);
        next
    }

    /// Where the last server left off; else here, or where everything begins.
    fn begin(&mut self) -> Result<Progress, StoreError> {
        let stored = self.read(|archive| archive.exported(NAME))?;
        if let Some(place) = stored {
            self.stored = Some(place);
            return Ok(Progress::resume(place));
        }
        if self.otlp.backfill {
            return Ok(Progress::backfill());
        }
        let begun = self.begun;
        let mut progress = Progress::begin(begun);
        let history = EndedFilter {
            from: None,
            to: Some(Timestamp(begun.0 + 1)),
            after: Some(progress.place()),
            limit: SENT_MAX,
        };
        let history = self.read(move |archive| archive.ended_turns(&history))?;
        let history: Vec<EndedAt> = history.iter().map(|ended| ended.place).collect();
        // Only this process remembers them: the next one, if it starts within seconds, sends them.
        progress.settle(&history, begun);
        progress.restart();
        self.store(progress.place())?;
        Ok(progress)
    }

    fn send(&mut self, progress: &mut Progress, timeout: Duration) -> Result<Next, StoreError> {
        let now = clock::moment();
        let passed_ms = now.up.ms.saturating_sub(self.looked_ms);
        self.looked_ms = now.up.ms;
        if progress.look(now.wall, passed_ms) {
            log::info!(
                target: "greenroom::otlp",
                "the clock was set back; the last spans may be sent twice"
            );
        }
        let filter = EndedFilter {
            from: None,
            to: progress.until(now.wall),
            after: Some(progress.cursor(now.wall)),
            limit: SPANS_MAX,
        };
        let page = self.read(move |archive| archive.ended_turns(&filter))?;
        let places: Vec<EndedAt> = page.iter().map(|ended| ended.place).collect();
        if places.is_empty() {
            progress.restart();
            return Ok(Next::Rest);
        }
        let new = page.into_iter().filter(|ended| progress.is_new(ended.place));
        let new: Vec<_> = new.collect();
        let spans = self.read(move |archive| {
            let span = |ended| match span::read(archive, ended) {
                // A row of one group that cannot be read holds up no other group's spans.
                Err(err) if err.is_one_groups() => None,
                read => read.transpose(),
            };
            new.iter().filter_map(span).collect()
        })?;
        if let Some(wait) = self.hand_over(spans, timeout) {
            progress.restart();
            return Ok(Next::Wait(wait));
        }
        progress.settle(&places, now.wall);
        self.store(progress.place())?;
        Ok(Next::GoOn)
    }

    /// Sends a batch; how long to wait if it has to be sent again.
    fn hand_over(&mut self, spans: Vec<Span>, timeout: Duration) -> Option<Duration> {
        const SCOPE: Scope = Scope { name: "greenroom", version: env!("CARGO_PKG_VERSION") };
        let count = spans.len() as u64;
        if count == 0 {
            return None;
        }
        let request = Request::new(&self.resource, &SCOPE, &spans);
        let body = serde_json::to_vec(&request).unwrap_or_default();
        match self.collector.send(&body, timeout) {
            Verdict::Taken { rejected, words } => {
                self.up();
                // What a collector says need not be true.
                let rejected = rejected.min(count);
                self.totals.add(Fate::Sent, count - rejected);
                self.totals.add(Fate::Rejected, rejected);
                if rejected != 0 {
                    log::error!(
                        target: "greenroom::otlp", rejected, spans = count, said = words;
                        "the collector rejected spans; they are left out"
                    );
                }
            }
            Verdict::Refused { status, words } => self.refused(count, status, &words),
            Verdict::Later { status: Some(status), words, .. } if self.is_hopeless(status) => {
                self.refused(count, status, &words);
            }
            Verdict::Later { status, words, after } => {
                self.down(status, &words);
                self.backoff.failed();
                return Some(self.backoff.wait(after));
            }
        }
        None
    }

    /// OTLP has 429, 502, 503 and 504 sent again and no other error. A server's other errors may
    /// pass all the same, and are tried a few times; one that stays must not hold up what follows.
    fn is_hopeless(&mut self, status: u16) -> bool {
        if !matches!(status, 408 | 429 | 502..=504) {
            self.odd_errors += 1;
        }
        HOPELESS_MAX <= self.odd_errors
    }

    fn refused(&mut self, count: u64, status: u16, words: &str) {
        self.up();
        self.totals.add(Fate::Refused, count);
        log::error!(
            target: "greenroom::otlp",
            status, spans = count, refused = self.totals.of(Fate::Refused), said = words;
            "the collector refused a batch of spans; it is left out"
        );
    }

    fn down(&mut self, status: Option<u16>, words: &str) {
        if self.down.is_none() {
            self.down = Some(Instant::now());
            log::warn!(
                target: "greenroom::otlp",
                status:% = status.map_or_else(|| "none".into(), |status| status.to_string()),
                err = words;
                "the collector takes no spans; they wait in the database"
            );
        }
    }

    fn up(&mut self) {
        self.backoff.reset();
        self.odd_errors = 0;
        if let Some(since) = self.down.take() {
            log::info!(
                target: "greenroom::otlp", down_ms = since.elapsed().as_millis();
                "the collector takes spans again"
            );
        }
    }

    fn store(&mut self, place: EndedAt) -> Result<(), StoreError> {
        if self.stored != Some(place) {
            self.runtime.block_on(self.ledger.put_exported(NAME, place))?;
            self.stored = Some(place);
        }
        Ok(())
    }

    fn read<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&dyn Archive) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, StoreError> {
        self.runtime.block_on(self.ledger.read(ask))
    }
}

fn resource(service: &str) -> Resource {
    Resource {
        attributes: vec![
            Attribute::new("service.name", service),
            Attribute::new("service.version", env!("CARGO_PKG_VERSION")),
        ],
    }
}

#[cfg(test)]
mod tests;
