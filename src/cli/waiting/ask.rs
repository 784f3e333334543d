//! Asks the server why a task, or a group, does not move. Knows the API's JSON.

use std::cell::Cell;

use greenroom_actors::clock;
use greenroom_core::{Blocked, Timestamp};
use serde_json::Value;

use super::reason::{BlockedBy, Reason};
use crate::{
    client::{Client, ClientError, encode, is_terminal},
    text::{one_line, visible},
};

/// Characters of a title, an error or a name that a reason shows.
const SHOWN_MAX: usize = 120;

/// Whose wait is reported.
#[derive(Clone, Debug)]
pub enum Subject {
    /// The task with this id.
    Task(String),
    /// The running task of the group with this id, or else its next one.
    Group(String),
}

/// One round of requests.
pub struct Round<'a> {
    client: &'a Client,
    requests: Cell<u32>,
}

impl<'a> Round<'a> {
    pub fn new(client: &'a Client) -> Self {
        Self { client, requests: Cell::new(0) }
    }

    /// Returns how many requests were sent.
    pub fn requests(&self) -> u32 {
        self.requests.get()
    }

    /// Returns why the subject does not move; `None` if nothing waits.
    ///
    /// # Errors
    ///
    /// The first request's; a detail that cannot be read is left out.
    pub fn ask(&self, subject: &Subject) -> Result<Option<Reason>, ClientError> {
        match subject {
            Subject::Task(id) => {
                let task = self.get(&format!("/v1/tasks/{}", encode(id)))?;
                Ok(self.of_task(&task))
            }
            Subject::Group(id) => {
                let group = self.get(&format!("/v1/groups/{}", encode(id)))?;
                Ok(self.of_group(&group))
            }
        }
    }

    fn of_task(&self, task: &Value) -> Option<Reason> {
        if is_terminal(task) {
            return None;
        }
        let group = text(&task["group"]);
        match BlockedBy::read(&task["blocked_by"]) {
            None if task["state"] != "running" => None,
            None => Some(self.permission(&group, &task["id"]).unwrap_or(Reason::Works)),
            Some(blocked) => Some(self.blocked(blocked, group, Some(task))),
        }
    }

    /// Returns why the running task, or else the next one, does not move.
    fn of_group(&self, group: &Value) -> Option<Reason> {
        let id = text(&group["id"]);
        match BlockedBy::read(&group["blocked_by"]) {
            None | Some(BlockedBy::Known(Blocked::Turn)) => {
                is_running(group).then(|| self.permission(&id, &group["current_task"])).flatten()
            }
            Some(blocked) => Some(self.blocked(blocked, id, None)),
        }
    }

    /// Returns why the next task of a group does not start. `task`: that task, if it is known.
    fn blocked(&self, blocked: BlockedBy, group: String, task: Option<&Value>) -> Reason {
        let blocked = match blocked {
            BlockedBy::Known(blocked) => blocked,
            BlockedBy::Unknown(word) => return Reason::Other(shown(&word)),
        };
        match blocked {
            Blocked::Turn => self.tasks(group, task),
            Blocked::Slot => {
                let status = self.status();
                let drains = status["phase"].as_str().is_some_and(|phase| phase != "serving");
                Reason::Slot { total: status["slots"]["total"].as_u64(), drains }
            }
            Blocked::Agent => {
                let resident = &self.status()["resident"];
                let is_full = resident["waiting"].as_u64().is_some_and(|waiting| waiting > 0);
                Reason::Agent { full: resident["cap"].as_u64().filter(|_| is_full) }
            }
            Blocked::AgentAuth => self.login(group),
            Blocked::Backoff => self.backoff(group, task),
            Blocked::Paused => Reason::Paused { group },
            Blocked::Held => {
                let frame = self.newest_frame(&group, "greenroom/group_held");
                let why = serde_json::from_value(frame["payload"]["reason"].clone()).ok();
                Reason::Held { group, why }
            }
            Blocked::Lock => Reason::Lock { held: self.lock(&group) },
            Blocked::Storage => {
                let cause = self.status()["storage"]["cause"].as_str().map(shown);
                Reason::Storage { cause }
            }
        }
    }

