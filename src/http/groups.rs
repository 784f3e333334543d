//! Groups: making, changing, reading, deleting.

use std::path::Path as FilePath;

use actix_web::{
    HttpResponse,
    web::{Data, Path, Query},
};
use greenroom_actors::{
    group::{Archive, Configure, Control, Patch},
    storage::{GroupNo, Listed, Standing},
};
use greenroom_core::{Json, OnInterrupt, PermissionPolicy};
use serde::Deserialize;

use super::{Worker, body::Body, error::ApiError, frames::page_limit, view};

/// Which groups.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupQuery {
    status: Option<String>,
    limit: Option<usize>,
    cursor: Option<u32>,
}

/// `?purge=`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Purge {
    #[serde(default)]
    purge: bool,
}

/// A group to make, or to change.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRequest {
    agent: Option<String>,
    cwd: Option<String>,
    title: Option<String>,
    auto_compact: Option<f64>,
    permission_policy: Option<PermissionPolicy>,
    on_interrupt: Option<OnInterrupt>,
    metadata: Option<Json>,
}

/// Lists groups in the order in which they were made.
pub async fn list(
    worker: Data<Worker>,
    Query(query): Query<GroupQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let by_status = query.status.as_deref().is_some_and(|status| status != view::BROKEN);
    let after = query.cursor.unwrap_or_default();
    let health = worker.edge.shared.ledger.health.clone();
    let groups = worker.edge.shared.ledger.read(move |archive| match query.status.as_deref() {
        Some(view::BROKEN) => {
            let broken = health.broken_groups().into_iter().filter(|no| *no > after);
            let mut found = Vec::new();
            for no in broken {
                // One that is purged, or whose name cannot be read, is in no list: then the answer
                // is about the next group.
                let listed = archive.groups(None, no.saturating_sub(1), 1)?;
                found.extend(listed.into_iter().filter(|listed| listed.no == no));
                if limit < found.len() {
                    break;
                }
            }
            Ok(found)
        }
        status => archive.groups(status, after, limit + 1),
    });
    let page = view::Page::cut(groups.await?, limit, |listed: &Listed| listed.no.to_string());
    let items = page.items.into_iter().map(|listed| match listed.standing {
        Ok(standing) => worker.group(listed.no, *standing),
        Err(row) => view::Group::unreadable(listed.id, row.what),
    });
    // Whatever status its row has.
    let items = items.filter(|group| !(by_status && group.is_broken())).collect();
    Ok(HttpResponse::Ok().json(view::Page { items, next_cursor: page.next_cursor }))
}

/// One group.
pub async fn get(worker: Data<Worker>, group: Path<String>) -> Result<HttpResponse, ApiError> {
    let no = worker.find(&group, false).await?.no;
    Ok(HttpResponse::Ok().json(show(&worker, no).await?))
}

async fn show(worker: &Worker, no: GroupNo) -> Result<view::Group, ApiError> {
    let listed = worker
        .edge
        .shared
        .ledger
        .read(move |archive| archive.groups(None, no.saturating_sub(1), 1));
    let listed = listed.await?.pop().filter(|listed| listed.no == no);
    let Listed { id, standing, .. } = listed.ok_or(ApiError::NoSuchGroup)?;
    Ok(match standing {
        Ok(standing) => worker.group(no, *standing),
        Err(row) => view::Group::unreadable(id, row.what),
    })
}

impl Worker {
    /// A group as the contract shows it.
    pub fn group(&self, no: GroupNo, mut standing: Standing) -> view::Group {
        standing.blocked_by = self.blocked_by(standing.blocked_by);
        let broken = self.edge.shared.ledger.health.broken(no);
        view::Group::new(standing, *self.edge.phase.borrow(), &self.edge.shared.own_dir(no), broken)
    }
}

/// Makes a group, changes it, or revives it.
pub async fn put(
    worker: Data<Worker>,
    group: Path<String>,
    body: Body<GroupRequest>,
) -> Result<HttpResponse, ApiError> {
    worker.take_work()?;
    let patch = patch(&worker, &group, body.value).await?;
    let group = worker.find(&group, true).await?;
    let created = group.addr.send(Configure(patch)).await??;
    let mut answer = if created { HttpResponse::Created() } else { HttpResponse::Ok() };
    Ok(answer.json(show(&worker, group.no).await?))
}

