//! What each event leads to, as far as it is about a compaction: SEEDS AM-20 to AM-31, HL, DQ-3
//! to DQ-6.

use super::{Compacting, Group, scene::Scene};
use crate::{
    Compaction, CompactionId, CompactionStatus, CutBy, Details, Effect, EndReason, Fate, Lineage,
    Origin, PromptReply, Provenance, RunId, SUMMARY_BYTES_MAX, SessionId, Sign, Signal, Source,
    StopReason, Strategy, Task, TaskError, TaskId, TaskKind, TaskState, Timestamp, Usage, Work,
    Write, turn::Settlement,
};

/// After so many compactions in a row that freed too little, none is ordered by itself (I12).
const STREAK_MAX: u8 = 2;
/// A compaction that freed less than one part in so many freed too little.
const FREED_PART: u64 = 10;
/// What an ordered compaction that failed says of the session (SEEDS DQ-12).
const UNCHANGED: &str = "the session is unchanged";
/// Why a compaction counts for nothing that lost its lock (SEEDS HL-11).
const LOCK_LOST: &str = "its lock was lost";
/// After a failure none is ordered by itself for so long (SEEDS HL-14).
const COOLDOWN_MS: i64 = 600_000;

impl Compacting {
    /// Somebody acted: what stood against a compaction of the group's own accord is forgotten.
    pub(super) fn allow(&mut self) {
        (self.streak, self.failed_at) = (0, None);
    }

    /// Sees what the last completed compaction freed, once the agent told its usage again.
    pub(super) fn measure(&mut self, usage: Option<&Usage>) {
        if self.measured
            && let Some(usage) = usage
        {
            self.weigh(usage.used);
        }
    }

    /// Sees what the last completed compaction freed, if that was not seen before.
    pub(super) fn weigh(&mut self, tokens_after: u64) {
        let Some(before) = self.before.take() else { return };
        let freed = before.saturating_sub(tokens_after);
        let too_little = freed.saturating_mul(FREED_PART) < before;
        self.streak = if too_little { self.streak.saturating_add(1) } else { 0 };
    }

    /// Whether the group may order a compaction by itself. The clock may have jumped back: then
    /// the cooldown begins again.
    fn allows(&self, now: Timestamp) -> bool {
        let rested =
            self.failed_at.is_none_or(|failed| now.0.saturating_sub(failed.0) >= COOLDOWN_MS);
        self.measured && self.streak < STREAK_MAX && rested
    }
}

