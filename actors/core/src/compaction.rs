//! The life of one compaction, reported by any number of detectors (AM-29).
//!
//! Owns the status. `recent` chooses the compaction that a signal belongs to. What follows from a
//! compaction's end is the group's decision.

mod recent;

use serde::{Deserialize, Serialize};

pub(crate) use self::recent::{RECENT_MAX, RecentCompactions};
use crate::{
    CompactionId, CompactionSignal, Details, Lineage, SignalKind, Source, TaskId, Timestamp, Usage,
};

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

    /// Whether it replaced this session of the agent's own by another.
    pub(crate) fn replaced(&self, session: &str) -> bool {
        self.lineage.before.as_deref() == Some(session)
            && self.lineage.after.as_deref().is_some_and(|after| after != session)
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