async fn patch(worker: &Worker, group: &str, request: GroupRequest) -> Result<Patch, ApiError> {
    if let Some(agent) = &request.agent
        && !worker.edge.shared.profiles.contains_key(agent)
    {
        return Err(ApiError::UnknownAgent(agent.clone()));
    }
    let invalid = |field: &str, detail: &str| ApiError::InvalidBody {
        field: Some(field.into()),
        detail: format!("{field} {detail}"),
    };
    if request.auto_compact.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
        return Err(invalid("auto_compact", "is a share of the context window, from 0 to 1"));
    }
    let cwd = match request.cwd {
        None => None,
        Some(cwd) => Some(check_cwd(worker, group, request.agent.as_deref(), &cwd).await?),
    };
    Ok(Patch {
        agent: request.agent,
        cwd,
        title: request.title,
        auto_compact: request.auto_compact,
        permission_policy: request.permission_policy,
        on_interrupt: request.on_interrupt,
        metadata: request.metadata,
    })
}

/// The directory's canonical path, if the group's agent may work there (RELIABILITY C12).
async fn check_cwd(
    worker: &Worker,
    group: &str,
    agent: Option<&str>,
    cwd: &str,
) -> Result<String, ApiError> {
    let shared = &worker.edge.shared;
    let agent = match agent {
        Some(agent) => agent.to_owned(),
        None => match worker.find(group, false).await {
            Ok(handle) => {
                let standing = shared.ledger.read(move |archive| archive.group(handle.no)).await?;
                standing.map_or(shared.default_agent.clone(), |group| group.head.settings.agent)
            }
            Err(ApiError::NoSuchGroup) => shared.default_agent.clone(),
            Err(err) => return Err(err),
        },
    };
    let Some(profile) = shared.profiles.get(&agent) else {
        return Err(ApiError::UnknownAgent(agent));
    };
    if !FilePath::new(cwd).is_absolute() {
        return Err(ApiError::InvalidCwd("cwd is an absolute path".into()));
    }
    let real = profile.check_cwd_apart(cwd.into()).await;
    let real = real.map_err(|err| ApiError::InvalidCwd(err.to_string()))?;
    let real = real.into_os_string().into_string();
    real.map_err(|_| ApiError::InvalidCwd("cwd is not UTF-8".into()))
}

/// Lets the group claim no more work; what runs goes on.
pub async fn pause(worker: Data<Worker>, group: Path<String>) -> Result<HttpResponse, ApiError> {
    control(&worker, &group, Control::Pause).await
}

/// Lets the group go on.
pub async fn resume(worker: Data<Worker>, group: Path<String>) -> Result<HttpResponse, ApiError> {
    control(&worker, &group, Control::Resume).await
}

/// Ends the group's run now; the task in it is cancelled, those that wait go on in the next run.
pub async fn stop(worker: Data<Worker>, group: Path<String>) -> Result<HttpResponse, ApiError> {
    control(&worker, &group, Control::Stop).await
}

async fn control(worker: &Worker, group: &str, control: Control) -> Result<HttpResponse, ApiError> {
    let group = worker.find(group, false).await?;
    worker.can_store()?;
    show(worker, group.no).await?;
    group.addr.send(control).await??;
    Ok(HttpResponse::Accepted().json(show(worker, group.no).await?))
}

/// Calls everything off, ends the agent, and keeps the group readable or, with `purge`, deletes it.
pub async fn delete(
    worker: Data<Worker>,
    group: Path<String>,
    Query(Purge { purge }): Query<Purge>,
) -> Result<HttpResponse, ApiError> {
    let group = worker.find(&group, false).await?;
    worker.can_store()?;
    let body = show(&worker, group.no).await?;
    group.addr.send(Archive { purge }).await??;
    // A purged group may be gone already.
    let body = if purge { body } else { show(&worker, group.no).await? };
    Ok(HttpResponse::Accepted().json(body))
}
