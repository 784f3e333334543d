//! The projection of facts onto a group's state: which fact changes what.
//!
//! Each change is in the file of its noun, beside the decision that records the fact.

use super::{Existence, Group, LaunchWait, lock::LockState};
use crate::{Fact, MessageOwners, Place, Recorded, RunPhase, Timestamp};

impl Group {
    /// Gives the next fact its place in the log, and applies it.
    pub fn record(&mut self, fact: Fact, at: Timestamp) -> Recorded {
        let recorded = Recorded { place: self.place(&fact), fact };
        self.replay(&recorded, at);
        recorded
    }

    /// Returns the place in the log that the next fact has if it is `fact`.
    pub fn place(&self, fact: &Fact) -> Place {
        Place {
            seq: self.next_seq(),
            segment: match fact {
                Fact::SegmentStarted { segment, .. } => *segment,
                _ => self.state.segment,
            },
            run: match fact {
                Fact::RunStarted { run, .. } => Some(*run),
                _ => self.run.as_ref().map(|run| run.id),
            },
            task: match fact {
                // Not a task that is only claimed: the agent does not have its prompt.
                Fact::AgentOutput(output) => output.late.or(self.task_of_attempt()),
                fact => fact.task().or(self.current().map(|task| task.id)),
            },
        }
    }

    /// Applies one fact. Nothing else changes the state, live or at recovery (I13).
    pub fn replay(&mut self, recorded: &Recorded, at: Timestamp) {
        let Recorded { place, fact } = recorded;
        self.state.last_seq = recorded.last_seq();
        self.session_cursor.apply(fact);
        self.note_output(fact);
        match fact {
            Fact::GroupCreated(settings) => self.apply_created(settings, at),
            Fact::GroupChanged(settings) => self.apply_changed(settings),
            Fact::GroupArchived {} => self.apply_archived(fact),
            Fact::PurgeOrdered {} => self.state.existence = Existence::Purging,
            Fact::GroupPaused {} => self.state.paused = true,
            Fact::GroupResumed {} => self.apply_resumed(),
            Fact::GroupHeld { reason } => self.state.hold.reason = Some(*reason),

            Fact::TaskQueued { record, .. } => self.apply_queued(record),
            Fact::TaskClaimed { task } => self.apply_claimed(*task, at),
            Fact::TaskReleased { .. } => self.apply_released(),
            Fact::TaskStarted { task, attempt, run } => {
                self.apply_started(*task, *attempt, *run, (place, at));
            }
            Fact::TaskRetrying { task, attempt, error, due, .. } => {
                self.apply_retrying(*task, *attempt, error, *due);
            }
            Fact::BackoffEnded { task } => self.apply_backoff_ended(*task),
            Fact::TaskEnded { task, kind, state, stop_reason, .. } => {
                self.apply_ended(*task, *kind, *state, *stop_reason);
            }

            Fact::TurnStarted { task, prompt, strategy, after_restore } => {
                self.apply_turn_started(*task, prompt, *strategy, *after_restore);
            }
            Fact::PromptSent { .. } => self.apply_prompt_sent(place.seq),
            Fact::AgentOutput(output) => self.apply_output(output, place.task),
            Fact::RequestRefused { run, .. } | Fact::AgentOutputRejected { run, .. } => {
                if fact.is_bare_output() {
                    self.apply_bare_output(*run, fact);
                }
            }
            Fact::CancelRequested { .. } => self.apply_cancel_requested(fact),
            Fact::CancelSent { run } => self.apply_cancel_sent(*run),
            Fact::TurnCut { .. } => self.apply_to_attempt(fact),
            Fact::TurnSettled { task, stop_reason, early_bytes, .. } => {
                self.apply_settled(*task, *stop_reason, *early_bytes);
            }

            Fact::RunStarted { run, has_detectors, .. } => {
                self.message_owners = MessageOwners::default();
                self.apply_run_started(*run, *has_detectors)
            }
            Fact::RunReady { session, provenance, continuity, is_forgetful, prompts, .. } => {
                self.apply_run_ready(session, provenance.as_ref(), *continuity, *prompts);
                self.run.iter_mut().for_each(|run| run.is_forgetful = *is_forgetful);
            }
            Fact::RunStopping { .. } => self.set_phase(RunPhase::Stopping),
            Fact::RunExited { exit, .. } => self.apply_run_exited(exit),
            Fact::AgentDegraded { due, .. } => {
                self.state.crash_loop.launch_wait = Some((*due).into());
            }
            Fact::AgentAuthRequired { starts, due, .. } => {
                let wait = LaunchWait { logins: *starts, ..(*due).into() };
                self.state.crash_loop.launch_wait = Some(wait);
            }
            Fact::LaunchAllowed {} => self.state.crash_loop.end_wait(),
            Fact::AgentWedged { .. } => self.apply_wedged(),

            Fact::SegmentStarted { segment, session, provenance, .. } => {
                self.apply_segment_started(*segment, session, provenance.as_ref());
            }
            Fact::ProvenanceNoted { provenance } => self.apply_provenance(provenance),
            Fact::ContextLost { .. } => {
                self.state.session = None;
                self.state.compacting.forget_unfinished();
            }

            Fact::CompactionStarted(compaction)
            | Fact::CompactionUpdated(compaction)
            | Fact::CompactionEnded(compaction) => self.apply_compaction(compaction, at),
            Fact::CompactionRests { due, lock_held } => {
                self.state.compacting.pause_auto_compact(*due, *lock_held);
            }
            Fact::SummaryGiven { .. } => self.apply_summary_given(place.seq),

            Fact::LockAsked { task } => self.apply_lock_asked(*task),
            Fact::LockRefused { task, .. } => self.apply_lock_refused(*task),
            Fact::LockTaken { task, key, holder, token } => {
                self.apply_lock_taken(*task, key, holder, *token);
            }
            Fact::LockBypassed { task, .. } => self.lock = LockState::Bypassed { task: *task },
            Fact::LockLost { task } => self.lock = LockState::Lost { task: *task },
            Fact::LockReleased { .. } => self.lock = LockState::Unasked,

            Fact::PermissionOpened(permission) => self.apply_permission_opened(permission),
            Fact::PermissionResolved { permission, .. } => {
                self.apply_permission_resolved(*permission);
            }

            Fact::PromptAnswered(_) | Fact::SegmentEnded { .. } | Fact::StderrMatched { .. } => {}
        }
    }
}
