//! Digests: of a group, of a run, and of all groups over a stretch of time.
//!
//! Owns which rows are read, and has a stale digest rebuilt by its group. Core merges digests.

mod summary;

use std::{collections::BTreeSet, sync::Arc};

use actix_web::{
    HttpResponse,
    web::{Data, Path},
};
use greenroom_actors::{
    clock,
    group::{EnsureLoaded, RebuildDigests},
    storage::{EndedFilter, GroupNo, ReadStore, RunDigestRow, StoreError},
};
use greenroom_core::{Digest, GroupId, RunId, Timestamp, digest::RunDigest};
use serde::Deserialize;

use self::summary::Merged;
pub use self::summary::{Costs, Summary};
use super::{
    error::ApiError,
    query::{NoParameters, Query},
    state::AppState,
};

/// Turns in one read when many are merged: other requests can read in between.
const TURNS_A_READ: usize = 1000;
/// Groups in one read when many are merged.
const GROUPS_A_READ: usize = 200;

/// Selects turns of all groups; every turn if no field is given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    from: Option<String>,
    to: Option<String>,
    agent: Option<String>,
}

/// The stored digest of a group or of a run.
enum Lookup<T> {
    Current(Box<T>),
    /// Absent, or of another version's format; this group rebuilds it when it is loaded.
    Stale(GroupId),
    /// There is no such group or run.
    NoOwner,
}

/// Returns the digest of a group.
pub async fn group(
    state: Data<AppState>,
    group: Path<String>,
    _: Query<NoParameters>,
) -> Result<HttpResponse, ApiError> {
    let group = state.look_up_any(&group).await?;
    state.until_settled(Some(group.no)).await;
    let digest = read_or_rebuild(&state, group.no).await?.ok_or(ApiError::NoSuchGroup)?;
    Ok(HttpResponse::Ok().json(Summary::of_group(group.id, digest)))
}

/// Returns the digest of a run.
pub async fn run(
    state: Data<AppState>,
    run: Path<String>,
    _: Query<NoParameters>,
) -> Result<HttpResponse, ApiError> {
    let run: RunId = run.parse().map_err(|_| ApiError::NoSuchRun)?;
    let found = current(&state, move |store| look_up_run(store, run)).await?;
    let (group, digest) = *found.ok_or(ApiError::NoSuchRun)?;
    Ok(HttpResponse::Ok().json(Summary::of_run(group, digest)))
}

/// Returns the digest of all groups, or of those of their tasks that ended in a time and under an
/// agent.
pub async fn all(
    state: Data<AppState>,
    Query(window): Query<Window>,
) -> Result<HttpResponse, ApiError> {
    let from = time("from", window.from.as_deref())?;
    let to = time("to", window.to.as_deref())?;
    if from.zip(to).is_some_and(|(from, to)| from > to) {
        return Err(ApiError::InvalidQuery("from must not be after to".into()));
    }
    let agent = window.agent;
    let (groups, digest) = if from.is_none() && to.is_none() && agent.is_none() {
        merge_groups(&state).await?
    } else {
        if !state.cache.digests_current.get() {
            // Turns of a group that has no digests yet would be missing.
            merge_groups(&state).await?;
        }
        let limit = TURNS_A_READ;
        let filter = EndedFilter { from, to, after: None, limit };
        merge_turns(&state, filter, agent.clone()).await?
    };
    Ok(HttpResponse::Ok().json(Merged::new(digest, groups, (from, to), agent)))
}

fn time(name: &str, text: Option<&str>) -> Result<Option<Timestamp>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let invalid = || {
        let detail = "must be an RFC 3339 time such as 2026-01-31T12:00:00Z (write a + as %2B)";
        ApiError::InvalidQuery(format!("{name} {detail}"))
    };
    clock::read_rfc3339(text).map(Some).ok_or_else(invalid)
}

fn look_up_group(store: &dyn ReadStore, no: GroupNo) -> Result<Lookup<Digest>, StoreError> {
    Ok(match store.digest(no)? {
        Some(digest) => Lookup::Current(Box::new(digest)),
        None => store.group(no)?.map_or(Lookup::NoOwner, |group| Lookup::Stale(group.id)),
    })
}

fn look_up_run(
    store: &dyn ReadStore,
    run: RunId,
) -> Result<Lookup<(GroupId, RunDigest)>, StoreError> {
    let Some(RunDigestRow { group, digest }) = store.run_digest(run)? else {
        return Ok(Lookup::NoOwner);
    };
    let Some(group) = store.group(group)? else { return Ok(Lookup::NoOwner) };
    Ok(match digest {
        Some(digest) => Lookup::Current(Box::new((group.id, digest))),
        None => Lookup::Stale(group.id),
    })
}

