//! The compactions that a run remembers, and which of them a signal belongs to (AM-29).

use super::{Compaction, CompactionStatus};
use crate::{CompactionId, CompactionSignal, Lineage, SignalKind, Source, TaskId};

/// How many compactions of a run are remembered, for late signals.
pub(crate) const RECENT_MAX: usize = 16;

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

impl Compaction {
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

impl CompactionStatus {
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

impl Lineage {
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
