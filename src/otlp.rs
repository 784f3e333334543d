//! Exports ended tasks to a collector as OpenTelemetry spans. Off unless it is configured.
//!
//! Runs in its own thread, which no other part waits for. It reads ended tasks from the database,
//! after a place that it stores for each batch that the collector accepted. So no span is lost
//! while server or collector is down, and a span that is sent twice has the same ids.

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
    storage::{Db, EndedAt, EndedFilter, ReadStore, StoreError, chain},
};
use greenroom_core::{Now, Timestamp};
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
};

pub use self::totals::Totals;
use self::{
    backoff::Backoff,
    collector::{Collector, ExportResult},
    progress::{Progress, SENT_MAX},
    totals::SpanResult,
    wire::{Attribute, Request, Resource, Scope, Span},
};
use crate::config::Otlp;

/// The name under which the database stores the export's place.
const NAME: &str = "otlp";
/// Maximum spans of one batch. A span is below 2 KiB, so that a batch is below 1 MiB.
const SPANS_MAX: usize = 256;
/// How long the last export may take when the server stops.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// The first wait for a collector that accepts no spans.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// How often a batch is sent to a collector that answers with errors that OTLP does not list as
/// retryable.
const UNLISTED_ERRORS_MAX: u32 = 5;

/// The handle of the export thread; dropping it stops the thread.
pub struct Export {
    stop: mpsc::Sender<()>,
    done: oneshot::Receiver<()>,
}

/// Starts the export at the stored place, or at the tasks that end from now on; counts in `totals`.
/// Returns `None` if no collector is configured.
///
/// # Errors
///
/// The thread cannot be started.
pub fn start(otlp: &Otlp, db: Db, totals: Totals) -> io::Result<Option<Export>> {
    let Some(url) = &otlp.endpoint else { return Ok(None) };
    let (stop, on_stop) = mpsc::channel();
    let (ended, done) = oneshot::channel();
    let started = clock::moment();
    let settings = otlp.clone();
    let collector = Collector::new(url, settings.headers.clone());
    thread::Builder::new().name("otlp".into()).spawn(move || {
        // It only waits for answers of actors.
        match Builder::new_current_thread().build() {
            Ok(runtime) => {
                Exporter::new((runtime, db), collector, settings, started, totals).run(&on_stop);
            }
            Err(err) => {
                totals.set_stalled(true);
                log::error!(target: "greenroom::otlp", err:%; "no spans are sent");
            }
        }
        // Lets `finish` return.
        _ = ended.send(());
    })?;
    log::info!(target: "greenroom::otlp", url:%; "ended tasks are sent as spans");
    Ok(Some(Export { stop, done }))
}

impl Export {
    /// Exports the tasks that ended since the last step, within a short time limit.
    pub async fn finish(self) {
        drop(self.stop);
        if tokio::time::timeout(FLUSH_TIMEOUT, self.done).await.is_err() {
            log::info!(target: "greenroom::otlp", "the last spans are sent after the next start");
        }
    }
}

/// What the export does after a step.
#[derive(Debug)]
enum Next {
    /// Continue: there may be more tasks.
    More,
    /// Wait for the interval: every span was sent.
    Idle,
    /// Wait so long: the collector accepts no spans.
    Wait(Duration),
}

struct Exporter {
    runtime: Runtime,
    db: Db,
    collector: Collector,
    otlp: Otlp,
    resource: Resource,
    backoff: Backoff,
    /// When the server started, before it loaded any group.
    started: Timestamp,
    /// When the wall clock was last read, by the monotonic clock.
    clock_read_ms: u64,
    /// `None` until it has been read.
    progress: Option<Progress>,
    stored: Option<EndedAt>,
    /// Answers to this batch that OTLP does not list as retryable.
    unlisted_errors: u32,
    /// Since when the collector accepts no spans.
    down_since: Option<Instant>,
    totals: Totals,
}

