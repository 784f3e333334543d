//! Which turn an agent's messages belong to: an agent may still write after its answer.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{Attempt, Ending, OutputSummary, StopReason, TaskId, bounded_text::BoundedText};

/// How many messages of a run are remembered, the newest. Late words continue one of the last.
const MESSAGES_MAX: usize = 32;

/// ACP's id of a message, hashed: a message has one id, also in several chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageKey(u64);

impl MessageKey {
    /// Hashes the id that the agent wrote (FNV-1a).
    pub fn new(id: &str) -> Self {
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        Self(id.bytes().fold(0xcbf2_9ce4_8422_2325, hash))
    }
}

/// The messages of a run, and the tasks whose attempts they belong to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MessageOwners {
    /// The task whose attempt was settled last.
    settled: Option<TaskId>,
    /// Likewise, before that.
    #[serde(skip_serializing_if = "Option::is_none")]
    settled_before: Option<TaskId>,
    messages: VecDeque<(MessageKey, TaskId)>,
    /// Whether the agent used an id in more than one turn: then no id shows whose a message is.
    reuses_ids: bool,
    /// What the agent wrote in messages of earlier tasks since it got the last prompt, after all
    /// output of the attempt's own, and whether any of it is an answer.
    #[serde(skip)]
    continued: (BoundedText, bool),
    /// How many bytes of text it wrote in them before it got that prompt.
    #[serde(skip)]
    early_bytes: u64,
    /// How many bytes of text it continued before the last output of the attempt's own.
    #[serde(skip)]
    dropped_bytes: u64,
    /// Whether the agent may replay its session during the attempt that begins.
    #[serde(skip)]
    may_replay: bool,
}

impl MessageOwners {
    /// Returns the earlier task that output belongs to, and whether that is sure; `None` if it
    /// belongs to the attempt of `running`. Its message began in that task, or greenroom read it
    /// before it sent the running prompt, or no attempt runs. A chunk that follows the prompt and
    /// names no message may be of either turn, and counts for the running one.
    ///
    /// `running`: the task whose attempt runs, and the id of its prompt. `after_prompt`: the last
    /// prompt that the agent had been sent when greenroom read the output.
    pub(crate) fn earlier(
        &self,
        summary: &OutputSummary,
        running: Option<(TaskId, u64)>,
        after_prompt: Option<u64>,
    ) -> Option<(TaskId, bool)> {
        if !summary.has_output && summary.elsewhere().is_none() {
            return None;
        }
        let is_other = |task: &TaskId| running.is_none_or(|(running, _)| *task != running);
        let named = summary.message.and_then(|message| self.of(message)).filter(is_other);
        let is_surely_late = running.is_none_or(|(_, prompt)| after_prompt < Some(prompt));
        let settled = self.settled.filter(|_| is_surely_late).filter(is_other);
        let task = named.filter(|_| !self.reuses_ids).or(settled);
        task.map(|task| (task, is_surely_late))
    }

    fn of(&self, message: MessageKey) -> Option<TaskId> {
        let known = self.messages.iter().find(|(known, _)| *known == message);
        known.map(|(_, task)| *task)
    }

    /// Adds output that belongs to `task`; `is_earlier`: another attempt runs.
    pub(crate) fn add(&mut self, summary: &OutputSummary, task: TaskId, is_earlier: bool) {
        if summary.has_output && !is_earlier {
            self.drop_continued();
        }
        let Some(message) = summary.message else { return };
        match self.of(message) {
            Some(_) if is_earlier && summary.is_early => {
                self.early_bytes += summary.text.len() as u64;
            }
            Some(_) if is_earlier => {
                self.continued.0.push(&summary.text);
                self.continued.1 |= summary.has_answer;
            }
            None if summary.has_output => {
                if self.messages.len() == MESSAGES_MAX {
                    self.messages.pop_front();
                }
                self.messages.push_back((message, task));
            }
            Some(_) | None => {}
        }
    }

    /// The running attempt got output of its own: late words come before that, so what the agent
    /// continued until then answers no prompt of the attempt.
    pub(crate) fn drop_continued(&mut self) {
        let (text, _) = std::mem::take(&mut self.continued);
        self.dropped_bytes += text.as_str().len() as u64;
    }

