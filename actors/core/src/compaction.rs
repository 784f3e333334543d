//! The life of one compaction, reported by any number of detectors (AM-29).
//!
//! Owns the status and the choice of the compaction that a signal belongs to. What follows from a
//! compaction's end is the group's decision.

use serde::{Deserialize, Serialize};

use crate::{
    CompactionId, CompactionSignal, Details, Lineage, SignalKind, Source, TaskId, Timestamp, Usage,
};

/// How many compactions of a run are remembered, for late signals.
pub(crate) const RECENT_MAX: usize = 16;

/// One compaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compaction {
    /// Its id.
    #[serde(rename = "compaction")]
    pub id: CompactionId,
    /// The task whose attempt ran when it began.
    pub task: Option<TaskId>,
    /// Its status.
    pub status: CompactionStatus,
    /// The first source that reported it.
    pub source: Source,
    /// All sources that reported it, in that order.
    pub sources: Vec<Source>,
    /// The segment that was open when it began.
    pub from_segment: u32,
    /// The segment that it opened.
    pub to_segment: Option<u32>,
    /// Its details.
    #[serde(flatten)]
    pub details: Details,
    /// When it began; the time of its end if only that was seen.
    #[serde(skip)]
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(skip)]
    pub ended_at: Option<Timestamp>,
    /// The agent's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The agent's own sessions before and after it.
    #[serde(flatten)]
    pub lineage: Lineage,
    /// Whether the next prompt has to carry its summary into another session.
    #[serde(default, rename = "leads", skip_serializing_if = "std::ops::Not::not")]
    pub carries_summary: bool,
    /// Whether it ended before its prompt was sent: then it says nothing about what compactions
    /// free.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_unstarted: bool,
    /// Whether the agent's own command ordered it, and it was not completed: the agent may yet
    /// complete it in the next prompt, and answer that with its summary (RA).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_answer_next: bool,
    /// What it left of the group's usage, once it is completed; absent in a log of an earlier
    /// version, which left the usage as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage_after: Option<UsageAfter>,
    /// The tokens that the agent last reported while it was active.
    #[serde(skip)]
    used_meanwhile: Option<u64>,
    /// The sources that reported its start, and neither its end nor a later start.
    #[serde(skip)]
    awaited_from: Vec<Source>,
    /// The sources that reported its end.
    #[serde(skip)]
    ended_by: Vec<Source>,
    /// The end that an untrusted or late signal reported.
    #[serde(skip)]
    unconfirmed_outcome: Option<SignalKind>,
    /// Whether the prompt of another turn was sent since. Later signals seldom belong to it.
    #[serde(skip)]
    is_from_earlier_turn: bool,
}

/// What a completed compaction left of the group's usage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageAfter {
    /// The agent reported this, or what follows from the tokens after the compaction.
    Known(Usage),
    /// The agent has reported nothing yet.
    Unknown,
}

/// The status of a compaction. All but the first are final, except for a late completion (AM-23).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompactionStatus {
    /// It is active: its end was not seen.
    InProgress,
    /// It is done; the context is replaced.
    Completed,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// It began, and its end was not seen in time.
    Abandoned,
    /// Another holder of the lock compacts, or has compacted, the session.
    Skipped,
    /// There was nothing to compact.
    Noop,
}

/// What can happen to a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactionEvent {
    /// A detector reported this.
    Seen(SignalKind),
    /// Its end can no longer be seen in time: its attempt settled, its run ended, or its deadline
    /// passed.
    Stranded,
}

impl CompactionStatus {
    /// Returns the status after `event`.
    #[must_use]
    pub fn after(self, event: CompactionEvent) -> Self {
        match (self, event) {
            (Self::InProgress, CompactionEvent::Seen(SignalKind::Started | SignalKind::Noted)) => {
                Self::InProgress
            }
            (Self::InProgress, CompactionEvent::Seen(SignalKind::Failed)) => Self::Failed,
            (Self::InProgress, CompactionEvent::Seen(SignalKind::Cancelled)) => Self::Cancelled,
            (Self::InProgress, CompactionEvent::Seen(SignalKind::Skipped)) => Self::Skipped,
            (Self::InProgress, CompactionEvent::Seen(SignalKind::Noop)) => Self::Noop,
            (Self::InProgress, CompactionEvent::Stranded) => Self::Abandoned,
            // A late completion still counts (AM-23).
            (Self::InProgress | Self::Abandoned, CompactionEvent::Seen(SignalKind::Completed)) => {
                Self::Completed
            }
            (
                Self::Abandoned,
                CompactionEvent::Stranded
                | CompactionEvent::Seen(
                    SignalKind::Started
                    | SignalKind::Noted
                    | SignalKind::Failed
                    | SignalKind::Cancelled
                    | SignalKind::Skipped
                    | SignalKind::Noop,
                ),
            )
            | (
                Self::Completed | Self::Failed | Self::Cancelled | Self::Skipped | Self::Noop,
                CompactionEvent::Stranded | CompactionEvent::Seen(_),
            ) => self,
        }
    }

