//! Reading what the server has: all tasks after a start, and all of everything in the end.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, from_str};

use crate::Result;
use crate::history::{Audit, Frame, Group};
use crate::stage::{Client, Stage};

#[derive(Deserialize)]
struct Page {
    items: Vec<Box<RawValue>>,
    next_cursor: Option<String>,
}

/// All items of a list, byte for byte; `None` if the server is gone.
fn list(client: &Client<'_>, path: &str) -> Option<Vec<String>> {
    let mut items = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = client.read(&format!("{path}?limit=1000{cursor}"))?;
        let page: Page = from_str(&page).ok()?;
        items.extend(page.items.iter().map(|item| item.get().to_owned()));
        match page.next_cursor {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Some(items),
        }
    }
}

fn values(client: &Client<'_>, path: &str) -> Option<Vec<Value>> {
    let items = list(client, path)?;
    Some(items.iter().filter_map(|item| from_str(item).ok()).collect())
}

/// The tasks that there are now; `None` if the server did not live long enough to tell.
pub fn audit(stage: &Stage) -> Option<Audit> {
    let client = stage.client();
    let (life, at) = (stage.life(), stage.now());
    let mut audit = Audit { life, at, until: 0, tasks: BTreeMap::new() };
    for group in &stage.plan.groups {
        let path = format!("/v1/groups/{}", group.name);
        match client.get(&path)? {
            (200, _) => {
                let tasks = values(&client, &format!("{path}/tasks"))?;
                audit.tasks.insert(group.name.clone(), tasks);
            }
            // Nobody has made it yet.
            (404, _) => {}
            _ => return None,
        }
    }
    audit.until = stage.now();
    Some(audit)
}

/// Everything that is kept of one group.
pub fn collect(stage: &Stage, group: &str) -> Result<Group> {
    let client = stage.client();
    let path = format!("/v1/groups/{group}");
    let gone = |what: &str| format!("{what} of {group} cannot be read in the end");
    let all = |what: &str| values(&client, &format!("{path}/{what}")).ok_or_else(|| gone(what));
    let read_at = stage.now();
    let shown = client.read(&path).ok_or_else(|| gone("state"))?;
    let frames = list(&client, &format!("{path}/frames")).ok_or_else(|| gone("frames"))?;
    let runs = all("runs")?;
    let digest = |path: &str| -> Result<Value> {
        let text = client.read(&format!("{path}/digest")).ok_or_else(|| gone("a digest"))?;
        Ok(from_str(&text)?)
    };
    let ids = runs.iter().filter_map(|run| run["id"].as_str());
    let run_digests = ids.map(|run| digest(&format!("/v1/runs/{run}"))).collect::<Result<_>>()?;
    let tasks = all("tasks")?;
    Ok(Group {
        read_at,
        // Read behind what it is held against: a group may go on meanwhile.
        digest: digest(&path)?,
        run_digests,
        shown: from_str(&shown)?,
        tasks,
        frames: frames.iter().map(|frame| Frame::read(frame)).collect::<Result<_>>()?,
        segments: all("segments")?,
        compactions: all("compactions")?,
        runs,
    })
}
