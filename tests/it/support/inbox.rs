//! What tests of permissions ask of a server.

use serde_json::{Value, json};

use super::http::Reply;
use super::server::{encode, id};
use super::{Server, eventually};

impl Server {
    /// The permissions that the query selects, all on one page.
    #[track_caller]
    pub fn permissions(&self, query: &str) -> Vec<Value> {
        let page = self.get(&format!("/v1/permissions?limit=1000&{query}")).expect(200);
        assert!(page["next_cursor"].is_null(), "{page}");
        page["items"].as_array().unwrap_or_else(|| panic!("no items in {page}")).clone()
    }

    /// Waits until so many of the group's permissions wait for an answer; gives them.
    #[track_caller]
    pub fn wait_pending(&self, group: &str, count: usize) -> Vec<Value> {
        eventually(&format!("{count} pending permissions"), &self.log, || {
            let pending = self.permissions(&format!("group={group}&state=pending"));
            (pending.len() == count).then_some(pending)
        })
    }

    /// Enqueues a turn that asks, and waits until its only permission is pending.
    #[track_caller]
    pub fn asked(&self, group: &str, prompt: &str) -> (Value, Value) {
        let task = self.submit(group, prompt);
        (task, self.wait_pending(group, 1).remove(0))
    }

    /// The permission with this one's id, as it is now.
    #[track_caller]
    pub fn permission(&self, permission: &Value) -> Value {
        let group = encode(permission["group"].as_str().unwrap());
        let all = self.permissions(&format!("group={group}"));
        let found = all.iter().find(|one| one["id"] == permission["id"]);
        found.unwrap_or_else(|| panic!("no {permission} in {all:?}")).clone()
    }

    /// Answers a permission with these fields.
    #[track_caller]
    pub fn answer_with(&self, permission: &Value, body: &Value) -> Reply {
        self.post(&format!("/v1/permissions/{}", id(permission)), body)
    }

    /// Answers a permission with an option.
    #[track_caller]
    pub fn answer(&self, permission: &Value, option: &str) -> Reply {
        self.answer_with(permission, &json!({ "option_id": option }))
    }

    /// The outcome that the agent was given for this permission, once it is there.
    #[track_caller]
    pub fn wait_outcome(&self, permission: &Value) -> Value {
        let tool = &permission["tool_call"]["toolCallId"];
        assert!(tool.is_string(), "no tool call in {permission}");
        let answered = self.journal.wait(&format!("the answer to {permission}"), |event| {
            event["event"] == "permission" && event["tool"] == *tool
        });
        answered["response"]["result"]["outcome"].clone()
    }
}