/// Returns a group's digest, and has the group rebuild it first if it is stale; `None` if there is
/// no such group.
///
/// # Errors
///
/// [`ApiError::NoDigest`] if the group could not rebuild it, or the database's error.
pub async fn read_or_rebuild(
    state: &AppState,
    no: GroupNo,
) -> Result<Option<Box<Digest>>, ApiError> {
    current(state, move |store| look_up_group(store, no)).await
}

/// Returns the digest that `look_up` finds. A stale one is rebuilt first by its group's actor: when
/// the actor loads the group, or else on request (TD-6).
async fn current<T: Send + 'static>(
    state: &AppState,
    look_up: impl Fn(&dyn ReadStore) -> Result<Lookup<T>, StoreError> + Clone + Send + 'static,
) -> Result<Option<Box<T>>, ApiError> {
    let group = match state.read(look_up.clone()).await? {
        Lookup::Current(digest) => return Ok(Some(digest)),
        Lookup::NoOwner => return Ok(None),
        Lookup::Stale(group) => group,
    };
    state.check_can_write()?;
    let addr = match state.owner(group.as_str()).await {
        // The group was purged since the read.
        Err(ApiError::NoSuchGroup) => return Ok(None),
        found => found?.addr,
    };
    state.answer_to(addr.send(EnsureLoaded)).await??;
    let found = match state.read(look_up.clone()).await? {
        Lookup::Stale(_) => {
            state.answer_to(addr.send(RebuildDigests)).await???;
            state.read(look_up).await?
        }
        found => found,
    };
    match found {
        Lookup::Current(digest) => Ok(Some(digest)),
        Lookup::NoOwner => Ok(None),
        Lookup::Stale(group) => {
            log::error!(target: "greenroom::http", group:%; "digest missing");
            Err(ApiError::NoDigest)
        }
    }
}

/// Merges the digests of all groups, and counts the groups.
async fn merge_groups(state: &AppState) -> Result<(usize, Digest), ApiError> {
    let (mut sum, mut groups, mut after) = (Digest::default(), 0, 0);
    loop {
        let page = move |store: &dyn ReadStore| {
            let page = store.groups(None, after, GROUPS_A_READ)?;
            let (count, last) = (page.len(), page.last().map(|listed| listed.no));
            let mut stale = Vec::new();
            for no in page.iter().map(|listed| listed.no) {
                match store.digest(no)? {
                    Some(digest) => sum.merge(&digest),
                    None => stale.push(no),
                }
            }
            Ok((sum, stale, count, last))
        };
        let (merged, stale, count, last) = state.read(page).await?;
        (sum, groups) = (merged, groups + count - stale.len());
        for no in stale {
            match read_or_rebuild(state, no).await {
                Ok(Some(digest)) => {
                    sum.merge(&digest);
                    groups += 1;
                }
                // A group that was purged meanwhile does not count.
                Ok(None) => {}
                // A broken group does not keep the others from being merged.
                Err(err) if err.is_broken_group() => {}
                Err(err) => return Err(err),
            }
        }
        let Some(last) = last else { break };
        after = last;
    }
    state.cache.digests_current.set(true);
    Ok((groups, sum))
}

/// Merges the digests of the turns that ended in a time, and counts their groups.
async fn merge_turns(
    state: &AppState,
    mut filter: EndedFilter,
    agent: Option<String>,
) -> Result<(usize, Digest), ApiError> {
    let (mut sum, mut groups) = (Digest::default(), BTreeSet::new());
    let agent: Option<Arc<str>> = agent.map(Into::into);
    loop {
        let agent = agent.clone();
        let page = move |store: &dyn ReadStore| {
            let turns = store.ended_turns(&filter)?;
            // Filtered by agent here, not in the database: so one read is one page of turns.
            let is_wanted =
                |of: &Option<String>| agent.is_none() || of.as_deref() == agent.as_deref();
            for turn in turns.iter().filter(|turn| is_wanted(&turn.agent)) {
                sum.merge(&turn.digest);
                groups.insert(turn.group);
            }
            let last = turns.last().map(|turn| turn.place);
            Ok((sum, groups, filter, last))
        };
        let last;
        (sum, groups, filter, last) = state.read(page).await?;
        if last.is_none() {
            return Ok((groups.len(), sum));
        }
        filter.after = last;
    }
}
