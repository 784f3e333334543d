//! Events: streams a group's frames, and the status changes of all groups, as Server-Sent Events.
//!
//! A stream reads from disk at its client's pace and switches to the shared tail once it has caught
//! up; a client that stops reading costs nothing but its socket.

use std::{sync::Arc, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Bytes, Data, Path},
};
use futures_util::stream;
use greenroom_actors::{
    changes::Change,
    clock,
    quota::Share,
    storage::{Db, FrameFilter, StoreError},
    supervisor::{Changes, ChangesAfter, KnownGroup},
    transcript::feed::{Chunk, Next, Tail},
};
use serde::Deserialize;
use tokio::sync::{broadcast::error::RecvError, watch};

use super::{
    error::ApiError,
    meters::{Stream, Subscriber},
    query::Query,
    state::{AppState, Phase},
    view,
};

/// The time after which a silent stream sends a comment.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The most bytes of one read from disk.
const READ_BYTES_MAX: usize = 256 << 10;

/// `?after=`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    after: Option<u64>,
}

/// Streams a group's frames: those after the cursor from disk, then live.
pub async fn group(
    state: Data<AppState>,
    request: HttpRequest,
    group: Path<String>,
    Query(after): Query<After>,
) -> Result<HttpResponse, ApiError> {
    let cursor = cursor(&request, after)?;
    let group = state.look_up_any(&group).await?;
    let no = group.no;
    // A client that joins late gets the end of what an earlier server left with its beginning.
    state.until_settled(Some(no)).await;
    let db = state.shared.db.clone();
    let place = state.shared.quotas.streams.take(1)?;
    let read = state.read_group(no, move |store, summary| {
        Ok((summary.state.last_seq, store.earliest_seq(no)?))
    });
    let (last_seq, earliest) = read.await?;
    let feed = group.feed.subscribe();
    let phase = state.phase.clone();
    // A cursor beyond the end is from another group with this id, or from frames that this database
    // lost: the stream sends `greenroom/gap` and then every frame that there is.
    let is_beyond_end = cursor > last_seq;
    let gap = (is_beyond_end || cursor + 1 < earliest).then_some(earliest);
    let cursor = gap.map_or(cursor, |earliest| earliest - 1);
    let reader = FrameReader {
        group,
        db,
        feed,
        phase,
        cursor,
        gap,
        on_disk: true,
        synced: false,
        _open: (state.meters.subscribe(Stream::Group), place),
    };
    Ok(event_stream(stream::unfold(reader, |mut reader| async {
        reader.next().await.map(|events| (Ok(events), reader))
    })))
}

/// Returns where to begin: `Last-Event-ID`, or else `?after=`, or else the beginning.
fn cursor(request: &HttpRequest, After { after }: After) -> Result<u64, ApiError> {
    let Some(id) = request.headers().get("last-event-id") else {
        return Ok(after.unwrap_or_default());
    };
    let invalid = "Last-Event-ID must be the id of an event of this stream";
    let id = id.to_str().ok().and_then(|id| id.trim().parse().ok());
    id.ok_or(ApiError::InvalidHeader(invalid))
}

fn event_stream(
    events: impl stream::Stream<Item = Result<Bytes, actix_web::Error>> + 'static,
) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events)
}

struct FrameReader {
    group: KnownGroup,
    db: Db,
    feed: watch::Receiver<Arc<Tail>>,
    phase: watch::Receiver<Phase>,
    /// The last frame sent.
    cursor: u64,
    /// The next frame to send, if it does not follow the cursor and the stream has not sent
    /// `greenroom/gap` yet.
    gap: Option<u64>,
    /// Whether there may be frames on disk after the cursor that the feed does not know of.
    on_disk: bool,
    /// Whether the stream has sent `greenroom/synced`, which separates replay from live.
    synced: bool,
    _open: (Subscriber, Share),
}

/// The frames on disk after a cursor.
enum OnDisk {
    Frames(Chunk),
    /// No frame can be read.
    Nothing {
        /// The earliest frame that is kept.
        earliest: u64,
        /// The group's last frame.
        last_seq: u64,
    },
    NoGroup,
}

