//! How a run ends: its reason, and the escalation from a closed stdin to TERM and KILL.
//!
//! Owns the hold on the process tree. It decides on no time of its own: the loop calls
//! [`Termination::escalate`] at [`Termination::escalates_at`].

use std::{rc::Rc, time::Duration};

use greenroom_core::{Exit, ExitReason, FailedStart, Stop};

use super::{stderr::Stderr, stdin::Stdin};
use crate::{
    awake::{self, Awake},
    process::child::{TreeEvent, TreeHandle},
};

/// From closing stdin to TERM.
const TERM_AFTER: Duration = Duration::from_secs(2);
/// From TERM to KILL.
const KILL_AFTER: Duration = Duration::from_secs(5);

/// How the detail of an exit ends, if the agent exited by itself before it was ready.
pub const BEFORE_READY: &str = "before it was ready";

/// The end of one run, from its first reason to the end of its process tree.
pub struct Termination {
    tree: TreeHandle,
    stdin: Rc<Stdin>,
    /// Whether the agent was ready once; a protocol error before that is a failed start.
    is_ready: bool,
    escalation: Escalation,
    /// The first reason to end the run.
    reason: Option<(ExitReason, String)>,
    /// The exit code or the signal of the main process.
    status: Option<(Option<i32>, Option<i32>)>,
    /// Whether the agent closed its stdin.
    hung_up: bool,
    /// Why processes of the tree may be left.
    leftovers: Option<String>,
    /// Whether the process tree is gone; until then its pipes are read.
    is_gone: bool,
}

/// The stop escalation.
#[derive(Clone, Copy, Debug)]
enum Escalation {
    Unused,
    TermAt(Awake),
    KillAt(Awake),
    Killed,
}

impl Termination {
    /// Holds the tree of a run that has just been spawned.
    pub fn new(tree: TreeHandle, stdin: Rc<Stdin>) -> Self {
        Self {
            tree,
            stdin,
            is_ready: false,
            escalation: Escalation::Unused,
            reason: None,
            status: None,
            hung_up: false,
            leftovers: None,
            is_gone: false,
        }
    }

    /// Returns the next event of the process tree. Cancel safe.
    pub async fn next_event(&mut self) -> TreeEvent {
        self.tree.next().await
    }

    /// Returns when to call [`Self::escalate`].
    pub fn escalates_at(&self) -> Option<Awake> {
        match self.escalation {
            Escalation::TermAt(at) | Escalation::KillAt(at) => Some(at),
            Escalation::Unused | Escalation::Killed => None,
        }
    }

    /// Whether there is a reason to end the run.
    pub fn has_reason(&self) -> bool {
        self.reason.is_some()
    }

    /// Whether the run ends because the ready agent broke the protocol.
    pub fn is_protocol_error(&self) -> bool {
        matches!(self.reason, Some((ExitReason::Protocol, _)))
    }

    /// Whether nothing has begun to end the run.
    pub fn is_unused(&self) -> bool {
        self.reason.is_none() && matches!(self.escalation, Escalation::Unused)
    }

    /// Whether the process tree is gone.
    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// Records that the agent is ready.
    pub fn on_ready(&mut self) {
        self.is_ready = true;
    }

    /// Records how the main process ended.
    pub fn on_exited(&mut self, code: Option<i32>, signal: Option<i32>) {
        self.status = Some((code, signal));
    }

    /// Records that processes of the tree may be left.
    pub fn on_left(&mut self, why: String) {
        self.leftovers = Some(why);
    }

    /// Records that the process tree is gone.
    pub fn on_gone(&mut self) {
        self.is_gone = true;
    }

    /// Starts the escalation after the agent closed its stdout, unless it has started.
    pub fn on_stdout_closed(&mut self) {
        if matches!(self.escalation, Escalation::Unused) {
            self.stdin.close();
            self.escalation = Escalation::TermAt(awake::now() + TERM_AFTER);
        }
    }

    /// Starts the escalation after the agent closed its stdin.
    pub fn on_hung_up(&mut self) {
        self.hung_up = true;
        self.escalation = Escalation::TermAt(awake::now() + TERM_AFTER);
    }

    /// Stops the tree: closes stdin, and terminates the tree after a while or at once, or kills it.
    pub fn stop(&mut self, how: Stop) {
        let why = "stopped by greenroom";
        let term_at = match how {
            Stop::Gently => awake::now() + TERM_AFTER,
            Stop::Firmly => awake::now(),
            Stop::AtOnce => return self.kill(ExitReason::Stopped, why),
        };
        if let Escalation::Unused | Escalation::TermAt(_) = self.escalation {
            self.set_reason(ExitReason::Stopped, why);
            self.stdin.close();
            self.escalation = Escalation::TermAt(term_at);
        }
    }

    /// Takes the next step of the escalation.
    pub fn escalate(&mut self) {
        self.escalation = match self.escalation {
            Escalation::TermAt(_) => {
                if self.hung_up && self.status.is_none() {
                    self.set_reason(ExitReason::Protocol, "the agent closed its stdin");
                }
                self.tree.terminate();
                Escalation::KillAt(awake::now() + KILL_AFTER)
            }
            Escalation::Unused | Escalation::KillAt(_) | Escalation::Killed => {
                self.tree.kill();
                Escalation::Killed
            }
        };
    }

    /// Kills the tree; the first reason to end the run counts.
    pub fn kill(&mut self, reason: ExitReason, why: &str) {
        self.set_reason(reason, why);
        self.stdin.close();
        self.tree.kill();
        self.escalation = Escalation::Killed;
    }

    fn set_reason(&mut self, reason: ExitReason, why: &str) {
        let reason = match reason {
            ExitReason::Protocol if !self.is_ready => ExitReason::StartFailed,
            reason => reason,
        };
        self.reason.get_or_insert_with(|| (reason, why.to_owned()));
    }

    /// Returns why processes of the tree may be left.
    pub fn leftovers(&self) -> Option<&str> {
        self.leftovers.as_deref()
    }

    /// Returns the exit to report, once the tree is gone.
    pub fn exit(&mut self, pid: Option<u32>, stderr: &Stderr) -> Exit {
        let (code, signal) = self.status.unwrap_or_default();
        let how = match (code, signal) {
            (Some(code), _) => format!("the agent exited with code {code}"),
            (None, Some(signal)) => format!("the agent was ended by signal {signal}"),
            (None, None) => "the agent is gone and left no exit code".into(),
        };
        let (reason, detail) = match self.reason.take() {
            Some(reason) => reason,
            None if !self.is_ready => (ExitReason::StartFailed, format!("{how} {BEFORE_READY}")),
            None => (ExitReason::Exited, how),
        };
        let detail = match &self.leftovers {
            Some(why) => format!("{detail}; {why}"),
            None => detail,
        };
        let stderr_tail = stderr.tail();
        let stderr_dropped = stderr.dropped();
        let failed_start = FailedStart::Passing;
        Exit { pid, code, signal, reason, detail, stderr_tail, stderr_dropped, failed_start }
    }
}
