//! Digests: what a group came to, a run, and a stretch of time over all groups.
//!
//! Owns which rows are read, and who makes one again that is not there. Core sums up.

mod summary;

use std::{collections::BTreeSet, sync::Arc};

use actix_web::{
    HttpResponse,
    web::{Data, Path, Query},
};
use greenroom_actors::{
    clock,
    group::{Refold, Rouse},
    storage::{Archive, EndedFilter, GroupNo, RunStanding, StoreError},
};
use greenroom_core::{Digest, GroupId, RunId, Timestamp, digest::RunDigest};
use serde::Deserialize;

use self::summary::Merged;
pub use self::summary::{Costs, Summary};
use super::{Worker, error::ApiError};

/// So many rows are read at a time when many are merged: other readers get in between.
const TURNS_A_READ: usize = 1000;
const GROUPS_A_READ: usize = 200;

/// Which turns of all groups; without any of it, everything.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    from: Option<String>,
    to: Option<String>,
    agent: Option<String>,
}

/// What there is where a digest belongs.
enum Found<T> {
    Current(Box<T>),
    /// None of this version's form; this group makes it again when it is read back.
    Stale(GroupId),
    /// Nothing that could have one.
    Nothing,
}

/// One group's digest.
pub async fn group(worker: Data<Worker>, group: Path<String>) -> Result<HttpResponse, ApiError> {
    let handle = worker.find(&group, false).await?;
    let digest = worker.digest(handle.no).await?.ok_or(ApiError::NoSuchGroup)?;
    Ok(HttpResponse::Ok().json(Summary::of_group(handle.id, digest)))
}

/// One run's digest.
pub async fn run(worker: Data<Worker>, run: Path<String>) -> Result<HttpResponse, ApiError> {
    let run: RunId = run.parse().map_err(|_| ApiError::NoSuchRun)?;
    let found = worker.current(move |archive| of_run(archive, run)).await?;
    let (group, digest) = *found.ok_or(ApiError::NoSuchRun)?;
    Ok(HttpResponse::Ok().json(Summary::of_run(group, digest)))
}

/// What all groups came to, or the tasks of theirs that ended in a time and under an agent.
pub async fn all(
    worker: Data<Worker>,
    Query(window): Query<Window>,
) -> Result<HttpResponse, ApiError> {
    let from = time("from", window.from.as_deref())?;
    let to = time("to", window.to.as_deref())?;
    if from.zip(to).is_some_and(|(from, to)| from > to) {
        return Err(ApiError::InvalidQuery("from is not after to".into()));
    }
    let agent = window.agent;
    let (groups, digest) = if from.is_none() && to.is_none() && agent.is_none() {
        worker.whole_digest().await?
    } else {
        if !worker.digests_current.get() {
            // Turns of a group that has no digests yet would be missing.
            worker.whole_digest().await?;
        }
        let limit = TURNS_A_READ;
        let filter = EndedFilter { from, to, after: None, limit };
        worker.window(filter, agent.clone()).await?
    };
    Ok(HttpResponse::Ok().json(Merged::new(digest, groups, (from, to), agent)))
}

fn time(name: &str, text: Option<&str>) -> Result<Option<Timestamp>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let invalid = || {
        let detail = "is an RFC 3339 time such as 2026-01-31T12:00:00Z (a + is written %2B)";
        ApiError::InvalidQuery(format!("{name} {detail}"))
    };
    clock::read_rfc3339(text).map(Some).ok_or_else(invalid)
}

fn of_group(archive: &dyn Archive, no: GroupNo) -> Result<Found<Digest>, StoreError> {
    Ok(match archive.digest(no)? {
        Some(digest) => Found::Current(Box::new(digest)),
        None => archive.group(no)?.map_or(Found::Nothing, |group| Found::Stale(group.id)),
    })
}