    /// Whether a compaction in this status may be the one that a signal of this kind is about.
    fn agrees(self, kind: SignalKind) -> bool {
        match (self, kind) {
            (Self::InProgress | Self::Abandoned, _)
            | (_, SignalKind::Started | SignalKind::Noted) => true,
            (Self::Completed, kind) => kind == SignalKind::Completed,
            (Self::Failed | Self::Cancelled | Self::Skipped | Self::Noop, kind) => {
                kind != SignalKind::Completed
            }
        }
    }
}

impl Compaction {
    /// A new active compaction, reported by `source`.
    pub(crate) fn new(
        id: CompactionId,
        source: Source,
        task: Option<TaskId>,
        segment: u32,
        at: Timestamp,
    ) -> Self {
        Self {
            id,
            task,
            status: CompactionStatus::InProgress,
            source,
            sources: vec![source],
            from_segment: segment,
            to_segment: None,
            details: Details::default(),
            started_at: at,
            ended_at: None,
            key: None,
            lineage: Lineage::default(),
            carries_summary: false,
            is_unstarted: false,
            may_answer_next: false,
            usage_after: None,
            used_meanwhile: None,
            awaited_from: Vec::new(),
            ended_by: Vec::new(),
            unconfirmed_outcome: None,
            is_from_earlier_turn: false,
        }
    }

    /// Adds a signal, which decides the status if it `is_trusted`. Known details stay.
    pub(crate) fn add_signal(
        &mut self,
        signal: &CompactionSignal,
        is_trusted: bool,
        at: Timestamp,
    ) {
        let CompactionSignal { source, kind, .. } = *signal;
        if self.is_active() {
            self.is_from_earlier_turn = false;
        }
        if !self.sources.contains(&source) {
            self.sources.push(source);
        }
        let is_end = !matches!(kind, SignalKind::Started | SignalKind::Noted);
        if !self.ended_by.contains(&source) {
            if is_end {
                self.awaited_from.retain(|awaited| *awaited != source);
                self.ended_by.push(source);
            } else if !self.awaited_from.contains(&source) {
                self.awaited_from.push(source);
            }
        }
        if is_trusted || !is_end || kind == SignalKind::Completed {
            self.key = self.key.take().or_else(|| signal.key.clone());
            self.lineage.join(&signal.lineage);
            self.details.join(&signal.details);
        }
        if is_trusted {
            self.transition(CompactionEvent::Seen(kind), at);
        }
        let is_open =
            matches!(self.status, CompactionStatus::InProgress | CompactionStatus::Abandoned);
        if is_end && is_open {
            self.unconfirmed_outcome = self.unconfirmed_outcome.or(Some(kind));
        }
    }

    /// Changes the status by an event. What the agent reported as used shortly before the end is
    /// what the compaction left, unless it opens another session.
    pub(crate) fn transition(&mut self, event: CompactionEvent, at: Timestamp) {
        let status = self.status.after(event);
        if status != self.status {
            self.status = status;
            self.ended_at = Some(at);
            if status == CompactionStatus::Completed && !self.carries_summary {
                let Details { tokens_before, tokens_after, .. } = &mut self.details;
                // What did not fall was reported before the context was replaced. No context is
                // empty.
                let fell = |used: &u64| *used > 0 && tokens_before.is_none_or(|it| *used < it);
                *tokens_after = tokens_after.or(self.used_meanwhile.filter(fell));
            }
        }
    }

    /// Whether it is active.
    pub fn is_active(&self) -> bool {
        self.status == CompactionStatus::InProgress
    }

    /// Whether it belongs to the running attempt of a task. One that an earlier attempt ordered may
    /// end late.
    pub(crate) fn belongs_to_attempt(&self, task: TaskId) -> bool {
        self.task == Some(task) && !self.is_from_earlier_turn
    }

    /// Whether it may be the one that a signal of this kind is about.
    fn agrees(&self, kind: SignalKind) -> bool {
        let is_end = !matches!(kind, SignalKind::Started | SignalKind::Noted);
        let fits_outcome = self.unconfirmed_outcome.is_none_or(|outcome| {
            !is_end || (outcome == SignalKind::Completed) == (kind == SignalKind::Completed)
        });
        fits_outcome && self.status.agrees(kind)
    }

    /// Whether a detector saw it complete.
    fn is_done(&self) -> bool {
        self.status == CompactionStatus::Completed
            || self.unconfirmed_outcome == Some(SignalKind::Completed)
    }

