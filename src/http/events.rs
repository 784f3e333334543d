//! Server-Sent Events: a group's frames, and the status changes of all groups.
//!
//! A stream reads from disk at its reader's pace and goes over to the shared tail once it has
//! caught up; a reader that stops reading costs nothing but its socket.

use std::{sync::Arc, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::CACHE_CONTROL,
    web::{Bytes, Data, Path, Query},
};
use futures_util::stream;
use greenroom_actors::{
    clock,
    feed::{Chunk, Next, Tail},
    group::Change,
    storage::{FrameFilter, Ledger, StoreError},
    supervisor::{Changes, ChangesAfter, GroupHandle},
};
use serde::Deserialize;
use tokio::sync::{broadcast::error::RecvError, watch};

use super::{
    Phase, Worker,
    error::ApiError,
    metrics::{Stream, Subscriber},
    view,
};

/// From one sign of life to the next.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// One read from disk.
const READ_BYTES: usize = 256 << 10;

/// `?after=`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    after: Option<u64>,
}

/// Streams a group's frames: those after the cursor from disk, then live.
pub async fn group(
    worker: Data<Worker>,
    request: HttpRequest,
    group: Path<String>,
    Query(after): Query<After>,
) -> Result<HttpResponse, ApiError> {
    let cursor = cursor(&request, after)?;
    let group = worker.find(&group, false).await?;
    let no = group.no;
    let ledger = worker.edge.shared.ledger.clone();
    let read = worker.read_of(no, move |archive, standing| {
        Ok((standing.head.last_seq, archive.earliest_seq(no)?))
    });
    let (last_seq, earliest) = read.await?;
    let feed = group.feed.subscribe();
    let phase = worker.edge.phase.clone();
    // A cursor from beyond the end is of another group of this name, or of a lost future: all that
    // there is comes again, and `greenroom/gap` says so.
    let lost = cursor > last_seq;
    let gap = (lost || cursor + 1 < earliest).then_some(earliest);
    let cursor = gap.map_or(cursor, |earliest| earliest - 1);
    let on_disk = true;
    let open = worker.edge.meters.subscribe(Stream::Group);
    let reader = FrameReader {
        group,
        ledger,
        feed,
        phase,
        cursor,
        gap,
        on_disk,
        synced: false,
        _open: open,
    };
    Ok(event_stream(stream::unfold(reader, |mut reader| async {
        reader.next().await.map(|events| (Ok(events), reader))
    })))
}

/// `Last-Event-ID` wins over `?after=`; without either, from the beginning.
fn cursor(request: &HttpRequest, After { after }: After) -> Result<u64, ApiError> {
    match request.headers().get("last-event-id") {
        Some(id) => {
            id.to_str().ok().and_then(|id| id.trim().parse().ok()).ok_or(ApiError::InvalidHeader(
                "Last-Event-ID is the id of an event of this stream",
            ))
        }
        None => Ok(after.unwrap_or_default()),
    }
}

fn event_stream(
    events: impl stream::Stream<Item = Result<Bytes, actix_web::Error>> + 'static,
) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events)
}

struct FrameReader {
    group: GroupHandle,
    ledger: Ledger,
    feed: watch::Receiver<Arc<Tail>>,
    phase: watch::Receiver<Phase>,
    /// The last frame sent.
    cursor: u64,
    /// The frame with which the stream goes on, if that is not the one behind the reader's own
    /// cursor and it was not told so yet.
    gap: Option<u64>,
    /// Whether there may be frames on disk that neither cursor nor feed know of.
    on_disk: bool,
    /// Whether the seam between replay and live was marked.
    synced: bool,
    _open: Subscriber,
}

/// What is on disk after a cursor.
enum Found {
    Frames(Chunk),
    /// No frame that can be read.
    Nothing {
        /// The earliest frame that is kept.
        earliest: u64,
        /// The group's last frame.
        last_seq: u64,
    },
    NoGroup,
}

