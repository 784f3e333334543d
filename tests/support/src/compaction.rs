//! Requests and waits of tests of compactions, and a turn whose words are performed one by one.

use serde_json::{Value, json};

use super::{
    Server, eventually,
    http::Reply,
    server::{TERMINAL, encode},
};

impl Server {
    /// Returns all items of one of the group's lists, in its order.
    #[track_caller]
    pub fn list(&self, group: &str, what: &str) -> Vec<Value> {
        let page = self.get(&format!("/v1/groups/{group}/{what}")).expect(200);
        page["items"].as_array().unwrap_or_else(|| panic!("no items in {page}")).clone()
    }

    /// The group's compactions, the newest first.
    #[track_caller]
    pub fn compactions(&self, group: &str) -> Vec<Value> {
        self.list(group, "compactions")
    }

    /// The group's only compaction.
    #[track_caller]
    pub fn only_compaction(&self, group: &str) -> Value {
        let all = self.compactions(group);
        assert_eq!(all.len(), 1, "not exactly one compaction: {all:?}\n{}", self.log.tail());
        all[0].clone()
    }

    /// The compaction that this task ordered.
    #[track_caller]
    pub fn compaction_of(&self, task: &Value) -> Value {
        let all = self.compactions(task["group"].as_str().unwrap());
        let found = all.iter().find(|compaction| compaction["task"] == task["id"]);
        found
            .unwrap_or_else(|| panic!("no compaction of {task} in {all:?}\n{}", self.log.tail()))
            .clone()
    }

    /// The group's segments, the oldest first.
    #[track_caller]
    pub fn segments(&self, group: &str) -> Vec<Value> {
        self.list(group, "segments")
    }

    /// Returns the current state of the compaction tasks that the group ordered automatically.
    #[track_caller]
    pub fn auto_compactions(&self, group: &str) -> Vec<Value> {
        let mut tasks = self.list(group, "tasks?kind=compaction");
        tasks.retain(|task| task["origin"] == "auto");
        tasks
    }

    /// Checks the count of compactions, and that each of them rotated the segment once.
    #[track_caller]
    pub fn assert_compacted(&self, group: &str, times: usize) {
        let shown = self.group(group);
        let tail = self.log.tail();
        let count = shown["compaction"]["count"].as_u64().unwrap_or(0);
        assert_eq!(count, times as u64, "{shown}\n{tail}");
        let segments = self.segments(group);
        let compacted = segments.iter().filter(|segment| segment["end_reason"] == "compaction");
        assert_eq!(compacted.count(), times, "{segments:?}\n{tail}");
        let open = segments.iter().filter(|segment| segment["closed_seq"].is_null());
        assert_eq!(open.count(), 1, "one segment is open (AM-11): {segments:?}");
        let all = self.compactions(group);
        let completed = all.iter().filter(|compaction| compaction["status"] == "completed");
        assert_eq!(completed.count(), times, "{all:?}\n{tail}");
    }

    /// Orders a compaction with this focus.
    #[track_caller]
    pub fn compact_with(&self, group: &str, focus: &str) -> Value {
        let path = format!("/v1/groups/{group}/compactions");
        self.post(&path, &json!({ "focus": focus })).expect(202)
    }

    /// The id of the group's session.
    #[track_caller]
    pub fn session(&self, group: &str) -> String {
        let shown = self.group(group);
        shown["session_id"].as_str().unwrap_or_else(|| panic!("no session in {shown}")).to_owned()
    }

    /// Reads the compaction lock of a session.
    #[track_caller]
    pub fn lock(&self, session: &str) -> Reply {
        self.get(&lock_path(session))
    }

    /// Requests the compaction lock of a session, as an external program does.
    #[track_caller]
    pub fn acquire_lock(&self, session: &str, holder: &str) -> Reply {
        self.put(&lock_path(session), &json!({ "holder": holder, "ttl_ms": 60_000 }))
    }

    /// Releases a lock that [`Self::acquire_lock`] acquired.
    #[track_caller]
    pub fn release_lock(&self, lock: &Value) {
        let session = lock["key"].as_str().unwrap();
        let (holder, token) = (lock["holder"].as_str().unwrap(), &lock["token"]);
        let query = format!("?holder={}&token={token}", encode(holder));
        self.delete(&format!("{}{query}", lock_path(session))).expect(204);
    }

    /// Runs a turn whose words are performed one by one: each waits until the output of the word
    /// before it, on stdout or stderr, is in the transcript. Returns the ended task.
    ///
    /// A step sends one `session/update`, or one stderr line that the profile keeps; it may also
    /// hold words that send nothing.
    #[track_caller]
    pub fn play(&self, group: &str, steps: &[&str]) -> Value {
        let round = self.journal.prompts().len();
        let gate = |step: usize| format!("played-{round}-{step}");
        let words = steps.iter().enumerate();
        let words = words.map(|(number, step)| format!("{step}[[gate:{}]]", gate(number)));
        let prompt = format!("{}[[reply:played]]", words.collect::<String>());
        let before = self.group_or_null(group)["last_seq"].as_u64().unwrap_or(0);
        let task = self.submit(group, &prompt);
        for number in 0..steps.len() {
            eventually(&format!("step {number} of {steps:?}"), &self.log, || {
                let state = &self.task(&task)["state"];
                assert!(
                    !TERMINAL.contains(&state.as_str().unwrap()),
                    "ended in {state}: {steps:?}"
                );
                let gates = self.journal.events_named("gate");
                let waits = gates.iter().any(|event| event["name"] == gate(number));
                (waits && number < self.signals_after(group, before)).then_some(())
            });
            self.journal.open_gate(&gate(number));
        }
        self.finish(&task)
    }

    /// Waits until the transcript holds this number of stderr lines.
    #[track_caller]
    pub fn wait_stderr_frames(&self, group: &str, count: usize) {
        eventually(&format!("{count} lines of stderr in the transcript"), &self.log, || {
            let kept = self.frames_of_kind(group, "greenroom/stderr");
            (count <= kept.len()).then_some(())
        });
    }

    /// Counts the updates and kept stderr lines of the transcript after this frame.
    #[track_caller]
    fn signals_after(&self, group: &str, seq: u64) -> usize {
        let frames = self.frames_where(group, &format!("&after={seq}"));
        let counts = |frame: &&Value| {
            let update = &frame["payload"]["params"]["update"]["sessionUpdate"];
            frame["kind"] == "greenroom/stderr"
                || frame["kind"] == "session/update" && update != "available_commands_update"
        };
        frames.iter().filter(counts).count()
    }

    fn group_or_null(&self, group: &str) -> Value {
        let reply = self.get(&format!("/v1/groups/{group}"));
        if reply.status == 200 { reply.json() } else { Value::Null }
    }
}

fn lock_path(session: &str) -> String {
    format!("/v1/locks/{}", encode(session).replace('/', "%2F"))
}
