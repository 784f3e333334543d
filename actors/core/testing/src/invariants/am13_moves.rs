//! AM-13: the group follows its agent to another session only at the end of a turn that the agent
//! continued there alone, with no tool call open, and never back to a session that it left. A
//! compaction by another session opens its own, and one by the agent's command moves with its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use greenroom_core::{
    CompactionStatus, EndReason, Fact, Recorded, SessionId, Strategy, TaskId, ToolUpdate, Work,
};

use super::{Begun, Checked, Invariant, ensure};

#[derive(Default)]
pub struct Moves {
    in_world: bool,
    in_force: Option<SessionId>,
    left: BTreeSet<SessionId>,
    /// The other sessions that had output since the prompted one's last output.
    elsewhere: BTreeSet<SessionId>,
    /// Whether the next segment begins because the agent moved.
    moves: bool,
    /// Whether the prompt in flight is being cancelled.
    is_cut: bool,
    /// The tool calls of the prompt in flight that have begun and not ended.
    open_tools: BTreeSet<String>,
    /// How the accepted compactions compact, and whether the prompt in flight is one by another
    /// session.
    strategies: BTreeMap<TaskId, Strategy>,
    rotates: bool,
    /// Whether a compaction was completed in this step.
    is_compacted: bool,
    /// Whether the next fact is a turn's end.
    settles: bool,
}

impl Moves {
    fn enter(&mut self, session: &SessionId) -> Checked {
        if self.in_force.as_ref() == Some(session) {
            return Ok(());
        }
        if std::mem::take(&mut self.moves) && self.in_world {
            ensure!(!self.is_compacted, "AM-13: a compaction and a move rotate in one step");
            ensure!(!self.rotates, "AM-13: a move in a compaction that opens its own session");
            let open = &self.open_tools;
            ensure!(open.is_empty(), "AM-13: a move while {open:?} are open");
            let target: Vec<_> = self.elsewhere.iter().collect();
            ensure!(target == [session], "AM-13: a move to {session}, and {target:?} had output");
            ensure!(!self.left.contains(session), "AM-13: a move back to {session}");
            ensure!(!self.is_cut, "AM-13: a move at the end of a turn that was cut");
            self.settles = true;
        }
        self.left.remove(session);
        self.left.extend(self.in_force.replace(session.clone()));
        Ok(())
    }
}

impl Moves {
    fn tool(&mut self, update: &ToolUpdate) {
        if update.is_open() {
            self.open_tools.insert(update.call.clone());
        } else {
            self.open_tools.remove(&update.call);
        }
    }
}

impl Invariant for Moves {
    fn begin(&mut self, _step: &Rc<Begun>) {
        self.in_world = true;
        self.is_compacted = false;
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        if std::mem::take(&mut self.settles) {
            let is_end = matches!(
                fact,
                Fact::PermissionResolved { .. }
                    | Fact::CompactionEnded(_)
                    | Fact::CompactionUpdated(_)
                    | Fact::LockReleased { .. }
                    | Fact::SummaryGiven { .. }
                    | Fact::AgentWedged { .. }
                    | Fact::TurnSettled { .. }
            );
            ensure!(is_end, "AM-13: the agent moved, and the turn does not end: {fact:?}");
        }
        match fact {
            Fact::TaskQueued { task, record, .. } => {
                if let Work::Compaction { strategy, .. } = record.work {
                    self.strategies.insert(*task, strategy);
                }
            }
            Fact::TurnStarted { task, strategy, .. } => {
                let strategy = strategy.or_else(|| self.strategies.get(task).copied());
                self.rotates = strategy == Some(Strategy::Rotate);
            }
            Fact::CompactionEnded(ended) => {
                self.is_compacted |= ended.status == CompactionStatus::Completed;
            }
            Fact::PromptSent { .. } => {
                self.elsewhere.clear();
                self.open_tools.clear();
                self.is_cut = false;
            }
            Fact::CancelRequested { .. } | Fact::TurnCut { .. } => self.is_cut = true,
            Fact::AgentOutput(output) if output.late.is_none() => {
                if output.summary.has_output && output.summary.is_named {
                    self.elsewhere.clear();
                }
                output.summary.tools.iter().for_each(|update| self.tool(update));
                let other = output.summary.elsewhere();
                self.elsewhere.extend(other.map(|other| other.session.clone()));
            }
            Fact::SegmentEnded { end_reason, .. } => {
                self.moves = *end_reason == EndReason::AcpSessionIdChanged;
            }
            Fact::SegmentStarted { session, .. } => self.enter(session)?,
            Fact::ContextLost { .. } => self.left.extend(self.in_force.take()),
            _ => {}
        }
        Ok(())
    }
}
