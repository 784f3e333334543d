//! I9, AM-5, TD-10: a task ends once and for good, as its record says; a request to cancel it is
//! not its outcome; a completed turn without an answer has a finding.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use greenroom_core::{EndReason, Fact, Recorded, StopReason, TaskId, TaskKind, TaskState};

use super::{Begun, Checked, Invariant, ensure, record};

#[derive(Default)]
pub struct OneOutcome {
    in_world: bool,
    kinds: BTreeMap<TaskId, TaskKind>,
    ended: BTreeSet<TaskId>,
    cancel_requested: BTreeSet<TaskId>,
    /// Whether any output of the prompt in flight is an answer.
    has_answer: bool,
    /// Whether a compaction was ordered that the agent may yet complete in the next prompt.
    is_unfinished: bool,
    /// Whether another session answered since the prompted one's last output.
    is_answered_elsewhere: bool,
    /// Whether the agent may replay its session in it.
    may_replay: bool,
    /// Whether there was an answer in the messages of earlier turns, after all of its own output:
    /// that is its own answer, if it had no other.
    may_be_answered_late: bool,
}

impl OneOutcome {
    fn ended(&mut self, fact: &Fact) -> Checked {
        let Fact::TaskEnded { task, kind, state, stop_reason, findings, .. } = fact else {
            return Ok(());
        };
        ensure!(self.ended.insert(*task), "I9: {task} ends twice");
        ensure!(state.is_terminal(), "I9: {task} ends {state:?}");
        let queued = self.kinds.get(task).copied();
        // A frame of an earlier version lacks the kind: it is read as a turn's.
        let is_known = self.in_world || *kind != TaskKind::Turn;
        let is_same = queued.is_none_or(|queued| queued == *kind);
        ensure!(is_same || !is_known, "I9: {task} is a {queued:?} and ends as a {kind:?}");
        let is_turn = queued == Some(TaskKind::Turn);
        let skipped = *state == TaskState::Skipped;
        ensure!(!skipped || !is_turn, "DQ-3: {task} is a turn and was skipped");
        let is_plain = |by: &StopReason| *by == StopReason::EndTurn || by.is_unclear();
        let completed =
            *state == TaskState::Completed && stop_reason.as_ref().is_some_and(is_plain);
        let is_empty = is_turn && completed && !self.has_answer;
        let found = findings.has_empty_answer;
        let is_sure = self.in_world && (self.has_answer || !self.may_be_answered_late);
        ensure!(!is_sure || found == is_empty, "TD-10: {task}: {found}, not {is_empty}");
        let is_summary = findings.is_answered_by_compaction;
        let may_be = is_turn && completed && self.is_unfinished;
        ensure!(
            !self.in_world || !is_summary || may_be,
            "RA: {task} has the summary of no earlier compaction"
        );
        self.is_unfinished &= !(is_turn && completed);
        Ok(())
    }

    /// Checks that the record of an ended task has what the fact says.
    fn check_record(&self, fact: &Fact) -> Checked {
        let Fact::TaskEnded {
            task,
            kind,
            attempt: _,
            state,
            stop_reason,
            error,
            interrupted,
            findings,
            record: ended,
        } = fact
        else {
            return Ok(());
        };
        let Some(ended) = record(*task, ended) else { return Ok(()) };
        let requested = self.cancel_requested.contains(task);
        ensure!(ended.cancel_requested == requested, "AM-5: {ended:?}");
        let ending = ended.ending();
        let is_same = (ended.state(), ended.kind()) == (*state, *kind)
            && ending.stop_reason == *stop_reason
            && ending.error == *error
            && ending.interrupted == *interrupted
            && ending.findings == *findings;
        ensure!(is_same, "I9: the record of {task} ends otherwise: {ended:?}");
        Ok(())
    }
}

impl Invariant for OneOutcome {
    fn follows(&self) -> &'static [&'static str] {
        &["task_queued", "cancel_requested", "task_ended"]
    }

    fn begin(&mut self, _step: &Rc<Begun>) {
        self.in_world = true;
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::TaskQueued { task, kind, .. } => drop(self.kinds.insert(*task, *kind)),
            Fact::TaskClaimed { task }
            | Fact::TaskReleased { task }
            | Fact::TaskStarted { task, .. }
            | Fact::TaskRetrying { task, .. }
            | Fact::TurnSettled { task, .. } => {
                ensure!(!self.ended.contains(task), "I9: {task} ended before {fact:?}");
            }
            Fact::TurnStarted { task, after_restore, .. } => {
                ensure!(!self.ended.contains(task), "I9: {task} ended before {fact:?}");
                self.may_replay = *after_restore;
            }
            Fact::PromptSent { .. } => {
                (self.has_answer, self.is_answered_elsewhere) = (false, false);
                self.may_be_answered_late = false;
            }
            Fact::AgentOutput(output) if output.late.is_some() => {
                let is_early = output.summary.is_early;
                self.may_be_answered_late |= output.summary.has_answer && !is_early;
            }
            Fact::AgentOutput(output) => {
                self.may_be_answered_late &= !output.summary.has_output;
                self.has_answer &= !(output.summary.is_users && self.may_replay);
                self.has_answer |= output.summary.has_answer;
                self.is_answered_elsewhere &=
                    !(output.summary.has_output && output.summary.is_named);
                let elsewhere = output.summary.elsewhere();
                self.is_answered_elsewhere |= elsewhere.is_some_and(|other| other.has_answer);
            }
            Fact::SegmentEnded { end_reason: EndReason::AcpSessionIdChanged, .. } => {
                self.has_answer |= self.is_answered_elsewhere;
            }
            Fact::CompactionEnded(ended) => self.is_unfinished |= ended.may_answer_next,
            Fact::CancelRequested { task } => {
                let is_first = self.cancel_requested.insert(*task);
                ensure!(is_first, "AM-5: {task} is cancelled twice");
            }
            Fact::TaskEnded { .. } => {
                self.ended(fact)?;
                self.check_record(fact)?;
            }
            _ => {}
        }
        Ok(())
    }
}
