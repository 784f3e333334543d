//! Requests and waits of tests of permissions.

use serde_json::{Value, json};

use super::{
    Server, eventually,
    http::Reply,
    server::{encode, id},
};

impl Server {
    /// Returns the permissions that the query selects; they must fit on one page.
    #[track_caller]
    pub fn permissions(&self, query: &str) -> Vec<Value> {
        let page = self.get(&format!("/v1/permissions?limit=1000&{query}")).expect(200);
        assert!(page["next_cursor"].is_null(), "{page}");
        page["items"].as_array().unwrap_or_else(|| panic!("no items in {page}")).clone()
    }

    /// Waits until this number of the group's permissions are pending, and returns them.
    #[track_caller]
    pub fn wait_pending(&self, group: &str, count: usize) -> Vec<Value> {
        eventually(&format!("{count} pending permissions"), &self.log, || {
            let pending = self.permissions(&format!("group={group}&state=pending"));
            (pending.len() == count).then_some(pending)
        })
    }

    /// Enqueues a turn whose agent requests one permission, and waits until it is pending.
    #[track_caller]
    pub fn submit_asking(&self, group: &str, prompt: &str) -> (Value, Value) {
        let task = self.submit(group, prompt);
        (task, self.wait_pending(group, 1).remove(0))
    }

    /// Returns the current state of this permission.
    #[track_caller]
    pub fn permission(&self, permission: &Value) -> Value {
        let group = encode(permission["group"].as_str().unwrap());
        let all = self.permissions(&format!("group={group}"));
        let found = all.iter().find(|candidate| candidate["id"] == permission["id"]);
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

    /// Waits for the outcome that the agent received for this permission.
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
