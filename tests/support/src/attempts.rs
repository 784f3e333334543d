//! Requests and waits of tests of attempts, interruptions and held groups.

use std::process::Output;

use serde_json::{Value, json};

use super::{
    Server, Setup, eventually,
    http::Reply,
    server::{TERMINAL, greenroom, id},
};

/// Parses a time of the API (RFC 3339, UTC, with milliseconds) into milliseconds since 1970.
#[track_caller]
pub fn millis(time: &Value) -> i64 {
    let text = time.as_str().unwrap_or_else(|| panic!("no time: {time}"));
    assert!(text.len() == 24 && text.ends_with('Z'), "not UTC with milliseconds: {text}");
    let number = |from: usize, to: usize| text[from..to].parse::<i64>().unwrap();
    let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
    // March is the first month of a year whose last day may be the leap day.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    let since_1970 = days - 719_469;
    let seconds = number(11, 13) * 3_600 + number(14, 16) * 60 + number(17, 19);
    (since_1970 * 86_400 + seconds) * 1_000 + number(20, 23)
}

impl Setup {
    /// Adds a profile whose agents cannot restore a session.
    pub fn forgetful(self) -> Self {
        self.agent("forgetful", &["--no-resume", "--no-load"])
    }

    /// Adds a profile whose agents exit with 1 at their start, until the gate `open` is open.
    pub fn crashing(self) -> Self {
        self.agent("crashing", &["--exit-until", "open"])
    }
}

impl Server {
    /// Creates the group with this agent and, unless it is empty, this `on_interrupt`.
    #[track_caller]
    pub fn create_group(&self, group: &str, agent: &str, on_interrupt: &str) -> Value {
        let mut body = json!({ "agent": agent });
        if !on_interrupt.is_empty() {
            body["on_interrupt"] = json!(on_interrupt);
        }
        self.put(&format!("/v1/groups/{group}"), &body).expect(201)
    }

    /// Waits until the task has this `blocked_by`; it must not have ended.
    #[track_caller]
    pub fn wait_blocked(&self, task: &Value, by: &str) -> Value {
        eventually(&format!("a task that is blocked by {by}"), &self.log, || {
            let task = self.task(task);
            let ended = TERMINAL.contains(&task["state"].as_str().unwrap());
            assert!(!ended, "ended, not blocked by {by}: {task}\n{}", self.log.tail());
            (task["blocked_by"] == by).then_some(task)
        })
    }

    /// Waits until the task is between two attempts.
    #[track_caller]
    pub fn wait_retrying(&self, task: &Value) -> Value {
        let waiting = self.wait_blocked(task, "backoff");
        assert_eq!(waiting["state"], "retrying", "{waiting}");
        waiting
    }

    /// Waits until the group has this status.
    #[track_caller]
    pub fn wait_status(&self, group: &str, status: &str) -> Value {
        self.wait_group(group, status, |group| group["status"] == status)
    }

    /// Waits until the group is purged.
    #[track_caller]
    pub fn wait_purged(&self, group: &str) {
        eventually("the purge", &self.log, || {
            (self.get(&format!("/v1/groups/{group}")).status == 404).then_some(())
        });
    }

    #[track_caller]
    pub fn resume(&self, group: &str) {
        self.post(&format!("/v1/groups/{group}/resume"), &json!({})).expect(202);
    }

    /// Requests a retry of the task.
    #[track_caller]
    pub fn retry(&self, task: &Value) -> Reply {
        self.post(&format!("/v1/tasks/{}/retry", id(task)), &json!({}))
    }

    /// The task's frames of one kind, in order.
    #[track_caller]
    pub fn task_frames(&self, task: &Value, kind: &str) -> Vec<Value> {
        let mut frames = self.frames_of_kind(task["group"].as_str().unwrap(), kind);
        frames.retain(|frame| frame["task"] == task["id"]);
        frames
    }

    /// Checks that the ended task took this number of attempts: each was started, sent once and
    /// settled before the next, and the task ended once (I7, I9).
    #[track_caller]
    pub fn assert_attempts(&self, task: &Value, attempts: usize) {
        let ended = self.task(task);
        let tail = self.log.tail();
        assert_eq!(ended["attempt"], attempts, "{ended}\n{tail}");
        let one = ["greenroom/turn_started", "session/prompt", "greenroom/turn_settled"];
        let mut frames = self.frames(task["group"].as_str().unwrap());
        frames.retain(|frame| {
            frame["task"] == task["id"] && one.iter().any(|kind| frame["kind"] == *kind)
        });
        let kinds: Vec<&Value> = frames.iter().map(|frame| &frame["kind"]).collect();
        assert_eq!(kinds, one.repeat(attempts), "{ended}\n{tail}");
        assert_eq!(self.task_frames(task, "greenroom/task_ended").len(), 1, "{ended}\n{tail}");
    }

    /// Runs the command line against this server and waits for its end.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = greenroom(&self.home, arguments);
        command.env("GREENROOM_URL", format!("http://{}", self.address()));
        command.output().unwrap()
    }

    /// Returns the stdout of [`Self::cli`], which must succeed.
    #[track_caller]
    pub fn cli_stdout(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {}: {stdout}{stderr}", output.status);
        stdout.into_owned()
    }
}
