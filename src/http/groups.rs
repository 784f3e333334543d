//! Groups: creates, changes, reads, pauses, resumes, stops, archives and purges them.

use std::path::Path as FilePath;

use actix_web::{
    HttpResponse,
    web::{Data, Path},
};
use greenroom_actors::{
    group::{Archive, Configure, Control, GroupError},
    storage::{GroupNo, Listed},
    working_dir,
};
use greenroom_core::SettingsPatch;
use serde::Deserialize;

use super::{
    body::{Body, Empty},
    error::ApiError,
    page::{Page, page_limit},
    query::{NoParameters, Query},
    state::AppState,
    view,
};

/// Selects groups.
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

/// Lists groups in the order in which they were created.
pub async fn list(
    state: Data<AppState>,
    Query(query): Query<GroupQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = page_limit(query.limit)?;
    let wanted = query.status.as_deref().map(view::status_word).transpose()?;
    let after = query.cursor.unwrap_or_default();
    let health = state.health().clone();
    state.until_settled(None).await;
    let groups = state.read_page(move |store| match wanted {
        Some(view::DRAINING) => store.groups(None, after, limit + 1),
        Some(view::BROKEN) => {
            let broken = health.broken_groups().into_iter().filter(|no| *no > after);
            let mut found = Vec::new();
            for no in broken {
                // A group that is purged, or whose id cannot be read, is in no list: then the
                // database returns the next group.
                let listed = store.groups(None, no.saturating_sub(1), 1)?;
                found.extend(listed.into_iter().filter(|listed| listed.no == no));
                if limit < found.len() || store.is_cut() {
                    break;
                }
            }
            Ok(found)
        }
        status => store.groups(status, after, limit + 1),
    });
    let page = Page::new(groups.await?, limit, |listed: &Listed| listed.no.to_string());
    let mut page = page.map(|listed| view::Group::listed(&state, listed));
    // The stored status of a broken group does not count, nor any in a server that shuts down.
    page.items.retain(|group| wanted.is_none_or(|wanted| group.status() == wanted));
    Ok(HttpResponse::Ok().json(page))
}

/// Returns a group.
pub async fn get(
    state: Data<AppState>,
    group: Path<String>,
    _: Query<NoParameters>,
) -> Result<HttpResponse, ApiError> {
    let no = state.look_up_any(&group).await?.no;
    state.until_settled(Some(no)).await;
    Ok(HttpResponse::Ok().json(show(&state, no).await?))
}

async fn show(state: &AppState, no: GroupNo) -> Result<view::Group, ApiError> {
    let listed = state.read(move |store| store.groups(None, no.saturating_sub(1), 1));
    let listed = listed.await?.pop().filter(|listed| listed.no == no);
    Ok(view::Group::listed(state, listed.ok_or(ApiError::NoSuchGroup)?))
}

/// Creates a group, changes it, or revives an archived one.
pub async fn put(
    state: Data<AppState>,
    group: Path<String>,
    _: Query<NoParameters>,
    body: Body<SettingsPatch>,
) -> Result<HttpResponse, ApiError> {
    state.check_accepts_work()?;
    let patch = checked(&state, &group, body.value).await?;
    let group = state.owner_or_create(&group).await?;
    let created = state.answer_to(group.addr.send(Configure(patch))).await???;
    let mut response = if created { HttpResponse::Created() } else { HttpResponse::Ok() };
    Ok(response.json(show(&state, group.no).await?))
}

/// Checks a change before its group is created: a refused one creates none. Makes `cwd` canonical.
async fn checked(
    state: &AppState,
    group: &str,
    patch: SettingsPatch,
) -> Result<SettingsPatch, ApiError> {
    if let Some(agent) = &patch.agent {
        state.shared.profile(agent)?;
    }
    if patch.auto_compact.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
        return Err(ApiError::InvalidBody {
            field: Some("auto_compact".into()),
            detail: "auto_compact must be a share of the context window, from 0 to 1".into(),
        });
    }
    let cwd = match &patch.cwd {
        None => None,
        Some(cwd) => Some(check_cwd(state, group, patch.agent.as_deref(), cwd).await?),
    };
    Ok(SettingsPatch { cwd, ..patch })
}

/// Returns the directory's canonical path, if the group's agent may work there (C12).
async fn check_cwd(
    state: &AppState,
    group: &str,
    agent: Option<&str>,
    cwd: &str,
) -> Result<String, ApiError> {
    let shared = &state.shared;
    let known = match state.look_up_any(group).await {
        Ok(known) => Some(known.no),
        Err(ApiError::NoSuchGroup) => None,
        Err(err) => return Err(err),
    };
    let agent = match (agent, known) {
        (Some(agent), _) => agent.to_owned(),
        (None, None) => shared.defaults.agent.clone(),
        (None, Some(no)) => {
            let summary = state.read(move |store| store.group(no)).await?;
            summary.map_or(shared.defaults.agent.clone(), |group| group.state.settings.agent)
        }
    };
    let profile = shared.profile(&agent)?.clone();
    if !FilePath::new(cwd).is_absolute() {
        return Err(GroupError::InvalidCwd("cwd must be an absolute path".into()).into());
    }
    let reserved = shared.work_dir.reserved(known);
    let real = working_dir::check(cwd.into(), profile, reserved).await;
    let real = real.map_err(|err| GroupError::InvalidCwd(err.to_string()))?;
    let real = real.into_os_string().into_string();
    Ok(real.map_err(|_| GroupError::InvalidCwd("cwd must be UTF-8".into()))?)
}

/// Pauses a group: it starts no further task; the running one continues.
pub async fn pause(
    state: Data<AppState>,
    group: Path<String>,
    _: Query<NoParameters>,
    _: Body<Empty>,
) -> Result<HttpResponse, ApiError> {
    control(&state, &group, Control::Pause).await
}

/// Resumes a group that is paused, on hold or degraded.
pub async fn resume(
    state: Data<AppState>,
    group: Path<String>,
    _: Query<NoParameters>,
    _: Body<Empty>,
) -> Result<HttpResponse, ApiError> {
    control(&state, &group, Control::Resume).await
}

/// Ends the group's run now and cancels the task in it; waiting tasks run in the next run.
pub async fn stop(
    state: Data<AppState>,
    group: Path<String>,
    _: Query<NoParameters>,
    _: Body<Empty>,
) -> Result<HttpResponse, ApiError> {
    control(&state, &group, Control::Stop).await
}

async fn control(
    state: &AppState,
    group: &str,
    control: Control,
) -> Result<HttpResponse, ApiError> {
    let group = state.owner(group).await?;
    state.check_can_write()?;
    show(state, group.no).await?;
    state.answer_to(group.addr.send(control)).await???;
    Ok(HttpResponse::Accepted().json(show(state, group.no).await?))
}

/// Cancels every task, ends the agent, and archives the group or, with `purge`, deletes it.
pub async fn delete(
    state: Data<AppState>,
    group: Path<String>,
    Query(Purge { purge }): Query<Purge>,
) -> Result<HttpResponse, ApiError> {
    let group = state.owner(&group).await?;
    state.check_can_write()?;
    let body = show(&state, group.no).await?;
    state.answer_to(group.addr.send(Archive { purge })).await???;
    // A purged group may be gone already.
    let body = if purge { body } else { show(&state, group.no).await? };
    Ok(HttpResponse::Accepted().json(body))
}