impl Exporter {
    fn new(
        (runtime, db): (Runtime, Db),
        collector: Collector,
        otlp: Otlp,
        started: Now,
        totals: Totals,
    ) -> Self {
        Self {
            runtime,
            db,
            collector,
            resource: resource(&otlp.service_name),
            backoff: Backoff::new(otlp.interval.min(FIRST_WAIT)),
            otlp,
            started: started.wall,
            clock_read_ms: started.up.ms,
            progress: None,
            stored: None,
            unlisted_errors: 0,
            down_since: None,
            totals,
        }
    }

    fn run(mut self, on_stop: &mpsc::Receiver<()>) {
        loop {
            let stepped = self.step(self.otlp.timeout);
            self.totals.set_stalled(matches!(stepped, Ok(Next::Wait(_)) | Err(_)));
            let wait = match stepped {
                Ok(Next::More) => Duration::ZERO,
                Ok(Next::Idle) => self.otlp.interval,
                Ok(Next::Wait(wait)) => wait,
                Err(err) => {
                    self.report_read_error(&err);
                    self.otlp.interval
                }
            };
            match on_stop.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.flush();
        let of = |result| self.totals.of(result);
        log::info!(
            target: "greenroom::otlp",
            sent = of(SpanResult::Sent), refused = of(SpanResult::Refused),
            rejected = of(SpanResult::Rejected);
            "no more spans are sent"
        );
    }

    /// Exports the tasks that ended since the last step, for at most [`FLUSH_TIMEOUT`].
    fn flush(&mut self) {
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            match self.step(left.min(self.otlp.timeout)) {
                Ok(Next::More) => {}
                Ok(Next::Idle | Next::Wait(_)) => return,
                Err(err) => return self.report_read_error(&err),
            }
        }
    }

    fn report_read_error(&self, err: &StoreError) {
        log::log!(
            target: "greenroom::otlp", err.level(), err:% = chain(err);
            "ended tasks cannot be read; spans wait"
        );
    }

    /// Exports one batch, if there is one.
    fn step(&mut self, timeout: Duration) -> Result<Next, StoreError> {
        let mut progress = match self.progress.take() {
            Some(progress) => progress,
            None => self.load_progress()?,
        };
        let next = self.send(&mut progress, timeout);
        self.progress = Some(progress);
        next
    }

    /// Loads the place where the last server stopped; else starts here, or with `backfill` at the
    /// first task.
    fn load_progress(&mut self) -> Result<Progress, StoreError> {
        let stored = self.read(|store| store.exported(NAME))?;
        if let Some(place) = stored {
            self.stored = Some(place);
            return Ok(Progress::resume(place));
        }
        if self.otlp.backfill {
            return Ok(Progress::backfill());
        }
        let started = self.started;
        let mut progress = Progress::from_now(started);
        let history = EndedFilter {
            from: None,
            to: Some(Timestamp(started.0 + 1)),
            after: Some(progress.place()),
            limit: SENT_MAX,
        };
        let history = self.read(move |store| store.ended_turns(&history))?;
        let history: Vec<EndedAt> = history.iter().map(|ended| ended.place).collect();
        // Only this process remembers them: the next server, if it starts within seconds, sends
        // them.
        progress.mark_sent(&history, started);
        progress.restart_round();
        self.store(progress.place())?;
        Ok(progress)
    }

    fn send(&mut self, progress: &mut Progress, timeout: Duration) -> Result<Next, StoreError> {
        let now = clock::moment();
        let elapsed_ms = now.up.ms.saturating_sub(self.clock_read_ms);
        self.clock_read_ms = now.up.ms;
        if progress.observe_clock(now.wall, elapsed_ms) {
            log::info!(
                target: "greenroom::otlp",
                "the clock was set back; the last spans may be sent twice"
            );
        }
        let filter = EndedFilter {
            from: None,
            to: progress.read_before(now.wall),
            after: Some(progress.cursor(now.wall)),
            limit: SPANS_MAX,
        };
        let page = self.read(move |store| store.ended_turns(&filter))?;
        let places: Vec<EndedAt> = page.iter().map(|ended| ended.place).collect();
        if places.is_empty() {
            progress.restart_round();
            return Ok(Next::Idle);
        }
        let new = page.into_iter().filter(|ended| progress.is_new(ended.place));
        let new: Vec<_> = new.collect();
        let spans = self.read(move |store| {
            let span = |ended| match span::read(store, ended) {
                // An unreadable row of one group does not stop the spans of other groups.
                Err(err) if err.is_of_one_group() => None,
                read => read.transpose(),
            };
            new.iter().filter_map(span).collect()
        })?;
        if let Some(wait) = self.export(spans, timeout) {
            progress.restart_round();
            return Ok(Next::Wait(wait));
        }
        progress.mark_sent(&places, now.wall);
        self.store(progress.place())?;
        Ok(Next::More)
    }

