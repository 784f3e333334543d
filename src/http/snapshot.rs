//! Snapshot: all that a client needs to attach to a group, read in one transaction.

use actix_web::{
    HttpResponse,
    web::{Data, Path},
};
use greenroom_core::Usage;
use serde::Serialize;

use super::{
    error::ApiError,
    permissions::Permission,
    query::{NoParameters, Query},
    segments::Segment,
    state::AppState,
    view::{CompactionSummary, Group, Task},
};

/// The snapshot. Its `last_seq` is the cursor from which to read frames or events.
#[derive(Serialize)]
struct Snapshot {
    last_seq: u64,
    segments: Vec<Segment>,
    current_task: Option<Task>,
    /// The cursor of the next page of segments; `None` if all are here.
    segments_cursor: Option<String>,
    permissions: Vec<Permission>,
    /// The cursor of the next page of pending permissions; `None` if all are here.
    permissions_cursor: Option<String>,
    compaction: Option<CompactionSummary>,
    usage: Option<Usage>,
    group: Group,
}

/// Reads the snapshot of a group.
pub async fn get(
    state: Data<AppState>,
    group: Path<String>,
    _: Query<NoParameters>,
) -> Result<HttpResponse, ApiError> {
    let no = state.look_up(&group).await?.no;
    let found = state.read_page(move |store| store.snapshot(no)).await?;
    let found = found.found.ok_or(ApiError::NoSuchGroup)?;
    let last_seq = found.summary.state.last_seq;
    let group = Group::new(&state, no, found.summary);
    Ok(HttpResponse::Ok().json(Snapshot {
        last_seq,
        segments_cursor: found.segments_after.map(|segment| segment.to_string()),
        permissions_cursor: found.permissions_after.map(|permission| permission.to_string()),
        segments: found.segments.into_iter().map(Segment::from).collect(),
        current_task: found.current_task.map(|task| Task::new(&state, task, false)),
        permissions: found.permissions.into_iter().map(Permission::from).collect(),
        compaction: group.compaction,
        usage: group.usage.clone(),
        group,
    }))
}