fn of_run(archive: &dyn Archive, run: RunId) -> Result<Found<(GroupId, RunDigest)>, StoreError> {
    let Some(RunStanding { group, digest }) = archive.run_digest(run)? else {
        return Ok(Found::Nothing);
    };
    let Some(group) = archive.group(group)? else { return Ok(Found::Nothing) };
    Ok(match digest {
        Some(digest) => Found::Current(Box::new((group.id, digest))),
        None => Found::Stale(group.id),
    })
}

impl Worker {
    /// A group's digest; `None` if there is no such group.
    pub async fn digest(&self, no: GroupNo) -> Result<Option<Box<Digest>>, ApiError> {
        self.current(move |archive| of_group(archive, no)).await
    }

    /// Looks for a digest. One that is missing or of an older form is made again first, by the
    /// actor of its group: when that reads itself back, or else because it is told to (SEEDS TD-6).
    async fn current<T: Send + 'static>(
        &self,
        look: impl Fn(&dyn Archive) -> Result<Found<T>, StoreError> + Clone + Send + 'static,
    ) -> Result<Option<Box<T>>, ApiError> {
        let ledger = &self.edge.shared.ledger;
        let group = match ledger.read(look.clone()).await? {
            Found::Current(digest) => return Ok(Some(digest)),
            Found::Nothing => return Ok(None),
            Found::Stale(group) => group,
        };
        self.can_store()?;
        let addr = match self.find(group.as_str(), false).await {
            // It was purged since.
            Err(ApiError::NoSuchGroup) => return Ok(None),
            found => found?.addr,
        };
        addr.send(Rouse).await?;
        let found = match ledger.read(look.clone()).await? {
            Found::Stale(_) => {
                addr.send(Refold).await??;
                ledger.read(look).await?
            }
            found => found,
        };
        match found {
            Found::Current(digest) => Ok(Some(digest)),
            Found::Nothing => Ok(None),
            Found::Stale(group) => {
                log::error!(target: "greenroom::http", group:%; "digest missing");
                Err(ApiError::NoDigest)
            }
        }
    }

    /// How many groups there are, and what they came to.
    async fn whole_digest(&self) -> Result<(usize, Digest), ApiError> {
        let (mut sum, mut groups, mut after) = (Digest::default(), 0, 0);
        loop {
            let page = move |archive: &dyn Archive| {
                let page = archive.groups(None, after, GROUPS_A_READ)?;
                let (count, last) = (page.len(), page.last().map(|listed| listed.no));
                let mut stale = Vec::new();
                for no in page.iter().map(|listed| listed.no) {
                    match archive.digest(no)? {
                        Some(digest) => sum.merge(&digest),
                        None => stale.push(no),
                    }
                }
                Ok((sum, stale, count, last))
            };
            let (merged, stale, count, last) = self.edge.shared.ledger.read(page).await?;
            (sum, groups) = (merged, groups + count - stale.len());
            for no in stale {
                match self.digest(no).await {
                    Ok(Some(digest)) => {
                        sum.merge(&digest);
                        groups += 1;
                    }
                    // A group that was purged meanwhile is none.
                    Ok(None) => {}
                    // The others are summed up all the same.
                    Err(err) if err.is_broken_group() => {}
                    Err(err) => return Err(err),
                }
            }
            let Some(last) = last else { break };
            after = last;
        }
        self.digests_current.set(true);
        Ok((groups, sum))
    }

    /// How many groups had tasks that ended in a time, and what these came to.
    async fn window(
        &self,
        mut filter: EndedFilter,
        agent: Option<String>,
    ) -> Result<(usize, Digest), ApiError> {
        let (mut sum, mut groups) = (Digest::default(), BTreeSet::new());
        let agent: Option<Arc<str>> = agent.map(Into::into);
        loop {
            let agent = agent.clone();
            let page = move |archive: &dyn Archive| {
                let turns = archive.ended_turns(&filter)?;
                // Told apart here, not in the database: one read is a page, whoever is asked for.
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
            (sum, groups, filter, last) = self.edge.shared.ledger.read(page).await?;
            if last.is_none() {
                return Ok((groups.len(), sum));
            }
            filter.after = last;
        }
    }
}