    /// Other tasks of the group are before `task`.
    fn tasks(&self, group: String, task: Option<&Value>) -> Reason {
        let position = task.and_then(|task| task["position"].as_u64()).unwrap_or_default();
        let found = self.get(&format!("/v1/groups/{}", encode(&group))).ok();
        let ahead = found.as_ref().is_some_and(is_running);
        let first = found.and_then(|group| self.of_group(&group)).map(Box::new);
        // A draining or deleted group does not show that a task runs, but one does.
        let before = (position + u64::from(ahead)).max(1);
        Reason::Tasks { group, before, first }
    }

    /// The task waits for its retry, or the group for the next start of its agent.
    fn backoff(&self, group: String, task: Option<&Value>) -> Reason {
        let found;
        let task = match task {
            Some(task) => task,
            None => {
                found = self
                    .first(&format!("/v1/groups/{}/tasks?state=retrying&limit=1", encode(&group)));
                &found
            }
        };
        if let Some(until) = task["retry_at"].as_str().and_then(clock::read_rfc3339) {
            let error = &task["error"];
            let error = error["code"].as_str().map(|code| {
                shown(&format!("{code}: {}", error["message"].as_str().unwrap_or_default()))
            });
            return Reason::Backoff { group, until: Some(until), error, degraded: false };
        }
        let frame = self.newest_frame(&group, "greenroom/agent_degraded");
        let until = waited_until(&frame);
        let run = self.first(&format!("/v1/groups/{}/runs?limit=1", encode(&group)));
        let error = run["detail"].as_str().filter(|detail| !detail.is_empty()).map(shown);
        Reason::Backoff { group, until, error, degraded: true }
    }

    /// The group waits until a person has logged in to its agent.
    fn login(&self, group: String) -> Reason {
        let frame = self.newest_frame(&group, "greenroom/agent_auth_required");
        let payload = &frame["payload"];
        let until = waited_until(&frame);
        let (agent, error) = (payload["agent"].as_str(), payload["error"].as_str());
        Reason::Login { group, agent: agent.map(shown), until, error: error.map(shown) }
    }

    /// Returns the holder of the session's lock.
    fn lock(&self, group: &str) -> Option<String> {
        let group = self.get(&format!("/v1/groups/{}", encode(group))).ok()?;
        let session = group["session_id"].as_str()?;
        let lock = self.get(&format!("/v1/locks/{}", encode(session))).ok()?;
        lock["holder"].as_str().map(shown)
    }

    /// Returns the oldest permission that `task` waits for.
    fn permission(&self, group: &str, task: &Value) -> Option<Reason> {
        let path = format!("/v1/permissions?state=pending&group={}", encode(group));
        let pending = self.get(&path).ok()?;
        let mut pending = pending["items"].as_array()?.iter();
        let found = pending.find(|permission| permission["task"] == *task)?;
        let options = found["options"].as_array().into_iter().flatten();
        Some(Reason::Permission {
            id: text(&found["id"]),
            title: found["tool_call"]["title"].as_str().map(shown),
            options: options.map(|option| text(&option["optionId"])).collect(),
        })
    }

    fn status(&self) -> Value {
        self.get("/v1/status").unwrap_or_default()
    }

    fn newest_frame(&self, group: &str, kind: &str) -> Value {
        let group = encode(group);
        self.first(&format!("/v1/groups/{group}/frames?kind={kind}&order=desc&limit=1"))
    }

    /// Returns the first item of a list, or null.
    fn first(&self, path: &str) -> Value {
        self.get(path).map(|page| page["items"][0].clone()).unwrap_or_default()
    }

    fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.requests.set(self.requests.get() + 1);
        self.client.get(path)
    }
}

/// Returns the end of the wait that a frame reports.
fn waited_until(frame: &Value) -> Option<Timestamp> {
    let wait_ms = frame["payload"]["wait_ms"].as_i64()?;
    let at = frame["at"].as_str().and_then(clock::read_rfc3339)?;
    Some(Timestamp(at.0.saturating_add(wait_ms)))
}

/// Whether a task of the group has started and not ended.
fn is_running(group: &Value) -> bool {
    matches!(group["status"].as_str(), Some("running" | "compacting"))
}

/// Returns an id, which is never shortened.
fn text(field: &Value) -> String {
    visible(field.as_str().unwrap_or_default())
}