    /// Whether it replaced this session of the agent's own by another.
    pub(crate) fn replaced(&self, session: &str) -> bool {
        self.lineage.before.as_deref() == Some(session)
            && self.lineage.after.as_deref().is_some_and(|after| after != session)
    }

    /// Whether the detector reported it, and not its end. Once the detector has started another, a
    /// signal has to name this one. The detector may report a start again, as long as no other
    /// detector contradicts that.
    fn is_unfinished_by(&self, signal: &CompactionSignal) -> bool {
        let source = &signal.source;
        let is_named = self.sources.contains(source) && self.is_named(signal);
        let awaits_end =
            self.awaited_from.contains(source) || (is_named && !self.ended_by.contains(source));
        let ended_meanwhile = self.status == CompactionStatus::Completed && self.is_near(signal);
        let is_replaced =
            signal.lineage.before.as_deref().is_some_and(|before| self.replaced(before));
        let may_begin = self.is_active() || ended_meanwhile || is_replaced;
        awaits_end && (signal.kind != SignalKind::Started || may_begin)
    }

    /// Whether the detector has not reported it and may do so now.
    fn is_unreported_by(&self, signal: &CompactionSignal) -> bool {
        !self.sources.contains(&signal.source) && (self.is_named(signal) || self.is_near(signal))
    }

    /// Whether the signal names one of its sessions.
    fn is_named(&self, signal: &CompactionSignal) -> bool {
        self.lineage.matches(&signal.lineage) == Some(true)
    }

    /// Whether the detector may still report it. A signal in a later turn is about a compaction of
    /// that turn, except that it may be late if ACP has reported this one.
    fn is_near(&self, signal: &CompactionSignal) -> bool {
        let may_be_late = signal.source.may_be_late() && self.sources.contains(&Source::Acp);
        !self.is_from_earlier_turn || may_be_late
    }

    /// Returns how well it matches a detector's first report of it: first by not being abandoned
    /// without an outcome, then by a session.
    fn match_score(&self, signal: &CompactionSignal) -> (bool, bool) {
        let is_abandoned =
            self.status == CompactionStatus::Abandoned && self.unconfirmed_outcome.is_none();
        (!is_abandoned, self.is_named(signal))
    }
}

impl Lineage {
    /// Fills what is unknown from `other`.
    fn join(&mut self, other: &Self) {
        for (known, other) in [(&mut self.before, &other.before), (&mut self.after, &other.after)] {
            *known = known.take().or_else(|| other.clone());
        }
        if self.either.is_none() {
            (self.either, self.given) = (other.either.clone(), other.given.clone());
        }
        // `either` that is not the session before must be the session after.
        if self.after.is_none() && self.before.is_some() && self.either != self.before {
            self.after.clone_from(&self.either);
        }
    }

    /// Whether both may be about the same compaction; `None` if they cannot be compared.
    fn matches(&self, other: &Self) -> Option<bool> {
        let both = |a: &Option<String>, b: &Option<String>| {
            a.as_ref().zip(b.as_ref()).map(|(a, b)| a == b)
        };
        let ends = [both(&self.before, &other.before), both(&self.after, &other.after)];
        if ends.contains(&Some(false)) {
            return Some(false);
        }
        if ends.contains(&Some(true)) {
            return Some(true);
        }
        let names = |lineage: &Self, either: &Option<String>| {
            let either = either.as_ref()?;
            let known = [&lineage.before, &lineage.after, &lineage.either];
            let mut known = known.into_iter().flatten().peekable();
            known.peek()?;
            Some(known.any(|name| name == either)).filter(|same| {
                // If one end is unknown, `either` may be that one.
                *same || (lineage.before.is_some() && lineage.after.is_some())
            })
        };
        names(self, &other.either).or_else(|| names(other, &self.either))
    }
}

impl Details {
    /// Fills what is unknown from `other`.
    fn join(&mut self, other: &Self) {
        fn fill<T: Clone>(known: &mut Option<T>, other: &Option<T>) {
            *known = known.take().or_else(|| other.clone());
        }
        fill(&mut self.messages_before, &other.messages_before);
        fill(&mut self.messages_after, &other.messages_after);
        fill(&mut self.tokens_before, &other.tokens_before);
        fill(&mut self.tokens_after, &other.tokens_after);
        fill(&mut self.summary, &other.summary);
        fill(&mut self.error, &other.error);
    }
}

/// The last compactions of a run, the oldest first. At most one of them is active.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RecentCompactions(Vec<Compaction>);

impl RecentCompactions {
    /// Returns the active one.
    pub fn active(&self) -> Option<&Compaction> {
        self.0.iter().rfind(|compaction| compaction.is_active())
    }

