//! All that somebody who joins late needs, in one consistent cut.

use actix_web::{
    HttpResponse,
    web::{Data, Path},
};
use greenroom_core::Usage;
use serde::Serialize;

use super::{Worker, error::ApiError, permissions::Permission, segments::Segment, view};

/// The cut. Its group's `last_seq` is where to go on reading frames or events.
#[derive(Serialize)]
struct Snapshot {
    last_seq: u64,
    segments: Vec<Segment>,
    current_task: Option<view::Task>,
    permissions: Vec<Permission>,
    compaction: Option<view::Compacting>,
    usage: Option<Usage>,
    group: view::Group,
}

/// Reads the snapshot of a group.
pub async fn get(worker: Data<Worker>, group: Path<String>) -> Result<HttpResponse, ApiError> {
    let no = worker.find(&group, false).await?.no;
    let ledger = &worker.edge.shared.ledger;
    let found = ledger.read(move |archive| archive.snapshot(no)).await?;
    let found = found.ok_or(ApiError::NoSuchGroup)?;
    let last_seq = found.standing.head.last_seq;
    let group = worker.group(no, found.standing);
    Ok(HttpResponse::Ok().json(Snapshot {
        last_seq,
        segments: found.segments.into_iter().map(Segment::from).collect(),
        current_task: found.current_task.map(|task| worker.shown(task, false)),
        permissions: found.permissions.into_iter().map(Permission::from).collect(),
        compaction: group.compaction,
        usage: group.usage.clone(),
        group,
    }))
}
