//! The words by which an agent sends requests to its client.
//!
//! | word | what happens |
//! |---|---|
//! | `permission` | requests a permission with all four kinds of options, reports the outcome |
//! | `permission:FORM` | the same with a FORM of options, below |
//! | `permission:FORM:KIND` | the same for a tool call of that ACP kind; FORM may be empty |
//! | `permission:FORM:known` | the same for the tool call that `tool` sent last, without its kind |
//! | `permission-open` and the same forms | requests it, and continues without the answer |
//! | `await-permissions` | waits for the answers to those |
//! | `fs` · `unknown-request` | a request that the client must refuse; reports the error's code |
//! | `fs:open` · `unknown-request:open` | the same, and continues without the answer |
//!
//! Forms: `always` is without `reject_once`, `none` without any reject, `lasting` without any
//! `_once`. Each answer is in the journal as `permission`, with its `tool` call's id.

use std::{
    mem,
    sync::{Arc, mpsc::Receiver},
    thread::{self, JoinHandle},
};

use serde_json::{Value, json};

use crate::turn::Turn;

/// The requests of a turn so far.
#[derive(Default)]
pub struct Requests {
    /// The id of the last tool call.
    pub last_tool: String,
    /// The threads that wait for answers that the turn does not wait for.
    open: Vec<JoinHandle<()>>,
}

impl Turn {
    /// Performs one of these words; returns `false` if it is none of them.
    pub fn ask(&mut self, name: &str, argument: &str) -> bool {
        match name {
            "permission" => {
                let (tool, answer) = self.ask_permission(argument);
                let Ok(response) = answer.recv() else { return true };
                self.agent().note("permission", json!({ "tool": tool, "response": response }));
                let outcome = &response["result"]["outcome"];
                let word = outcome["outcome"].as_str().unwrap_or("no outcome");
                let option = outcome["optionId"].as_str().unwrap_or("-");
                self.reply(&format!("permission: {word} {option}"));
            }
            "permission-open" => {
                let (tool, answer) = self.ask_permission(argument);
                let agent = Arc::clone(self.agent());
                self.requests.open.push(thread::spawn(move || {
                    if let Ok(response) = answer.recv() {
                        agent.note("permission", json!({ "tool": tool, "response": response }));
                    }
                }));
            }
            "await-permissions" => {
                mem::take(&mut self.requests.open).into_iter().for_each(|open| drop(open.join()));
            }
            "fs" if argument == "open" => {
                let params = json!({ "sessionId": self.session(), "path": "/x" });
                drop(self.agent().ask("fs/read_text_file", &params));
            }
            "fs" => self.request_unsupported("fs", "fs/read_text_file", json!({ "path": "/x" })),
            "unknown-request" if argument == "open" => {
                drop(self.agent().ask("scripted/unknown", &json!({ "sessionId": self.session() })));
            }
            "unknown-request" => {
                self.request_unsupported("unknown-request", "scripted/unknown", json!({}));
            }
            _ => return false,
        }
        true
    }

    /// Requests a permission. Returns the tool call's id, and the receiver of the answer.
    fn ask_permission(&self, argument: &str) -> (String, Receiver<Value>) {
        let (form, kind) = argument.split_once(':').unwrap_or((argument, ""));
        let mut tool_call = json!({ "toolCallId": format!("tool-{}", self.agent().number()) });
        match kind {
            "" => {}
            "known" => tool_call["toolCallId"] = json!(self.requests.last_tool),
            kind => tool_call["kind"] = json!(kind),
        }
        let tool = tool_call["toolCallId"].as_str().unwrap_or_default().to_owned();
        let params = json!({
            "sessionId": self.session(),
            "toolCall": tool_call,
            "options": options(form),
        });
        (tool, self.agent().ask("session/request_permission", &params))
    }

    fn request_unsupported(&self, word: &str, method: &str, mut params: Value) {
        params["sessionId"] = json!(self.session());
        if let Ok(response) = self.agent().ask(method, &params).recv() {
            self.reply(&format!("{word}: {}", response["error"]["code"]));
        }
    }
}

fn options(form: &str) -> Vec<Value> {
    let all = [
        ("always", "allow_always"),
        ("once", "allow_once"),
        ("never", "reject_always"),
        ("not-now", "reject_once"),
    ];
    let fits = |kind: &str| match form {
        "always" => kind != "reject_once",
        "none" => !kind.starts_with("reject"),
        "lasting" => kind.ends_with("always"),
        _ => true,
    };
    let offered = all.iter().filter(|(_, kind)| fits(kind));
    offered.map(|(id, kind)| json!({ "optionId": id, "name": id, "kind": kind })).collect()
}