impl Scene<'_> {
    // ---- what detectors see

    pub(super) fn signalled(&mut self, run: RunId, signal: &Signal) {
        if self.group.lives(run) {
            self.hear_signal(signal, None, true);
        }
    }

    /// Takes in a signal; `is_news` says whether it may be about a compaction of which nothing was
    /// heard before, and not only about one that it names.
    fn hear_signal(&mut self, signal: &Signal, provenance: Option<Provenance>, is_news: bool) {
        let meant = self.group.recent.meant_by(signal, is_news).cloned();
        let within = meant.as_ref().is_none_or(|meant| self.orders(meant));
        if signal.sign == Sign::Completed && within && self.lost_lock() {
            let mut void = Signal { sign: Sign::Failed, ..signal.clone() };
            void.details.error = Some(LOCK_LOST.into());
            return self.hear_signal(&void, None, is_news);
        }
        if let Some(meant) = meant {
            let believed = self.believes(signal, &meant.sources);
            let mut compaction = meant.clone();
            compaction.hear(signal, believed, self.now.wall);
            if compaction != meant {
                self.put(compaction, provenance);
            }
        } else if signal.sign != Sign::Noted && is_news {
            self.open(signal, provenance);
        }
    }

    /// Whether what a detector saw decides where a compaction stands, of which `sources` told. A
    /// run that shows its compactions by ACP shows all of them, and others only add to that.
    fn believes(&self, signal: &Signal, sources: &[Source]) -> bool {
        let shows_acp = self.group.run.as_ref().is_some_and(|run| run.shows_acp);
        let is_own = signal.sign != Sign::Completed && !sources.contains(&Source::Acp);
        signal.source == Source::Acp || !shows_acp || is_own
    }

    /// A compaction of which nothing was heard before.
    fn open(&mut self, signal: &Signal, provenance: Option<Provenance>) {
        self.strand();
        let task = self.running().map(|(task, _)| task.id);
        let (segment, id) = (self.group.head.segment, self.compaction_id());
        let mut compaction = Compaction::new(id, signal.source, task, segment, self.now.wall);
        compaction.hear(signal, self.believes(signal, &[]), self.now.wall);
        if compaction.is_active() {
            compaction.details.tokens_before =
                compaction.details.tokens_before.or_else(|| self.tokens_in_use());
            self.write(Write::CompactionStarted(Box::new(compaction)));
        } else {
            self.put(compaction, provenance);
        }
    }

    /// States what became of a compaction, and what follows from that. It is in another state, or
    /// more is known of it.
    fn put(&mut self, mut compaction: Compaction, provenance: Option<Provenance>) {
        let before = self.group.recent.status(compaction.id);
        let is_completed = compaction.status == CompactionStatus::Completed;
        let known = self.group.head.provenance.as_ref().map(|known| &*known.current);
        // Stderr may be that late that it tells of a session which others have already left.
        let late = known.is_some_and(|now| self.group.recent.is_ahead(Source::HermesStderr, now));
        let told = || compaction.continuation().filter(|_| !late);
        let provenance = provenance.or_else(told).filter(|given| self.is_news(given));
        let ordered = self.orders(&compaction);
        if before == Some(compaction.status) {
            self.write(Write::CompactionUpdated(Box::new(compaction)));
            if let Some(provenance) = provenance.filter(|_| self.group.head.segment > 0) {
                self.write(Write::ProvenanceNoted { provenance });
            }
        } else if is_completed {
            let session = self.group.head.session.clone();
            let provenance = provenance.or_else(|| self.group.head.provenance.clone());
            self.publish(compaction, session, provenance);
            if ordered {
                self.release_lock(true);
            }
        } else {
            if compaction.status == CompactionStatus::Failed && ordered {
                let why = compaction.details.error.take();
                let why = why.unwrap_or_else(|| "the agent does not say why".into());
                compaction.details.error = Some(format!("{why}; {UNCHANGED}"));
            }
            self.write(Write::CompactionEnded(Box::new(compaction)));
        }
    }

    /// Whether another of hermes' sessions is in force than is known, and not one that a compaction
    /// led away from: the pipes are not read in step.
    fn is_news(&self, given: &Provenance) -> bool {
        let known = self.group.head.provenance.as_ref();
        let is_past = self.group.recent.iter().any(|own| own.left(&given.current));
        known.is_none_or(|known| known.current != given.current) && !is_past
    }

    /// Whether more is told of the session that is known to be in force: stderr names it alone.
    fn is_more(&self, given: &Provenance) -> bool {
        let known = self.group.head.provenance.as_ref();
        known.is_some_and(|known| {
            known.current == given.current && known.is_name_only() && !given.is_name_only()
        })
    }

    /// A completed compaction: counted, and the segment rotated, in one breath (I4, AM-22).
    fn publish(
        &mut self,
        mut compaction: Compaction,
        session: Option<SessionId>,
        provenance: Option<Provenance>,
    ) {
        compaction.to_segment = session.as_ref().map(|_| self.group.head.segment + 1);
        self.write(Write::CompactionEnded(Box::new(compaction)));
        if let Some(session) = session {
            self.rotate(EndReason::Compaction, session, provenance);
        }
    }

    /// AM-12: two frames, the last of the old segment and the first of the new.
    pub(super) fn rotate(
        &mut self,
        end_reason: EndReason,
        session: SessionId,
        provenance: Option<Provenance>,
    ) {
        let segment = self.group.head.segment;
        let parent = (segment > 0).then_some(segment);
        if parent.is_some() {
            self.write(Write::SegmentEnded { segment, end_reason });
        }
        let segment = segment + 1;
        self.write(Write::SegmentStarted { segment, parent, session, provenance });
    }

    /// AM-13, AM-23: another hermes session is another context, and counts only if a compaction
    /// led to it.
    pub(super) fn provenance_given(&mut self, run: RunId, given: Provenance) {
        if !self.group.lives(run) {
            return;
        }
        let is_news = self.is_news(&given);
        let known = self.group.head.provenance.as_ref().map(|known| known.current.clone());
        if given.compacted {
            // Hermes may name the session of the turn's start, and others have told of more since.
            let is_left = |own: &String| self.group.recent.iter().any(|past| past.left(own));
            let previous = given.previous.clone().filter(|previous| !is_left(previous));
            let before = previous.or(known.filter(|_| is_news));
            let signal = Signal {
                source: Source::HermesMeta,
                sign: Sign::Completed,
                key: None,
                lineage: Lineage { before, after: Some(given.current.clone()), either: None },
                details: Details::default(),
            };
            self.hear_signal(&signal, Some(given.clone()), is_news);
        } else if is_news
            && known.is_some()
            && let Some(session) = self.group.head.session.clone()
        {
            self.rotate(EndReason::Reset, session, Some(given.clone()));
        }
        if (self.is_news(&given) || self.is_more(&given)) && self.group.head.segment > 0 {
            self.write(Write::ProvenanceNoted { provenance: given });
        }
    }

    /// AM-13: a bare change of the session id. None is what is heard early of a session that is
    /// being opened, nor what is heard late of the one that was left for it.
    pub(super) fn session_named(&mut self, run: RunId, session: SessionId) {
        let Some(run) = self.group.run.as_ref().filter(|own| own.id == run) else { return };
        let opening = self.group.turn().is_some_and(|turn| turn.opening.is_some());
        let is_left = run.left.as_ref() == Some(&session);
        if !opening && !is_left && self.group.head.session.as_ref() != Some(&session) {
            self.rotate(EndReason::AcpSessionIdChanged, session, None);
        }
    }

    /// AM-25, AM-28: what is still active will not be seen to end in time. Neither the count nor
    /// the history is touched.
    pub(super) fn strand(&mut self) {
        let Some(active) = self.group.recent.active() else { return };
        let mut compaction = active.clone();
        compaction.turn(Fate::Stranded, self.now.wall);
        self.put(compaction, None);
    }

    /// AM-28: a compaction may take no longer. The turn in which the agent does it of its own
    /// accord goes on; one that was ordered is cut off.
    pub(super) fn compaction_expired(&mut self, id: CompactionId) {
        let Some(active) = self.group.recent.active().filter(|active| active.id == id) else {
            return;
        };
        let ordered = self.orders(active);
        self.strand();
        if ordered {
            self.cut(CutBy::Deadline);
        }
    }

    // ---- compactions that were ordered

    /// Whether the running task is the one that ordered it.
    fn orders(&self, compaction: &Compaction) -> bool {
        let current = self.group.current();
        current.is_some_and(|task| {
            task.kind() == TaskKind::Compaction && compaction.task == Some(task.id)
        })
    }

    /// The ordered compaction begins: its prompt was committed to be sent.
    pub(super) fn begin_ordered(&mut self, task: TaskId) {
        self.strand();
        let (id, segment) = (self.compaction_id(), self.group.head.segment);
        let mut compaction = Compaction::new(id, Source::Task, Some(task), segment, self.now.wall);
        compaction.details.tokens_before = self.tokens_in_use();
        self.write(Write::CompactionStarted(Box::new(compaction)));
    }

    fn tokens_in_use(&self) -> Option<u64> {
        self.group.head.usage.as_ref().map(|usage| usage.used)
    }

    pub(super) fn skip(&mut self, task: TaskId, code: &str, why: &str) {
        let message = format!("{why}; greenroom left the session unchanged");
        let error = TaskError { code: code.into(), message };
        self.end_idle(task, CompactionStatus::Skipped, Some(error));
    }

    /// Ends a compaction task that had nothing to do, or may not do it.
    pub(super) fn end_idle(
        &mut self,
        task: TaskId,
        status: CompactionStatus,
        error: Option<TaskError>,
    ) {
        let (id, segment) = (self.compaction_id(), self.group.head.segment);
        let mut compaction = Compaction::new(id, Source::Task, Some(task), segment, self.now.wall);
        (compaction.status, compaction.ended_at) = (status, Some(self.now.wall));
        compaction.details.error = error.as_ref().map(|error| error.message.clone());
        self.write(Write::CompactionEnded(Box::new(compaction)));
        self.end_unsent(task, TaskState::Skipped, error);
    }

    /// The agent answered the request for a summary: has it open another session, if it gave one.
    /// False if the compaction is over already.
    pub(super) fn open_rotation(&mut self, reply: &PromptReply) -> bool {
        let Some((task, turn)) = self.running() else { return false };
        let rotates = matches!(task.work, Work::Compaction { strategy: Strategy::Rotate, .. });
        let answered = matches!(
            reply,
            PromptReply::Stopped { stop_reason: StopReason::EndTurn | StopReason::MaxTokens, .. }
        );
        let begun = self.group.recent.of(task.id).any(Compaction::is_active);
        let given = !turn.text().trim().is_empty();
        let (id, is_cut) = (task.id, turn.cut.is_some());
        let Some(run) = self.group.run.as_ref().map(|run| run.id) else { return false };
        if !(rotates && answered && begun && given) || is_cut || self.lost_lock() {
            return false;
        }
        let request = self.group.head.last_seq + 1;
        self.write(Write::SummaryGiven { task: id, tokens: reply.tokens() });
        self.order(Effect::OpenSession { run, id: request });
        true
    }

    pub(super) fn session_opened(
        &mut self,
        run: RunId,
        id: u64,
        opened: Result<(SessionId, Option<Provenance>), String>,
    ) {
        let Some((task, turn)) = self.running().filter(|(_, turn)| turn.opening == Some(id)) else {
            return;
        };
        if !self.group.lives(run) {
            return;
        }
        let end =
            turn.answered(PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None });
        let active = self.group.recent.of(task.id).rfind(|own| own.is_active()).cloned();
        // The agent may have compacted by itself meanwhile: then the session stays the one it was.
        let Some(mut compaction) = active else { return self.settle(end) };
        let text = turn.text();
        let summary =
            text[..text.floor_char_boundary(SUMMARY_BYTES_MAX.min(text.len()))].to_owned();
        compaction.details.summary = Some(summary);
        let lost = || String::from(LOCK_LOST);
        match opened.and_then(|opened| if self.lost_lock() { Err(lost()) } else { Ok(opened) }) {
            Ok((session, provenance)) => {
                compaction.leads = true;
                compaction.turn(Fate::Seen(Sign::Completed), self.now.wall);
                self.publish(compaction, Some(session), provenance);
                self.release_lock(true);
            }
            Err(why) => {
                compaction.details.error = Some(why);
                compaction.turn(Fate::Seen(Sign::Failed), self.now.wall);
                self.put(compaction, None);
            }
        }
        self.settle(end);
    }

    /// Brings the end of a compaction task and that of its compaction together: what the detectors
    /// saw counts for more than what the agent answered.
    pub(super) fn settle_ordered(&mut self, task: &Task, settled: Settlement) -> Settlement {
        self.end_ordered(task, &settled);
        self.measure_ordered(task);
        let own = || self.group.recent.of(task.id);
        let is_done = |own: &Compaction| own.status == CompactionStatus::Completed;
        let Some(outcome) = own().rfind(|own| is_done(own)).or_else(|| own().next_back()) else {
            return settled;
        };
        let Settlement { stop_reason, state, mut ending, tokens, repeatable } = settled;
        let state = match (outcome.status, state) {
            (CompactionStatus::Completed, _) => {
                (ending.error, ending.interrupted) = (None, None);
                TaskState::Completed
            }
            (_, TaskState::Cancelled | TaskState::Interrupted) => {
                // What an agent did by itself before it was cut off, nobody knows.
                let rotates =
                    matches!(task.work, Work::Compaction { strategy: Strategy::Rotate, .. });
                if let Some(error) = ending.error.as_mut().filter(|_| rotates) {
                    error.message = format!("{}; {UNCHANGED}", error.message);
                }
                state
            }
            (CompactionStatus::Noop | CompactionStatus::Skipped, _) => TaskState::Skipped,
            (CompactionStatus::Cancelled, _) => TaskState::Cancelled,
            (
                CompactionStatus::Failed
                | CompactionStatus::Abandoned
                | CompactionStatus::InProgress,
                _,
            ) => {
                let why = outcome
                    .details
                    .error
                    .clone()
                    .or_else(|| ending.error.take().map(|error| error.message));
                let why = why.unwrap_or_else(|| "the agent did not finish it".into());
                let told = why.ends_with(UNCHANGED);
                let message = if told { why } else { format!("{why}; {UNCHANGED}") };
                ending.error = Some(TaskError { code: "compaction_failed".into(), message });
                TaskState::Failed
            }
        };
        Settlement { stop_reason, state, ending, tokens, repeatable }
    }

    /// Tells what the ordered compaction left in use, if the agent said so since.
    fn measure_ordered(&mut self, task: &Task) {
        let head = &self.group.head;
        let used = head.usage.as_ref().filter(|_| head.compacting.measured).map(|now| now.used);
        let done = self.group.recent.of(task.id).rfind(|own| {
            own.status == CompactionStatus::Completed && own.details.tokens_after.is_none()
        });
        if let (Some(done), Some(_)) = (done, used) {
            let mut compaction = done.clone();
            compaction.details.tokens_after = used;
            self.write(Write::CompactionUpdated(Box::new(compaction)));
        }
    }

    /// Ends the ordered compaction if no detector saw its end.
    fn end_ordered(&mut self, task: &Task, settled: &Settlement) {
        let Some(active) = self.group.recent.of(task.id).rfind(|own| own.is_active()) else {
            return;
        };
        let mut compaction = active.clone();
        let usage = settled.ending.usage.as_ref().map(|usage| usage.used);
        let was_seen = compaction.sources.len() > 1;
        let rotates = matches!(task.work, Work::Compaction { strategy: Strategy::Rotate, .. });
        let freed_nothing = matches!(
            (compaction.details.tokens_before, usage),
            (Some(before), Some(after)) if after >= before
        );
        let shows = self.terms.listens || self.group.run.as_ref().is_some_and(|run| run.shows_acp);
        let fate = match settled.state {
            TaskState::Completed if was_seen => Fate::Stranded,
            TaskState::Completed if rotates && self.lost_lock() => {
                compaction.details.error = Some(LOCK_LOST.into());
                Fate::Seen(Sign::Failed)
            }
            TaskState::Completed if rotates => {
                compaction.details.error = Some("the agent gave no summary".into());
                Fate::Seen(Sign::Failed)
            }
            // An agent that shows its compactions and showed none, or freed nothing, did none.
            TaskState::Completed if shows || freed_nothing => Fate::Seen(Sign::Noop),
            TaskState::Completed if self.lost_lock() => {
                compaction.details.error = Some(LOCK_LOST.into());
                Fate::Seen(Sign::Failed)
            }
            // No context is empty: opencode says that it is, and nothing else, if it failed.
            TaskState::Completed if usage == Some(0) => {
                compaction.details.error = Some("the agent does not tell what it did".into());
                Fate::Seen(Sign::Failed)
            }
            TaskState::Completed => {
                compaction.details.tokens_after = usage;
                Fate::Seen(Sign::Completed)
            }
            TaskState::Cancelled => Fate::Seen(Sign::Cancelled),
            TaskState::Failed => {
                let error = settled.ending.error.as_ref().map(|error| error.message.clone());
                compaction.details.error = compaction.details.error.or(error);
                Fate::Seen(Sign::Failed)
            }
            TaskState::Queued
            | TaskState::Running
            | TaskState::Retrying
            | TaskState::Interrupted
            | TaskState::Skipped => Fate::Stranded,
        };
        compaction.turn(fate, self.now.wall);
        self.put(compaction, None);
    }

    /// DQ-4, DQ-5, DQ-6: orders a compaction if the turn that just settled left the context too
    /// full, ahead of the waiting turns.
    pub(super) fn order_compaction(&mut self) {
        let Group { head, .. } = &*self.group;
        let Some((strategy, prompt)) = self.terms.compaction.clone() else { return };
        let is_full = head.usage.as_ref().is_some_and(|usage| {
            self.terms.auto_compact > 0.0
                && usage.size > 0
                && usage.used as f64 >= self.terms.auto_compact * usage.size as f64
        });
        let may = head.compacting.allows(self.now.wall) && !head.archived && head.session.is_some();
        if !is_full || !may || self.group.compaction().is_some() {
            return;
        }
        let id = TaskId((self.fresh)());
        let work = Work::Compaction { focus: None, prompt, strategy };
        self.accept(Task::new(id, work, Origin::Auto));
    }
}

impl Compaction {
    /// The hermes session that goes on after it, if a detector named it.
    fn continuation(&self) -> Option<Provenance> {
        let current = self.lineage.after.clone()?;
        let given = Provenance::name_only(&current)?;
        let previous = self.lineage.before.clone();
        Some(Provenance { current, previous, compacted: true, given })
    }
}

impl Provenance {
    /// What a line on stderr gives of it.
    fn name_only(current: &str) -> Option<crate::Json> {
        crate::Json::write(&serde_json::json!({ "hermesSessionId": current })).ok()
    }

    fn is_name_only(&self) -> bool {
        Self::name_only(&self.current).as_ref() == Some(&self.given)
    }
}
