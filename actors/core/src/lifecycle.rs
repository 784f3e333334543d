//! The life of one compaction, however many detectors see it (SEEDS AM-29).
//!
//! Owns the lifecycle and the question which compaction a signal is about. It refuses to decide
//! what follows from a compaction's end: the group does.

use serde::{Deserialize, Serialize};

use crate::{CompactionId, Details, Lineage, Sign, Signal, Source, TaskId, Timestamp};

/// How many compactions of a run are remembered, for signals that come late.
pub(crate) const RECENT_MAX: usize = 16;

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
    /// How a detector saw it end that is not believed, or too late.
    #[serde(skip)]
    hearsay: Option<Sign>,
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
            hearsay: None,
            passed: false,
        }
    }

    /// Takes in what a detector saw, which decides where it stands if the detector is `believed`.
    /// What is known already stays.
    pub(crate) fn hear(&mut self, signal: &Signal, believed: bool, at: Timestamp) {
        let Signal { source, sign, .. } = *signal;
        if self.is_active() {
            self.passed = false;
        }
        if !self.sources.contains(&source) {
            self.sources.push(source);
        }
        let goes_on = matches!(sign, Sign::Started | Sign::Noted);
        if !goes_on && !self.ended_by.contains(&source) {
            self.ended_by.push(source);
        }
        if believed || goes_on || sign == Sign::Completed {
            self.key = self.key.take().or_else(|| signal.key.clone());
            self.lineage.join(&signal.lineage);
            self.details.join(&signal.details);
        }
        if believed {
            self.turn(Fate::Seen(sign), at);
        }
        let is_open =
            matches!(self.status, CompactionStatus::InProgress | CompactionStatus::Abandoned);
        if !goes_on && is_open {
            self.hearsay = self.hearsay.or(Some(sign));
        }
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

    /// Whether it may be the one that a detector saw do this.
    fn agrees(&self, sign: Sign) -> bool {
        let goes_on = matches!(sign, Sign::Started | Sign::Noted);
        let done = |sign| sign == Sign::Completed;
        let heard = self.hearsay.is_none_or(|heard| goes_on || done(heard) == done(sign));
        heard && self.status.agrees(sign)
    }

    /// Whether a detector saw it done.
    fn is_done(&self) -> bool {
        self.status == CompactionStatus::Completed || self.hearsay == Some(Sign::Completed)
    }

    /// Whether it led from this hermes session to another.
    pub(crate) fn left(&self, session: &str) -> bool {
        self.lineage.before.as_deref() == Some(session)
            && self.lineage.after.as_deref().is_some_and(|after| after != session)
    }

    /// Whether the detector told of it, and not of its end. One that it saw begin it may see begin
    /// again, as long as nobody knows better.
    fn is_unfinished(&self, signal: &Signal) -> bool {
        let waits =
            self.sources.contains(&signal.source) && !self.ended_by.contains(&signal.source);
        let ended_meanwhile = self.status == CompactionStatus::Completed && self.is_near(signal);
        let is_left = signal.lineage.before.as_deref().is_some_and(|before| self.left(before));
        let may_begin = self.is_active() || ended_meanwhile || is_left;
        waits && (signal.sign != Sign::Started || may_begin)
    }

    /// Whether the detector may be about to tell of it.
    fn is_untold(&self, signal: &Signal) -> bool {
        !self.sources.contains(&signal.source) && (self.is_named(signal) || self.is_near(signal))
    }

    /// Whether the detector names a session that it is about.
    fn is_named(&self, signal: &Signal) -> bool {
        self.lineage.matches(&signal.lineage) == Some(true)
    }

    /// Whether the detector may still tell of it: what it sees in another turn is about one of that
    /// turn, unless it is stderr, which may come late, and ACP told of this one already.
    fn is_near(&self, signal: &Signal) -> bool {
        let may_be_late = signal.source == Source::HermesStderr;
        !self.passed || (may_be_late && self.sources.contains(&Source::Acp))
    }

    /// How well it fits what a detector tells of for the first time: by the session after it;
    /// rather if it was not given up; by a session at all.
    fn likeness(&self, signal: &Signal) -> (bool, bool, bool) {
        let after = signal.lineage.after.is_some() && self.lineage.after == signal.lineage.after;
        let given_up = self.status == CompactionStatus::Abandoned && self.hearsay.is_none();
        (after, !given_up, self.is_named(signal))
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
                let oldest = self.0.iter().position(|own| !own.is_active());
                if let Some(oldest) = oldest.filter(|_| self.0.len() > RECENT_MAX) {
                    self.0.remove(oldest);
                }
            }
        }
    }

    /// Whether one led to this hermes session of whose end the detector has not told yet.
    pub fn is_ahead(&self, source: Source, session: &str) -> bool {
        let leads = |own: &Compaction| own.lineage.after.as_deref() == Some(session);
        self.0.iter().any(|own| leads(own) && !own.ended_by.contains(&source))
    }

    /// The prompt of another turn was sent.
    pub fn pass(&mut self) {
        self.0.iter_mut().for_each(|compaction| compaction.passed = true);
    }

    /// The run is over; nothing of it is heard any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Which compaction a signal is about, if it is one of these; if not `is_news`, it has to be
    /// one that it names.
    ///
    /// Each detector tells of a run's compactions in their order. So a signal belongs to the one
    /// that its detector left unfinished, else to the first that it has not told of; unless names
    /// or outcomes say otherwise. That is enough in whatever order the pipes are read, as long as
    /// stderr lines that name no session are read before the next prompt is sent: later they pass
    /// for that turn's, and count again, in a run that shows nothing by ACP.
    pub fn meant_by(&self, signal: &Signal, is_news: bool) -> Option<&Compaction> {
        // An agent may begin what another detector saw to come to nothing, and complete the next
        // under the same name: the outcome counts for more.
        let has_key = |own: &&Compaction| {
            signal.key.is_some()
                && own.key == signal.key
                && (own.agrees(signal.sign) || own.ended_by.contains(&signal.source))
        };
        if let Some(keyed) = self.0.iter().rfind(has_key) {
            return Some(keyed);
        }
        let may_be = |own: &&Compaction| {
            let named = own.lineage.matches(&signal.lineage);
            own.agrees(signal.sign)
                && (signal.key.is_none() || own.key.is_none())
                && named != Some(false)
                && (is_news || named == Some(true))
        };
        let fits = || self.0.iter().filter(may_be);
        let untold = || fits().filter(|own| own.is_untold(signal));
        let unfinished = fits().filter(|own| own.is_unfinished(signal));
        let unfinished = unfinished.max_by_key(|own| own.is_named(signal));
        // Of equals the first; but hermes tells once, at a turn's end, of the last done in it.
        unfinished.or_else(|| match signal.source {
            Source::HermesMeta => untold().max_by_key(|own| (own.likeness(signal), own.is_done())),
            _ => untold().rev().max_by_key(|own| own.likeness(signal)),
        })
    }
}