fn shown(text: &str) -> String {
    one_line(text, SHOWN_MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::client::fake::{Reply, Server};

    /// Asks about `subject` with these answers, which must be as many as the requests, and returns
    /// the reason and the paths.
    fn ask(subject: Subject, answers: &[Value]) -> (Option<Reason>, Vec<String>) {
        let replies = answers.iter().map(|answer| match answer {
            Value::Null => Reply::json(404, "{}"),
            answer => Reply::json(200, &answer.to_string()),
        });
        let server = Server::start(replies.collect());
        let client = Client::new(server.url(), None).unwrap();
        let round = Round::new(&client);
        let reason = round.ask(&subject).unwrap();
        assert_eq!(round.requests() as usize, answers.len());
        let line = |request: String| request.split(' ').nth(1).unwrap().to_owned();
        (reason, server.requests().into_iter().map(line).collect())
    }

    fn of_task(mut answers: Vec<Value>) -> (Option<Reason>, Vec<String>) {
        answers[0]["id"] = json!("tsk_1");
        answers[0]["group"] = json!("work");
        let (reason, mut paths) = ask(Subject::Task("tsk_1".into()), &answers);
        assert_eq!(paths.remove(0), "/v1/tasks/tsk_1");
        (reason, paths)
    }

    fn items(items: Value) -> Value {
        json!({ "items": items, "next_cursor": null })
    }

    fn queued(by: &str) -> Value {
        json!({ "state": "queued", "blocked_by": by, "position": 0 })
    }

    #[test]
    fn a_task_waits_for_what_the_server_says() {
        let work = || "work".to_owned();
        let status = json!({ "phase": "serving", "slots": { "total": 4 },
            "resident": { "cap": 2, "count": 2, "waiting": 1 },
            "storage": { "cause": "disk_full" } });
        let held = json!([{ "payload": { "reason": "interrupted_twice" } }]);
        let retrying = json!({ "state": "retrying", "blocked_by": "backoff",
            "retry_at": "1970-01-01T00:00:20.000Z",
            "error": { "code": "agent_error", "message": "no" } });
        let degraded =
            json!([{ "at": "1970-01-01T00:00:01.000Z", "payload": { "wait_ms": 8000 } }]);
        let login = json!([{ "at": "1970-01-01T00:00:01.000Z",
            "payload": { "agent": "gemini", "wait_ms": 60_000, "error": "no key" } }]);
        let lock = json!({ "holder": "nightly\u{1b}[2J", "expires_at": "T" });
        let backoff = |seconds: i64, error: &str, degraded| Reason::Backoff {
            group: "work".into(),
            until: Some(Timestamp(seconds * 1000)),
            error: Some(error.into()),
            degraded,
        };
        #[rustfmt::skip]
        let cases = [
            (vec![json!({ "state": "completed" })], None),
            (vec![queued("paused")], Some(Reason::Paused { group: work() })),
            (vec![queued("slot"), status.clone()], Some(Reason::Slot { total: Some(4), drains: false })),
            (vec![queued("slot"), json!({ "phase": "draining" })], Some(Reason::Slot { total: None, drains: true })),
            (vec![queued("slot"), Value::Null], Some(Reason::Slot { total: None, drains: false })),
            (vec![queued("agent"), status.clone()], Some(Reason::Agent { full: Some(2) })),
            (vec![queued("agent"), json!({ "resident": { "cap": 2, "count": 2, "waiting": 0 } })], Some(Reason::Agent { full: None })),
            (vec![queued("storage"), status], Some(Reason::Storage { cause: Some("disk_full".into()) })),
            (vec![queued("held"), items(held)], Some(Reason::Held { group: work(), why: Some(greenroom_core::HoldReason::InterruptedTwice) })),
            (vec![queued("held"), Value::Null], Some(Reason::Held { group: work(), why: None })),
            (vec![retrying], Some(backoff(20, "agent_error: no", false))),
            (vec![queued("backoff"), items(degraded), items(json!([{ "detail": "exit 1" }]))], Some(backoff(9, "exit 1", true))),
            (vec![queued("lock"), json!({ "session_id": "s/1" }), lock], Some(Reason::Lock { held: Some(r"nightly\u{1b}[2J".into()) })),
            (vec![queued("lock"), json!({ "session_id": "s/1" }), Value::Null], Some(Reason::Lock { held: None })),
            (vec![queued("agent_auth"), items(login)], Some(Reason::Login { group: work(), agent: Some("gemini".into()), until: Some(Timestamp(61_000)), error: Some("no key".into()) })),
            (vec![queued("agent_auth"), Value::Null], Some(Reason::Login { group: work(), agent: None, until: None, error: None })),
            (vec![queued("agent_moon")], Some(Reason::Other("agent_moon".into()))),
            (vec![json!({ "state": "running", "blocked_by": null }), items(json!([]))], Some(Reason::Works)),
        ];
        for (answers, expected) in cases {
            let task = answers[0].clone();
            assert_eq!(of_task(answers).0, expected, "{task}");
        }
        let (_, paths) = of_task(vec![queued("lock"), json!({ "session_id": "s/1" }), Value::Null]);
        assert_eq!(paths, ["/v1/groups/work", "/v1/locks/s%2F1"]);
        let (_, paths) = of_task(vec![queued("held"), items(json!([]))]);
        let newest = "/v1/groups/work/frames?kind=greenroom/group_held&order=desc&limit=1";
        assert_eq!(paths, [newest]);
    }

    fn group(status: &str, by: &Value) -> Value {
        let mut group = json!({ "id": "work", "current_task": "tsk_9" });
        (group["status"], group["blocked_by"]) = (json!(status), by.clone());
        group
    }

    fn question(task: &str) -> Value {
        json!({ "id": "prm_1", "task": task, "tool_call": { "title": "Edit\n/etc/hosts" },
            "options": [{ "optionId": "yes".repeat(99) }, { "optionId": "no" }] })
    }

    fn asked() -> Reason {
        Reason::Permission {
            id: "prm_1".into(),
            title: Some("Edit /etc/hosts".into()),
            // An id is copied, so it is whole.
            options: vec!["yes".repeat(99), "no".into()],
        }
    }

    #[test]
    fn a_running_task_waits_for_its_own_permission() {
        let running = || json!({ "state": "running", "blocked_by": null });
        let both = items(json!([question("tsk_2"), question("tsk_1")]));
        let (reason, paths) = of_task(vec![running(), both]);
        assert_eq!(reason, Some(asked()));
        assert_eq!(paths, ["/v1/permissions?state=pending&group=work"]);
        let (reason, _) = of_task(vec![running(), items(json!([question("tsk_2")]))]);
        assert_eq!(reason, Some(Reason::Works));
    }

    #[test]
    fn a_task_behind_others_says_how_many_and_what_stops_the_first() {
        let behind = || json!({ "state": "queued", "blocked_by": "turn", "position": 1 });
        let group = |status: &str, by: &str| group(status, &json!(by));
        let tasks = |before, first: Option<Reason>| {
            let first = first.map(Box::new);
            Some(Reason::Tasks { group: "work".into(), before, first })
        };
        let answers = vec![behind(), group("running", "turn"), items(json!([question("tsk_9")]))];
        assert_eq!(of_task(answers).0, tasks(2, Some(asked())));
        let answers = vec![behind(), group("running", "turn"), items(json!([]))];
        assert_eq!(of_task(answers).0, tasks(2, None));
        let answers = vec![behind(), group("starting", "agent"), Value::Null];
        assert_eq!(of_task(answers).0, tasks(1, Some(Reason::Agent { full: None })));
        assert_eq!(of_task(vec![behind(), Value::Null]).0, tasks(1, None));
        // A draining group does not show that a task runs, but one is before this one.
        let first = json!({ "state": "queued", "blocked_by": "turn", "position": 0 });
        let answers = vec![first, group("draining", "slot"), json!({ "phase": "draining" })];
        let drains = Reason::Slot { total: None, drains: true };
        assert_eq!(of_task(answers).0, tasks(1, Some(drains)));
    }

    #[test]
    fn a_group_waits_as_its_running_or_next_task_does() {
        let of_group = |answers: &[Value]| ask(Subject::Group("work".into()), answers).0;
        assert_eq!(of_group(&[group("idle", &json!(null))]), None);
        let running = group("running", &json!("turn"));
        assert_eq!(of_group(&[running.clone(), items(json!([]))]), None);
        let pending = items(json!([question("tsk_9")]));
        assert_eq!(of_group(&[running, pending]), Some(asked()));
        let paused = Some(Reason::Paused { group: "work".into() });
        assert_eq!(of_group(&[group("paused", &json!("paused"))]), paused);
        let next = items(json!([{ "id": "tsk_2", "retry_at": "1970-01-01T00:00:20.000Z" }]));
        let backoff = group("waiting", &json!("backoff"));
        let until = Some(Timestamp(20_000));
        let (work, error) = ("work".to_owned(), None);
        let expected = Reason::Backoff { group: work, until, error, degraded: false };
        assert_eq!(of_group(&[backoff, next]), Some(expected));
    }
}