    /// Sends a batch; returns how long to wait if it must be retried.
    fn export(&mut self, spans: Vec<Span>, timeout: Duration) -> Option<Duration> {
        const SCOPE: Scope = Scope { name: "greenroom", version: env!("CARGO_PKG_VERSION") };
        let count = spans.len() as u64;
        if count == 0 {
            return None;
        }
        let request = Request::new(&self.resource, &SCOPE, &spans);
        let body = serde_json::to_vec(&request).unwrap_or_default();
        match self.collector.send(&body, timeout) {
            ExportResult::Accepted { rejected, message } => {
                self.mark_up();
                // The collector's count may be wrong.
                let rejected = rejected.min(count);
                self.totals.add(SpanResult::Sent, count - rejected);
                self.totals.add(SpanResult::Rejected, rejected);
                if rejected != 0 {
                    log::error!(
                        target: "greenroom::otlp", rejected, spans = count, said = message;
                        "the collector rejected spans; they are dropped"
                    );
                }
            }
            ExportResult::Refused { status, message } => self.drop_batch(count, status, &message),
            ExportResult::Retryable { status: Some(status), message, .. }
                if self.is_permanent(status) =>
            {
                self.drop_batch(count, status, &message);
            }
            ExportResult::Retryable { status, message, retry_after } => {
                self.mark_down(status, &message);
                self.backoff.failed();
                return Some(self.backoff.wait(retry_after));
            }
        }
        None
    }

    /// Whether the export gives up on a batch. OTLP lists 429, 502, 503 and 504 as retryable. Other
    /// server errors may be transient too, and are retried a few times; a permanent one must not
    /// block the following batches.
    fn is_permanent(&mut self, status: u16) -> bool {
        if !matches!(status, 408 | 429 | 502..=504) {
            self.unlisted_errors += 1;
        }
        UNLISTED_ERRORS_MAX <= self.unlisted_errors
    }

    fn drop_batch(&mut self, count: u64, status: u16, message: &str) {
        self.mark_up();
        self.totals.add(SpanResult::Refused, count);
        log::error!(
            target: "greenroom::otlp",
            status, spans = count, refused = self.totals.of(SpanResult::Refused), said = message;
            "the collector refused a batch of spans; it is dropped"
        );
    }

    fn mark_down(&mut self, status: Option<u16>, message: &str) {
        if self.down_since.is_none() {
            self.down_since = Some(Instant::now());
            log::warn!(
                target: "greenroom::otlp",
                status:% = status.map_or_else(|| "none".into(), |status| status.to_string()),
                err = message;
                "the collector takes no spans; they wait in the database"
            );
        }
    }

    fn mark_up(&mut self) {
        self.backoff.reset();
        self.unlisted_errors = 0;
        if let Some(since) = self.down_since.take() {
            log::info!(
                target: "greenroom::otlp", down_ms = since.elapsed().as_millis();
                "the collector takes spans again"
            );
        }
    }

    fn store(&mut self, place: EndedAt) -> Result<(), StoreError> {
        if self.stored != Some(place) {
            let put = self.db.write(move |store| store.put_exported(NAME, place));
            self.runtime.block_on(put)?;
            self.stored = Some(place);
        }
        Ok(())
    }

    fn read<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&dyn ReadStore) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, StoreError> {
        self.runtime.block_on(self.db.read(ask))
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
