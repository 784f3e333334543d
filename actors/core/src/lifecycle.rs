//! The life of one compaction, however many detectors see it (SEEDS AM-29).
//!
//! Owns the lifecycle and the question which compaction a signal is about. It refuses to decide
//! what follows from a compaction's end: the group does.

use serde::{Deserialize, Serialize};

use crate::{CompactionId, Details, Lineage, Sign, Signal, Source, TaskId, Timestamp};

/// How many compactions of a run are remembered, for signals that come late.
const RECENT_MAX: usize = 16;

/// One compaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compaction {
    /// Its name.
    #[serde(rename = "compaction")]
    pub id: CompactionId,
    /// The task within which it happened.
    pub task: Option<TaskId>,
    /// Where it stands.
    pub status: CompactionStatus,
    /// Who told of it first.
    pub source: Source,
    /// All who told of it, in that order.
    pub sources: Vec<Source>,
    /// The segment that was open when it began.
    pub from_segment: u32,
    /// The segment that it opened.
    pub to_segment: Option<u32>,
    /// What is known of it.
    #[serde(flatten)]
    pub details: Details,
    /// When it began; one that was only seen to end has the time of its end.
    #[serde(skip)]
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(skip)]
    pub ended_at: Option<Timestamp>,
    /// The agent's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The hermes sessions that it leads from and to.
    #[serde(flatten)]
    pub lineage: Lineage,
    /// Whether its summary leads the next prompt, which goes to another session.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leads: bool,
    /// Who told of its end.
    #[serde(skip)]
    ended_by: Vec<Source>,
    /// Whether the prompt of another turn was sent since: what is seen then is seldom about it.
    #[serde(skip)]
    passed: bool,
}

/// Where a compaction stands. All but the first are final, but for a late `done` (SEEDS AM-23).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompactionStatus {
    /// It began, and nobody saw its end.
    InProgress,
    /// It is done; the context is another.
    Completed,
    /// It failed.
    Failed,
    /// It was called off.
    Cancelled,
    /// It began and never ended.
    Abandoned,
    /// Somebody else compacts, or has compacted, the session.
    Skipped,
    /// There was nothing to compact.
    Noop,
}

/// What may happen to a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A detector saw something.
    Seen(Sign),
    /// Nobody will see its end in time: its turn settled, its run is over, its time is up.
    Stranded,
}

impl CompactionStatus {
    /// The lifecycle: where it stands after `fate`.
    #[must_use]
    pub fn after(self, fate: Fate) -> Self {
        match (self, fate) {
            (Self::InProgress, Fate::Seen(Sign::Started | Sign::Noted)) => Self::InProgress,
            (Self::InProgress, Fate::Seen(Sign::Failed)) => Self::Failed,
            (Self::InProgress, Fate::Seen(Sign::Cancelled)) => Self::Cancelled,
            (Self::InProgress, Fate::Seen(Sign::Skipped)) => Self::Skipped,
            (Self::InProgress, Fate::Seen(Sign::Noop)) => Self::Noop,
            (Self::InProgress, Fate::Stranded) => Self::Abandoned,
            // A late done still counts (AM-23).
            (Self::InProgress | Self::Abandoned, Fate::Seen(Sign::Completed)) => Self::Completed,
            (
                Self::Abandoned,
                Fate::Stranded
                | Fate::Seen(
                    Sign::Started
                    | Sign::Noted
                    | Sign::Failed
                    | Sign::Cancelled
                    | Sign::Skipped
                    | Sign::Noop,
                ),
            )
            | (
                Self::Completed | Self::Failed | Self::Cancelled | Self::Skipped | Self::Noop,
                Fate::Stranded | Fate::Seen(_),
            ) => self,
        }
    }

    /// Whether a compaction that stands there may be the one that a detector saw do this.
    fn agrees(self, sign: Sign) -> bool {
        match (self, sign) {
            (Self::InProgress | Self::Abandoned, _) | (_, Sign::Started | Sign::Noted) => true,
            (Self::Completed, sign) => sign == Sign::Completed,
            (Self::Failed | Self::Cancelled | Self::Skipped | Self::Noop, sign) => {
                sign != Sign::Completed
            }
        }
    }
}

impl Compaction {
    /// One that begins, or is seen to end at once, as `source` tells.
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
            leads: false,
            ended_by: Vec::new(),
            passed: false,
        }
    }

    /// Takes in what a detector saw. What is known already stays.
    pub(crate) fn hear(&mut self, signal: &Signal, at: Timestamp) {
        if !self.sources.contains(&signal.source) {
            self.sources.push(signal.source);
        }
        self.key = self.key.take().or_else(|| signal.key.clone());
        self.lineage.join(&signal.lineage);
        self.details.join(&signal.details);
        if !matches!(signal.sign, Sign::Started | Sign::Noted)
            && !self.ended_by.contains(&signal.source)
        {
            self.ended_by.push(signal.source);
        }
        self.turn(Fate::Seen(signal.sign), at);
    }

    /// Moves it on in its life.
    pub(crate) fn turn(&mut self, fate: Fate, at: Timestamp) {
        let status = self.status.after(fate);
        if status != self.status {
            self.status = status;
            self.ended_at = Some(at);
        }
    }

    /// Whether it may still be going on.
    pub fn is_active(&self) -> bool {
        self.status == CompactionStatus::InProgress
    }

    fn waits_for(&self, source: Source) -> bool {
        self.sources.contains(&source) && !self.ended_by.contains(&source)
    }
}