impl FrameReader {
    /// What to send next; `None` when the server closes.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(earliest) = self.gap.take() {
                return Some(gap(earliest).into());
            }
            if *self.phase.borrow() == Phase::Closing {
                return None;
            }
            let (next, published) = {
                let tail = self.feed.borrow_and_update();
                (tail.after(self.cursor), tail.last_seq)
            };
            let next = match next {
                Next::Gone => return None,
                Next::Chunk(chunk) => {
                    self.cursor = chunk.last_seq;
                    return Some(chunk.events);
                }
                next => next,
            };
            if self.on_disk || matches!(next, Next::Disk) {
                // What was published is on disk, unless the group was purged.
                match self.read().await {
                    Ok(Found::Frames(chunk)) if chunk.first_seq == self.cursor + 1 => {
                        self.cursor = chunk.last_seq;
                        return Some(chunk.events);
                    }
                    // Retention was faster than the reader, or rows cannot be read.
                    Ok(Found::Frames(Chunk { first_seq: earliest, .. })) => self.skip_to(earliest),
                    Ok(Found::Nothing { earliest, last_seq }) => {
                        let last_seq = last_seq.max(published);
                        if self.cursor + 1 < earliest {
                            self.skip_to(earliest);
                        } else if self.cursor < last_seq {
                            // None of the log's last frames can be read.
                            self.skip_to(last_seq + 1);
                        } else {
                            self.on_disk = false;
                        }
                    }
                    Ok(Found::NoGroup) => return None,
                    // The reader comes back with its cursor.
                    Err(()) => return None,
                }
                continue;
            }
            if !self.synced {
                self.synced = true;
                let data = format!("{{\"last_seq\":{}}}", self.cursor);
                return Some(format!("event: greenroom/synced\ndata: {data}\n\n").into());
            }
            tokio::select! {
                changed = self.feed.changed() => changed.ok()?,
                _ = self.phase.changed() => {}
                () = tokio::time::sleep(KEEP_ALIVE) => return Some(Bytes::from_static(b": \n\n")),
            }
        }
    }

    /// Continues with the frame `earliest`, and says that what is before it does not come.
    fn skip_to(&mut self, earliest: u64) {
        (self.cursor, self.gap) = (earliest - 1, Some(earliest));
    }

    /// What is on disk after the cursor.
    async fn read(&self) -> Result<Found, ()> {
        let (no, id, cursor) = (self.group.no, self.group.id.clone(), self.cursor);
        let filter = FrameFilter {
            after: cursor,
            frames_max: u64::MAX,
            bytes_max: READ_BYTES,
            ..FrameFilter::default()
        };
        let read = self.ledger.read(move |archive| {
            let blocks = archive.blocks(no, &filter)?;
            let chunk = Chunk::encode(&id, &blocks, cursor);
            if let Some(chunk) = chunk.filter(|chunk| chunk.last_seq > cursor) {
                return Ok(Found::Frames(chunk));
            }
            let last_seq = match archive.group(no) {
                Ok(Some(standing)) => standing.head.last_seq,
                Ok(None) => return Ok(Found::NoGroup),
                // It exists. Only the feed knows how far its log goes.
                Err(StoreError::Unreadable(_)) => 0,
                Err(err) => return Err(err),
            };
            Ok(Found::Nothing { earliest: archive.earliest_seq(no)?, last_seq })
        });
        read.await
            .map_err(|err| log::log!(err.level(), err:%; "event stream ended: frames unreadable"))
    }
}

/// Streams the status changes of all groups. Those since the cursor come first as far as they are
/// kept; if some are missing, or if no change has had the cursor's number, `greenroom/gap` says so.
pub async fn all(
    worker: Data<Worker>,
    request: HttpRequest,
    Query(after): Query<After>,
) -> Result<HttpResponse, ApiError> {
    let cursor = cursor(&request, after)?;
    let changes = worker.edge.supervisor.send(ChangesAfter(cursor)).await?;
    let mut first = changes.gap.map(gap).unwrap_or_default();
    for change in &changes.past {
        first.extend(event(change));
    }
    first.extend_from_slice(b"event: greenroom/synced\ndata: {}\n\n");
    let phase = worker.edge.phase.clone();
    let open = worker.edge.meters.subscribe(Stream::All);
    let reader = ChangeReader { first: Some(first.into()), changes, phase, _open: open };
    Ok(event_stream(stream::unfold(reader, |mut reader| async {
        reader.next().await.map(|events| (Ok(events), reader))
    })))
}

struct ChangeReader {
    first: Option<Bytes>,
    changes: Changes,
    phase: watch::Receiver<Phase>,
    _open: Subscriber,
}

impl ChangeReader {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let mut lagged = false;
        loop {
            if *self.phase.borrow() == Phase::Closing {
                return None;
            }
            tokio::select! {
                change = self.changes.coming.recv() => match change {
                    Ok(change) => {
                        let mut events = if lagged { gap(change.id) } else { Vec::new() };
                        events.extend(event(&change));
                        return Some(events.into());
                    }
                    // The next change is the earliest that is kept for this reader.
                    Err(RecvError::Lagged(_)) => lagged = true,
                    Err(RecvError::Closed) => return None,
                },
                _ = self.phase.changed() => {}
                () = tokio::time::sleep(KEEP_ALIVE) => return Some(Bytes::from_static(b": \n\n")),
            }
        }
    }
}

fn gap(earliest: u64) -> Vec<u8> {
    format!("event: greenroom/gap\ndata: {{\"earliest\":{earliest}}}\n\n").into_bytes()
}

fn event(change: &Change) -> Vec<u8> {
    let data = serde_json::json!({
        "at": clock::rfc3339(change.at),
        "group": change.group,
        "from": view::status(change.from, Phase::Serving),
        "status": view::status(change.to, Phase::Serving),
        "blocked_by": change.blocked_by,
        "queue_length": change.queue_length,
        "current_task": change.current_task,
    });
    format!("id: {}\nevent: greenroom/status\ndata: {data}\n\n", change.id).into_bytes()
}