    /// Returns all of them, the oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Compaction> {
        self.0.iter()
    }

    /// Returns the status of this one, if it is remembered.
    pub fn status(&self, id: CompactionId) -> Option<CompactionStatus> {
        self.0.iter().find(|known| known.id == id).map(|known| known.status)
    }

    /// Returns those of a task's running attempt, the oldest first.
    pub fn of(&self, task: TaskId) -> impl DoubleEndedIterator<Item = &Compaction> {
        self.0.iter().filter(move |known| known.belongs_to_attempt(task))
    }

    /// Inserts or replaces one. Forgets the oldest ended one if there are too many.
    ///
    /// A detector that has started this one has no end to report of those that it started before.
    pub fn upsert(&mut self, compaction: Compaction) {
        for known in &mut self.0 {
            known.awaited_from.retain(|source| !compaction.awaited_from.contains(source));
        }
        match self.0.iter_mut().find(|known| known.id == compaction.id) {
            Some(known) => *known = compaction,
            None => {
                self.0.push(compaction);
                let oldest = self.0.iter().position(|known| !known.is_active());
                if let Some(oldest) = oldest.filter(|_| self.0.len() > RECENT_MAX) {
                    self.0.remove(oldest);
                }
            }
        }
    }

    /// Whether a detector that may be late has still to report the end of a compaction that led to
    /// this session of the agent's own.
    pub fn awaits_late_end(&self, session: &str) -> bool {
        let leads_there = |known: &Compaction| known.lineage.after.as_deref() == Some(session);
        let is_late = |known: &Compaction| !known.ended_by.iter().any(|by| by.may_be_late());
        self.0.iter().any(|known| leads_there(known) && is_late(known))
    }

    /// Returns the summary of the last completed one.
    pub fn last_summary(&self) -> Option<&str> {
        let last = self.0.iter().rfind(|known| known.status == CompactionStatus::Completed)?;
        last.details.summary.as_deref()
    }

    /// Notes what the agent reports as used while a compaction is active.
    pub fn note_usage(&mut self, used: u64) {
        let active = self.0.iter_mut().rfind(|compaction| compaction.is_active());
        active.into_iter().for_each(|compaction| compaction.used_meanwhile = Some(used));
    }

    /// Returns the last completed one, if it opened this segment and the tokens after it are not
    /// known yet.
    pub fn unmeasured(&self, segment: u32) -> Option<&Compaction> {
        let last = self.0.iter().rfind(|known| known.status == CompactionStatus::Completed)?;
        let is_open = last.to_segment == Some(segment) && last.details.tokens_after.is_none();
        is_open.then_some(last)
    }

    /// Marks all as of an earlier turn, when the next prompt is sent.
    pub fn mark_earlier_turn(&mut self) {
        self.0.iter_mut().for_each(|compaction| compaction.is_from_earlier_turn = true);
    }

    /// Forgets all, when the run has ended.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the compaction that a signal belongs to, if it is remembered. Unless `may_be_new`,
    /// the signal has to name it.
    ///
    /// Each detector reports a run's compactions in order. So a signal belongs to the one that its
    /// detector started last and left unfinished, else to the first that the detector has not
    /// reported, unless names or outcomes exclude one. This holds in any order of reading the
    /// pipes, as long as stderr lines that name no session are read before the next prompt is sent.
    /// In a run that reports nothing by ACP, a later line counts again, as one of the next turn.
    pub fn find(&self, signal: &CompactionSignal, may_be_new: bool) -> Option<&Compaction> {
        // An agent may reuse the key of a compaction that another detector saw fail for the next
        // one, which completes: the outcome counts for more than the key.
        let has_key = |known: &&Compaction| {
            signal.key.is_some()
                && known.key == signal.key
                && (known.agrees(signal.kind) || known.ended_by.contains(&signal.source))
        };
        if let Some(keyed) = self.0.iter().rfind(has_key) {
            return Some(keyed);
        }
        let may_be = |known: &&Compaction| {
            let named = known.lineage.matches(&signal.lineage);
            known.agrees(signal.kind)
                && (signal.key.is_none() || known.key.is_none())
                && named != Some(false)
                && (may_be_new || named == Some(true))
        };
        let candidates = || self.0.iter().filter(may_be);
        let unreported = || candidates().filter(|known| known.is_unreported_by(signal));
        let unfinished = candidates().filter(|known| known.is_unfinished_by(signal));
        let unfinished = unfinished.max_by_key(|known| known.is_named(signal));
        // Of equals the first, unless the detector reports only the last completed one.
        unfinished.or_else(|| {
            if signal.source.reports_last_only() {
                unreported().max_by_key(|known| (known.match_score(signal), known.is_done()))
            } else {
                unreported().rev().max_by_key(|known| known.match_score(signal))
            }
        })
    }
}