impl Lineage {
    fn join(&mut self, other: &Self) {
        for (own, other) in [
            (&mut self.before, &other.before),
            (&mut self.after, &other.after),
            (&mut self.either, &other.either),
        ] {
            *own = own.take().or_else(|| other.clone());
        }
        // Whichever of the two it is not, it is the other.
        if self.after.is_none() && self.before.is_some() && self.either != self.before {
            self.after.clone_from(&self.either);
        }
    }

    /// Whether both may tell of the same; `None` if they name nothing in common.
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
        let names = |own: &Self, either: &Option<String>| {
            let either = either.as_ref()?;
            let known = [&own.before, &own.after, &own.either];
            let mut known = known.into_iter().flatten().peekable();
            known.peek()?;
            Some(known.any(|name| name == either)).filter(|same| {
                // One end is unknown: it may be that one.
                *same || (own.before.is_some() && own.after.is_some())
            })
        };
        names(self, &other.either).or_else(|| names(other, &self.either))
    }
}

impl Details {
    fn join(&mut self, other: &Self) {
        fn fill<T: Clone>(own: &mut Option<T>, other: &Option<T>) {
            *own = own.take().or_else(|| other.clone());
        }
        fill(&mut self.messages_before, &other.messages_before);
        fill(&mut self.messages_after, &other.messages_after);
        fill(&mut self.tokens_before, &other.tokens_before);
        fill(&mut self.tokens_after, &other.tokens_after);
        fill(&mut self.summary, &other.summary);
        fill(&mut self.error, &other.error);
    }
}

/// The compactions of a run, the oldest first: at most one of them is active.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Recent(Vec<Compaction>);

impl Recent {
    /// The one that may still be going on.
    pub fn active(&self) -> Option<&Compaction> {
        self.0.iter().rfind(|compaction| compaction.is_active())
    }

    /// All of them, the oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Compaction> {
        self.0.iter()
    }

    /// Where this one stands, if it is among them.
    pub fn status(&self, id: CompactionId) -> Option<CompactionStatus> {
        self.0.iter().find(|own| own.id == id).map(|own| own.status)
    }

    /// Those of a task, the oldest first.
    pub fn of(&self, task: TaskId) -> impl DoubleEndedIterator<Item = &Compaction> {
        self.0.iter().filter(move |compaction| compaction.task == Some(task))
    }

    /// Stores what became of one.
    pub fn put(&mut self, compaction: Compaction) {
        match self.0.iter_mut().find(|own| own.id == compaction.id) {
            Some(own) => *own = compaction,
            None => {
                self.0.push(compaction);
                if self.0.len() > RECENT_MAX {
                    self.0.remove(0);
                }
            }
        }
    }

    /// The prompt of another turn was sent.
    pub fn pass(&mut self) {
        self.0.iter_mut().for_each(|compaction| compaction.passed = true);
    }

    /// The run is over; nothing of it is heard any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Which compaction a signal is about, if it is one of these.
    ///
    /// Each detector tells of a run's compactions in their order. So a signal belongs to the one
    /// that its detector left unfinished, else to the first that it has not told of; unless names
    /// or outcomes say otherwise.
    pub fn meant_by(&self, signal: &Signal) -> Option<&Compaction> {
        let source = signal.source;
        // An agent may begin what another detector saw to come to nothing, and complete the next
        // under the same name: the outcome counts for more.
        let named = |own: &&Compaction| {
            signal.key.is_some()
                && own.key == signal.key
                && (own.status.agrees(signal.sign) || own.ended_by.contains(&source))
        };
        if let Some(named) = self.0.iter().rfind(named) {
            return Some(named);
        }
        let may_be = |own: &&Compaction| {
            own.status.agrees(signal.sign)
                && (signal.key.is_none() || own.key.is_none())
                && own.lineage.matches(&signal.lineage) != Some(false)
        };
        let begins = signal.sign == Sign::Started;
        let unfinished = |own: &&Compaction| {
            own.waits_for(source) && may_be(own) && (!begins || own.is_active())
        };
        let untold = |own: &&Compaction| {
            !own.sources.contains(&source)
                && may_be(own)
                && (!own.passed || own.lineage.matches(&signal.lineage) == Some(true))
        };
        self.0.iter().rfind(unfinished).or_else(|| self.0.iter().find(untold))
    }
}
