//! Reads the server's state: all tasks after a start, and everything at the end.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, from_str, value::RawValue};

use crate::{
    Result,
    history::{Audit, Frame, Group},
    stage::{Client, Stage},
};

#[derive(Deserialize)]
struct Page {
    items: Vec<Box<RawValue>>,
    next_cursor: Option<String>,
}

/// Returns all items of a list, byte for byte; `None` if the server is gone.
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

/// Returns the present tasks; `None` if the server died before it answered.
pub fn audit(stage: &Stage) -> Option<Audit> {
    let client = stage.client();
    let (life, at) = (stage.life(), stage.now());
    let mut audit = Audit { life, at, until: 0, tasks: BTreeMap::new() };
    for group in &stage.plan.groups {
        let path = format!("/v1/groups/{}", group.name);
        match client.get(&path)?.status {
            200 => {
                let tasks = values(&client, &format!("{path}/tasks"))?;
                audit.tasks.insert(group.name.clone(), tasks);
            }
            // The group does not exist yet.
            404 => {}
            _ => return None,
        }
    }
    audit.until = stage.now();
    Some(audit)
}

/// Returns everything that is stored of one group.
pub fn collect(stage: &Stage, group: &str) -> Result<Group> {
    let client = stage.client();
    let path = format!("/v1/groups/{group}");
    let gone = |what: &str| format!("{what} of {group} cannot be read in the end");
    let all = |what: &str| values(&client, &format!("{path}/{what}")).ok_or_else(|| gone(what));
    let read_at = stage.now();
    let shown = client.json(&path).ok_or_else(|| gone("state"))?;
    let frames = list(&client, &format!("{path}/frames")).ok_or_else(|| gone("frames"))?;
    let runs = all("runs")?;
    let digest = |path: &str| -> Result<Value> {
        Ok(client.json(&format!("{path}/digest")).ok_or_else(|| gone("a digest"))?)
    };
    let ids = runs.iter().filter_map(|run| run["id"].as_str());
    let run_digests = ids.map(|run| digest(&format!("/v1/runs/{run}"))).collect::<Result<_>>()?;
    let tasks = all("tasks")?;
    Ok(Group {
        read_at,
        // Read after the data that it is compared with: a group may continue meanwhile.
        digest: digest(&path)?,
        run_digests,
        shown,
        tasks,
        frames: frames.iter().map(|frame| Frame::read(frame)).collect::<Result<_>>()?,
        compactions: all("compactions")?,
        runs,
    })
}