impl FrameReader {
    /// Returns what to send next; `None` ends the stream.
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
                // Published frames are on disk, unless the group was purged.
                match self.read().await {
                    Ok(OnDisk::Frames(chunk)) if chunk.first_seq == self.cursor + 1 => {
                        self.cursor = chunk.last_seq;
                        return Some(chunk.events);
                    }
                    // Retention deleted frames before they were sent, or rows cannot be read.
                    Ok(OnDisk::Frames(Chunk { first_seq: earliest, .. })) => self.skip_to(earliest),
                    Ok(OnDisk::Nothing { earliest, last_seq }) => {
                        let last_seq = last_seq.max(published);
                        if self.cursor + 1 < earliest {
                            self.skip_to(earliest);
                        } else if self.cursor < last_seq {
                            // The last frames of the log cannot be read.
                            self.skip_to(last_seq + 1);
                        } else {
                            self.on_disk = false;
                        }
                    }
                    Ok(OnDisk::NoGroup) => return None,
                    // The client reconnects with its cursor.
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

    /// Continues with the frame `earliest`, and reports the gap before it.
    fn skip_to(&mut self, earliest: u64) {
        (self.cursor, self.gap) = (earliest - 1, Some(earliest));
    }

    /// Reads the frames on disk after the cursor.
    async fn read(&self) -> Result<OnDisk, ()> {
        let (no, id, cursor) = (self.group.no, self.group.id.clone(), self.cursor);
        let filter = FrameFilter {
            after: cursor,
            frames_max: u64::MAX,
            bytes_max: READ_BYTES_MAX,
            ..FrameFilter::default()
        };
        let read = self.db.read(move |store| {
            let blocks = store.blocks(no, &filter)?;
            let chunk = Chunk::encode(&id, &blocks, cursor);
            if let Some(chunk) = chunk.filter(|chunk| chunk.last_seq > cursor) {
                return Ok(OnDisk::Frames(chunk));
            }
            let last_seq = match store.group(no) {
                Ok(Some(summary)) => summary.state.last_seq,
                Ok(None) => return Ok(OnDisk::NoGroup),
                // The group exists; only the feed knows its last frame.
                Err(StoreError::Unreadable(_)) => 0,
                Err(err) => return Err(err),
            };
            Ok(OnDisk::Nothing { earliest: store.earliest_seq(no)?, last_seq })
        });
        read.await
            .map_err(|err| log::log!(err.level(), err:%; "event stream ended: frames unreadable"))
    }
}

/// Streams the status changes of all groups, beginning with those since the cursor that are kept.
/// If some are missing, or if no change ever had the cursor's number, the stream begins with
/// `greenroom/gap`.
pub async fn all(
    state: Data<AppState>,
    request: HttpRequest,
    Query(after): Query<After>,
) -> Result<HttpResponse, ApiError> {
    let cursor = cursor(&request, after)?;
    let place = state.shared.quotas.streams.take(1)?;
    let changes = state.supervisor.send(ChangesAfter(cursor)).await?;
    let mut first = changes.gap.map(gap).unwrap_or_default();
    for change in &changes.past {
        first.extend(event(change));
    }
    first.extend_from_slice(b"event: greenroom/synced\ndata: {}\n\n");
    let phase = state.phase.clone();
    let open = (state.meters.subscribe(Stream::All), place);
    let reader = ChangeReader { first: Some(first.into()), changes, phase, _open: open };
    Ok(event_stream(stream::unfold(reader, |mut reader| async {
        reader.next().await.map(|events| (Ok(events), reader))
    })))
}

struct ChangeReader {
    first: Option<Bytes>,
    changes: Changes,
    phase: watch::Receiver<Phase>,
    _open: (Subscriber, Share),
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
                change = self.changes.live.recv() => match change {
                    Ok(change) => {
                        let mut events = if lagged { gap(change.id) } else { Vec::new() };
                        events.extend(event(&change));
                        return Some(events.into());
                    }
                    // The next change is the earliest that is kept for this client.
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
