//! The scripted agent's control directory: its journal, which is the ground truth, and its gates.

use std::{fs, path::PathBuf};

use serde_json::Value;

use super::{Log, eventually};

/// The journal that all scripted agents of one server share.
#[derive(Clone)]
pub struct Journal {
    directory: PathBuf,
    log: Log,
}

impl Journal {
    pub fn new(directory: PathBuf, log: Log) -> Self {
        Self { directory, log }
    }

    /// All events so far, in the order in which they were written.
    pub fn events(&self) -> Vec<Value> {
        let text = fs::read(self.directory.join("journal.jsonl")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    pub fn events_named(&self, name: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["event"] == name).collect()
    }

    /// The texts of the prompts received so far, in order.
    pub fn prompts(&self) -> Vec<String> {
        self.prompts_where(|_| true)
    }

    /// Counts the prompts with exactly this text.
    pub fn times(&self, text: &str) -> usize {
        self.prompts().iter().filter(|prompt| *prompt == text).count()
    }

    /// Waits for an event that `fits` accepts.
    #[track_caller]
    pub fn wait(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(what, &self.log, || self.events().into_iter().find(&fits))
    }

    /// Waits until a prompt with exactly this text has reached an agent: its turn is running.
    #[track_caller]
    pub fn wait_prompt(&self, text: &str) -> Value {
        self.wait(&format!("the prompt {text:?} in the journal"), |event| {
            event["event"] == "prompt" && event["text"] == text
        })
    }

    /// Waits until an agent waits at the gate.
    #[track_caller]
    pub fn wait_gate(&self, name: &str) {
        self.wait(&format!("an agent at the gate {name:?}"), |event| {
            event["event"] == "gate" && event["name"] == name
        });
    }

    /// The pid of the agent that started last.
    pub fn agent_pid(&self) -> u32 {
        let starts = self.events_named("start");
        let pid = starts.last().expect("an agent has started")["pid"].as_u64();
        u32::try_from(pid.unwrap()).unwrap()
    }

    /// Closes an open gate.
    pub fn close_gate(&self, name: &str) {
        fs::remove_file(self.directory.join(name)).unwrap();
    }

    /// Opens a gate, until [`Self::close_gate`].
    pub fn open_gate(&self, name: &str) {
        fs::write(self.directory.join(name), "").unwrap();
    }

    /// Scripts the agent's reaction where no caller's prompt can, from now on: `on-compact`,
    /// `on-summary` or `on-new`.
    pub fn script(&self, name: &str, words: &str) {
        // Atomically, because an agent may be reading it.
        let draft = self.directory.join(format!("{name}.draft"));
        fs::write(&draft, words).unwrap();
        fs::rename(draft, self.directory.join(name)).unwrap();
    }

    /// The prompts that this session received, in order.
    pub fn prompts_of(&self, session: &str) -> Vec<String> {
        self.prompts_where(|event| event["session"] == session)
    }

    fn prompts_where(&self, fits: impl Fn(&&Value) -> bool) -> Vec<String> {
        let prompts = self.events_named("prompt");
        let texts = prompts.iter().filter(fits).map(|event| event["text"].as_str().unwrap());
        texts.map(str::to_owned).collect()
    }

    /// The highest number of prompts that were open, received but not answered, at one time over
    /// all agents.
    ///
    /// The prompt of an agent that died counts until the agent's next prompt in that session.
    pub fn most_at_once(&self) -> usize {
        let mut open: Vec<Value> = Vec::new();
        let mut most = 0;
        for event in self.events() {
            match event["event"].as_str() {
                Some("prompt") => {
                    open.retain(|session| *session != event["session"]);
                    open.push(event["session"].clone());
                }
                Some("answer") => open.retain(|session| *session != event["session"]),
                _ => {}
            }
            most = most.max(open.len());
        }
        most
    }

    /// Checks that no session ever received a prompt while another of its prompts was open (I1).
    #[track_caller]
    pub fn assert_one_at_a_time(&self) {
        let overlaps = self.events_named("overlap");
        assert!(overlaps.is_empty(), "prompts overlapped: {overlaps:?}\n{}", self.log.tail());
    }
}
