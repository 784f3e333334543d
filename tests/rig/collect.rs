//! Reads the server's state: all tasks after a start, and everything at the end.

use std::collections::BTreeMap;

use greenroom_test_support::http;
use serde::Deserialize;
use serde_json::{Value, from_str, value::RawValue};

use crate::{
    Result,
    history::{Audit, Frame, Group, Sight},
    server::{PATIENCE, Server},
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

/// Reads each group as soon as the server listens, before it says that it is ready, and before any
/// caller. Ends with the first read that gets no answer: the server may die by its fault.
pub fn first_sights(stage: &Stage, server: &mut Server) -> Vec<Sight> {
    let mut sights = Vec::new();
    let Some(address) = server.wait_listening() else { return sights };
    let client = http::client(PATIENCE);
    let read = |path: &str| {
        let url = format!("http://{address}/v1/groups/{path}");
        let reply = http::exchange(&client, "GET", &url, &[], None).ok()?;
        // An error has no fields that any rule reads.
        Some(from_str::<Value>(&reply.text()).unwrap_or_default())
    };
    let items = |list: Value| match list {
        Value::Object(mut list) => match list.remove("items") {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    };
    for group in stage.plan.groups.iter().map(|group| &group.name) {
        let sight = || {
            Some(Sight {
                life: stage.life(),
                shown: read(group)?,
                snapshot: read(&format!("{group}/snapshot"))?,
                tasks: items(read(&format!("{group}/tasks?limit=1000"))?),
                runs: items(read(&format!("{group}/runs?limit=1000"))?),
            })
        };
        let Some(sight) = sight() else { break };
        sights.push(sight);
    }
    sights
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
