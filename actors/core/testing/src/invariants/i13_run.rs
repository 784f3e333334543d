//! I13: what a group knows of its run is what the facts say: its phase, its profile's detectors,
//! whether the agent or the directory changed since, what became of its prompts and of the cancels
//! that it was sent, and who reports its compactions.

use greenroom_core::{
    Compaction, Continuity, Fact, Recorded, Run, RunHealth, RunPhase, RunProgress, SessionId,
    Settings, Source, StopReason,
};

use super::{Checked, Invariant, Played, ensure, is_answer};

/// Only worlds show the group.
#[derive(Default)]
pub struct Runs {
    run: Option<Run>,
    settings: Option<Settings>,
    session: Option<SessionId>,
    /// Whether the prompt in flight is being cancelled.
    is_cancelled: bool,
}

impl Runs {
    fn configured(&mut self, settings: &Settings) {
        let location = |settings: &Settings| (settings.agent.clone(), settings.cwd.clone());
        let moves =
            self.settings.as_ref().is_some_and(|before| location(before) != location(settings));
        self.run.iter_mut().for_each(|run| run.outdated |= moves);
        self.settings = Some(settings.clone());
    }

    /// A new session stays new until it gets a prompt, or another one is in force.
    fn is_fresh_no_more(&mut self) {
        for run in self.run.iter_mut().filter(|run| run.progress == RunProgress::Fresh) {
            run.progress = RunProgress::Unsettled;
        }
    }

    fn in_session(&mut self, session: &SessionId) {
        if self.session.as_ref() != Some(session) {
            self.is_fresh_no_more();
        }
        self.session = Some(session.clone());
    }

    fn compaction(&mut self, compaction: &Compaction) {
        if let Some(run) = &mut self.run {
            run.reports_by_acp |= compaction.sources.contains(&Source::Acp);
        }
    }

    fn settled(&mut self, stop_reason: StopReason) {
        let Some(run) = &mut self.run else { return };
        if is_answer(stop_reason) {
            run.progress = RunProgress::Settled;
        }
        let is_error = matches!(stop_reason, StopReason::Error | StopReason::Cancelled);
        // A wedged run stays wedged.
        let survives = is_answer(stop_reason) && !is_error && !self.is_cancelled;
        if survives && run.health == RunHealth::Cancelled {
            run.health = RunHealth::Sound;
        }
    }
}

impl Invariant for Runs {
    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::GroupCreated(settings) | Fact::GroupChanged(settings) => {
                self.configured(settings);
            }
            Fact::RunStarted { run, has_detectors, .. } => {
                let has_detectors = *has_detectors;
                self.run = Some(Run { has_detectors, ..Run::new(*run, RunPhase::Starting) });
            }
            Fact::RunReady { session, continuity, is_forgetful, .. } => {
                let is_new = matches!(continuity, Continuity::New | Continuity::Lost);
                let progress = if is_new { RunProgress::Fresh } else { RunProgress::Unsettled };
                if let Some(run) = &mut self.run {
                    (run.phase, run.progress) = (RunPhase::Ready, progress);
                    run.is_forgetful = *is_forgetful;
                }
                self.session = Some(session.clone());
            }
            Fact::RunStopping { .. } => {
                self.run.iter_mut().for_each(|run| run.phase = RunPhase::Stopping);
            }
            Fact::RunExited { .. } => self.run = None,
            Fact::SegmentStarted { session, .. } => self.in_session(session),
            Fact::ContextLost { .. } => self.session = None,
            Fact::PromptSent { .. } => {
                self.is_fresh_no_more();
                self.is_cancelled = false;
            }
            Fact::CancelRequested { .. } | Fact::TurnCut { .. } => self.is_cancelled = true,
            Fact::CancelSent { .. } => {
                for run in self.run.iter_mut().filter(|run| run.health == RunHealth::Sound) {
                    run.health = RunHealth::Cancelled;
                }
            }
            Fact::AgentWedged { .. } => {
                self.run.iter_mut().for_each(|run| run.health = RunHealth::Wedged);
            }
            Fact::TurnSettled { stop_reason, .. } => self.settled(*stop_reason),
            Fact::CompactionStarted(compaction)
            | Fact::CompactionUpdated(compaction)
            | Fact::CompactionEnded(compaction) => self.compaction(compaction),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        let (known, run) = (&self.run, step.group.run());
        ensure!(known.as_ref() == run, "I13: by the facts {known:?}, not {run:?}");
        Ok(())
    }
}
