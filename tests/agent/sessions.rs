//! Sessions: opened, restored, and kept in files with their histories.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process,
    sync::Arc,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    Agent, INTERNAL_ERROR, RESOURCE_NOT_FOUND, lock,
    updates::chunk,
    words::{error_of, words},
};

impl Agent {
    /// Opens a session, after the script `on-new`.
    pub fn new_session(self: &Arc<Self>, id: Value, params: Value) {
        let script = self.script("on-new");
        if script.is_empty() {
            return self.open_session(&id, &params);
        }
        self.note("new-scripted", json!({ "script": script }));
        let agent = Arc::clone(self);
        thread::spawn(move || {
            for (name, argument) in words(&script) {
                match name {
                    "gate" => drop(agent.wait_at_gate(argument, || false)),
                    _ => {
                        let (code, message) = error_of(argument).unwrap_or((INTERNAL_ERROR, name));
                        return agent.fail(&id, code, message);
                    }
                }
            }
            agent.open_session(&id, &params);
        });
    }

    fn open_session(&self, id: &Value, params: &Value) {
        let session = format!("session-{}-{}", process::id(), self.number());
        if let Err(err) = fs::write(self.history_path(&session), "") {
            return self.fail(id, INTERNAL_ERROR, &format!("cannot store the session: {err}"));
        }
        lock(&self.known).insert(session.clone());
        self.note("new", json!({ "session": session, "cwd": params["cwd"] }));
        let mut result = self.restored(&session);
        result["sessionId"] = json!(session);
        self.answer(id, result);
        // As every real agent does, with no request open.
        let commands = json!([{ "name": "compact", "description": "compact the context" }]);
        self.update(
            &session,
            &json!({
                "sessionUpdate": "available_commands_update",
                "availableCommands": commands,
            }),
        );
    }

    /// Loads a session, after the script `on-load`: `error:CODE:TEXT` answers with an error, `null`
    /// with nothing, and replays nothing, but names the session's commands; `die:CODE` exits; and
    /// `drip:COUNT` replays that many chunks first, one each 100 ms.
    pub fn load(&self, id: &Value, session: &str) {
        let history = self.history(session);
        self.note("load", json!({ "session": session, "known": history.is_some() }));
        let script = self.script("on-load");
        for (name, argument) in words(&script) {
            if name == "drip" {
                for _ in 0..argument.parse().unwrap_or(0) {
                    thread::sleep(Duration::from_millis(100));
                    self.update(session, &chunk("agent_message_chunk", "of old"));
                }
            } else if name == "null" {
                self.answer(id, Value::Null);
                return self.update(
                    session,
                    &json!({
                        "sessionUpdate": "available_commands_update",
                        "availableCommands": [{ "name": "of-old", "description": "of old" }],
                    }),
                );
            } else if name == "die" {
                self.exit_with(argument.parse().unwrap_or(1));
            } else {
                let (code, message) = error_of(argument).unwrap_or((INTERNAL_ERROR, name));
                return self.fail(id, code, message);
            }
        }
        let Some(updates) = history else {
            return self.fail(id, RESOURCE_NOT_FOUND, "no such session");
        };
        lock(&self.known).insert(session.to_owned());
        if self.switches.late_replay {
            self.answer(id, Value::Null);
        }
        updates.iter().for_each(|update| self.update(session, update));
        if !self.switches.late_replay {
            self.answer(id, self.restored(session));
        }
    }

    pub fn resume(&self, id: &Value, session: &str) {
        let known = self.history(session).is_some();
        self.note("resume", json!({ "session": session, "known": known }));
        if !known {
            return self.fail(id, RESOURCE_NOT_FOUND, "no such session");
        }
        lock(&self.known).insert(session.to_owned());
        self.answer(id, self.restored(session));
    }

    /// Returns the result of `session/new`, `load` and `resume`, without an id.
    fn restored(&self, session: &str) -> Value {
        if !self.switches.hermes {
            return json!({});
        }
        json!({ "_meta": { "hermes": { "sessionProvenance": root_provenance(session, session) } } })
    }

    /// Creates another id for this session, which can be prompted and restored like the first.
    pub fn continue_as(&self, session: &str, other: &str) {
        if let Err(err) = fs::copy(self.history_path(session), self.history_path(other)) {
            eprintln!("scripted-agent: cannot continue the session: {err}");
        }
        lock(&self.known).insert(other.to_owned());
    }

    pub fn remember(&self, session: &str, update: &Value) {
        let file = fs::File::options().append(true).create(true).open(self.history_path(session));
        let written = file.and_then(|mut file| file.write_all(format!("{update}\n").as_bytes()));
        if let Err(err) = written {
            eprintln!("scripted-agent: cannot store the history: {err}");
        }
    }

    /// Returns the stored updates of a session; `None` if there is no such session.
    pub fn history(&self, session: &str) -> Option<Vec<Value>> {
        if !is_name(session) {
            return None;
        }
        let text = fs::read_to_string(self.history_path(session)).ok()?;
        Some(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Whether the session exists and has no update yet; by its size, as it may be long.
    pub fn is_fresh(&self, session: &str) -> bool {
        let stored = is_name(session).then(|| fs::metadata(self.history_path(session)));
        stored.is_some_and(|stored| stored.is_ok_and(|file| file.len() == 0))
    }

    fn history_path(&self, session: &str) -> PathBuf {
        self.directory.join("sessions").join(format!("{session}.jsonl"))
    }

    /// Returns the text of a script file, empty if there is none; `{n}` in it becomes a fresh
    /// number.
    pub fn script(&self, name: &str) -> String {
        let text = fs::read_to_string(self.directory.join(name)).unwrap_or_default();
        text.replace("{n}", &format!("{}-{}", process::id(), self.number()))
    }
}

/// Whether it can name a session's file.
fn is_name(session: &str) -> bool {
    !session.is_empty() && Path::new(session).components().count() == 1
}

/// Returns hermes' provenance of a session that was never compacted.
pub fn root_provenance(session: &str, current: &str) -> Value {
    json!({
        "acpSessionId": session,
        "currentHermesSessionId": current,
        "rootHermesSessionId": current,
        "parentHermesSessionId": null,
        "sessionKind": "root",
        "compressionDepth": 0,
    })
}