    /// The agent may replay its session during the attempt that begins.
    pub(crate) fn expect_replay(&mut self, may_replay: bool) {
        self.may_replay = may_replay;
    }

    /// Begins an attempt. Returns whether the agent may replay its session during it.
    pub(crate) fn begin(&mut self) -> bool {
        (self.continued, self.early_bytes, self.dropped_bytes) = Default::default();
        std::mem::take(&mut self.may_replay)
    }

    /// Returns how many bytes of text the agent wrote in messages of earlier tasks before it got
    /// the last prompt.
    pub(crate) fn early_bytes(&self) -> u64 {
        self.early_bytes
    }

    /// Takes these first bytes out of all text that the agent continued: a stored frame does not
    /// tell that it was read before the prompt was sent, so only the settlement shows it.
    pub(crate) fn forget_early(&mut self, bytes: u64) {
        let missed = bytes.saturating_sub(self.early_bytes);
        let kept = missed.saturating_sub(self.dropped_bytes);
        self.dropped_bytes -= missed - kept;
        self.early_bytes += missed;
        if kept > 0 {
            let (text, is_answer) = &mut self.continued;
            text.forget(usize::try_from(kept).unwrap_or(usize::MAX));
            *is_answer &= !text.as_str().trim().is_empty();
        }
    }

    /// Settles the attempt of `task`, whose answer is that in `ending` if [`Self::is_answered`].
    pub(crate) fn settle(&mut self, task: TaskId, is_answered: bool) {
        self.settled_before = self.settled.replace(task);
        self.reuses_ids |= is_answered;
    }

    /// Returns the task whose attempt was settled last: the agent wrote what it writes between two
    /// attempts for that one.
    pub(crate) fn settled(&self) -> Option<TaskId> {
        self.settled
    }

    /// The prompt of the attempt that was settled last was never sent: it has no output.
    pub(crate) fn withhold(&mut self) {
        self.settled = self.settled_before;
    }

    /// Whether the attempt of a turn, if it stops so, is answered in the messages of earlier turns:
    /// it ended as a whole, the agent wrote no other message, and it continued them after all else
    /// that it did. Such an agent uses its ids again.
    pub(crate) fn is_answered(&self, attempt: &Attempt, stop_reason: StopReason) -> bool {
        let is_silent = attempt.text().trim().is_empty();
        let has_other = attempt.has_answer() && !attempt.has_tools();
        self.continued.1 && is_silent && !has_other && stop_reason.is_whole()
    }

    /// Replaces the text of an ending that [`Self::is_answered`] in the messages of earlier turns.
    pub(crate) fn answer(&self, ending: &mut Ending) {
        let (text, _) = &self.continued;
        (ending.text, ending.text_truncated) = (text.as_str().to_owned(), text.is_truncated());
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// AM-9, I13: a stored frame does not say that it was read before the prompt was sent; with the
    /// settlement, it gives the same.
    #[test]
    fn a_settlement_shows_which_words_were_early() {
        let [earlier, running] = [1, 2].map(|id| TaskId(Uuid::from_u128(id)));
        let message = Some(MessageKey::new("a"));
        let of = |text: &str| OutputSummary {
            has_output: true,
            has_answer: true,
            text: text.into(),
            message,
            ..OutputSummary::default()
        };
        let own = OutputSummary { has_output: true, ..OutputSummary::default() };
        let played = |is_stored: bool, own_after: &[usize]| {
            let mut owners = MessageOwners::default();
            owners.add(&of("first"), earlier, false);
            owners.begin();
            for (number, text) in ["tail ", "of it", "second", "third"].into_iter().enumerate() {
                let is_early = number < 2 && !is_stored;
                owners.add(&OutputSummary { is_early, ..of(text) }, earlier, true);
                if own_after.contains(&number) {
                    owners.add(&own, running, false);
                }
            }
            owners.forget_early(10);
            owners
        };
        for (own_after, text) in
            [(&[][..], "secondthird"), (&[1], "secondthird"), (&[2], "third"), (&[1, 3], "")]
        {
            let live = played(false, own_after);
            assert_eq!(live.continued.0.as_str(), text, "{own_after:?}");
            assert_eq!(played(true, own_after), live, "{own_after:?}");
        }
    }
}
