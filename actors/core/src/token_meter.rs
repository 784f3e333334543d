//! What a prompt spent, of an agent that may report the totals of its session instead.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Json, PromptReply, SessionId, Tokens};

/// What a prompt spent, as the agent reports in its answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokensSpent {
    /// All of it.
    #[serde(flatten)]
    pub total: Tokens,
    /// What each model spent, if the agent reports that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_model: BTreeMap<String, Tokens>,
    /// The token counts, unchanged.
    #[serde(skip)]
    pub given: Option<Json>,
    /// The sum of all kinds of tokens, if the agent reports that.
    #[serde(skip)]
    pub given_sum: Option<u64>,
    /// Whether the counts are surely those of the prompt alone.
    #[serde(skip)]
    pub is_of_prompt: bool,
}

impl TokensSpent {
    /// Returns the sum of all kinds of tokens.
    pub fn sum(&self) -> u64 {
        let Tokens { input, output, cached } = self.total;
        self.given_sum.unwrap_or_else(|| input.saturating_add(output).saturating_add(cached))
    }

    /// Returns what was spent since `earlier` counts of the same session, unless any count fell.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let by_model = self.by_model.iter().map(|(model, tokens)| {
            let before = earlier.by_model.get(model).copied().unwrap_or_default();
            Some((model.clone(), tokens.since(&before)?))
        });
        Some(Self {
            total: self.total.since(&earlier.total)?,
            by_model: by_model.collect::<Option<_>>()?,
            given: None,
            given_sum: Some(self.sum().checked_sub(earlier.sum())?),
            is_of_prompt: true,
        })
    }
}

/// Reads the token counts in the answers of one run.
///
/// ACP means the totals of the session; most agents report the prompt's own. What shows which: a
/// prompt reads its whole context at least once. Counts that grow by much less are no totals;
/// counts that grow by about one context, and are larger than it, are. A total that falls begins
/// again, as after a compaction or in another session.
#[derive(Debug, Default)]
pub struct TokenMeter {
    reports: Reports,
    session: Option<SessionId>,
    /// The counts in the last answer that had any.
    last: Option<TokensSpent>,
    /// The context that the agent reported since the prompt, tokens.
    used: Option<u64>,
}

/// What the counts of an agent are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Reports {
    /// Not known yet: they are counted as the prompt's own.
    #[default]
    Unknown,
    /// Those of the prompt.
    Prompt,
    /// The session's totals, as the counts so far show.
    Session,
    /// The session's totals, as is known of the agent, whatever the counts show.
    SurelySession,
}

impl TokenMeter {
    /// A meter for an agent that reports `totals` of its session, or of which that is not known.
    pub fn new(totals: bool) -> Self {
        let reports = if totals { Reports::SurelySession } else { Reports::Unknown };
        Self { reports, ..Self::default() }
    }

    /// Begins a prompt for this session.
    pub fn on_prompt(&mut self, session: &SessionId) {
        self.used = None;
        if self.session.as_ref() != Some(session) {
            self.session = Some(session.clone());
            self.last = None;
        }
    }

    /// Records how many tokens of the context are in use.
    pub fn on_usage(&mut self, used: u64) {
        self.used = Some(used);
    }

    /// Returns the reply with what its prompt spent.
    #[must_use]
    pub fn read(&mut self, mut reply: PromptReply) -> PromptReply {
        let is_whole = reply.stop_reason().is_some_and(|reason| reason.is_whole());
        if let PromptReply::Stopped { tokens: Some(spent), .. }
        | PromptReply::Queued { tokens: Some(spent) } = &mut reply
        {
            self.measure(spent, is_whole);
        }
        reply
    }

    /// Replaces session totals by what they grew by. No tokens at all are no report: hermes writes
    /// zeros for a prompt that was cancelled.
    fn measure(&mut self, spent: &mut TokensSpent, is_whole: bool) {
        if spent.sum() == 0 || spent.is_of_prompt {
            return;
        }
        let last = self.last.replace(spent.clone());
        let Some(grown) = last.as_ref().and_then(|last| spent.since(last)) else {
            // The first ones, or fewer than before.
            if self.reports == Reports::Session {
                self.reports = Reports::Unknown;
            }
            return;
        };
        if let (Reports::Unknown, true, Some(used)) = (self.reports, is_whole, self.used) {
            self.reports = judge(spent.sum(), grown.sum(), used);
        }
        if matches!(self.reports, Reports::Session | Reports::SurelySession) {
            (spent.total, spent.by_model) = (grown.total, grown.by_model);
        }
    }
}

/// Decides what counts are, by their sum, by how much that grew, and by the context in use.
fn judge(sum: u64, grown: u64, used: u64) -> Reports {
    let (low, high) = (used / 4 * 3, used.saturating_add(used / 2));
    match grown {
        // No model was asked, or the same was asked twice.
        0 => Reports::Unknown,
        _ if used == 0 => Reports::Unknown,
        _ if grown < low => Reports::Prompt,
        _ if grown <= high && high < sum => Reports::Session,
        _ => Reports::Unknown,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::StopReason;

    /// The answers of a run: used, input, output, and the tokens that are counted.
    type Answers = [(u64, u64, u64, (u64, u64))];

    fn counted(meter: &mut TokenMeter, (used, input, output): (u64, u64, u64)) -> (u64, u64) {
        if used > 0 {
            meter.on_usage(used);
        }
        let total = Tokens { input, output, cached: 0 };
        let tokens = Some(Box::new(TokensSpent { total, ..TokensSpent::default() }));
        let is_cut = input + output == 0;
        let stop_reason = if is_cut { StopReason::Cancelled } else { StopReason::EndTurn };
        let spent = meter.read(PromptReply::Stopped { stop_reason, tokens }).tokens().unwrap();
        (spent.total.input, spent.total.output)
    }

    /// TD-9: whether counts are the prompt's own or the session's, as seven agents were recorded.
    #[test]
    fn session_totals_differ_from_the_counts_of_a_prompt() {
        #[rustfmt::skip]
        let cases: [(&str, bool, &Answers); 7] = [
            ("hermes", true, &[
                (20_237, 20_828, 14, (20_828, 14)), (30_197, 51_595, 28, (30_767, 14)),
                (50_118, 142_946, 56, (91_351, 28)), (41_011, 184_519, 70, (41_573, 14)),
            ]),
            ("hermes, a prompt is cancelled", true, &[
                (10_326, 10_930, 14, (10_930, 14)), (10_350, 0, 0, (0, 0)), (10_377, 21_901, 19, (10_971, 5)),
            ]),
            ("totals of another agent", false, &[
                (10_339, 10_930, 14, (10_930, 14)), (10_392, 21_902, 21, (10_972, 7)), (11_000, 55_000, 30, (33_098, 9)),
                (9_000, 9_100, 3, (9_100, 3)), (9_100, 18_300, 6, (9_200, 3)),
            ]),
            ("opencode", false, &[
                (8_660, 8_660, 14, (8_660, 14)), (9_599, 9_599, 14, (9_599, 14)), (7_865, 7_865, 14, (7_865, 14)),
                (10_671, 10_671, 14, (10_671, 14)),
            ]),
            ("many calls in one prompt", false, &[
                (8_000, 8_000, 1, (8_000, 1)), (8_500, 8_500, 1, (8_500, 1)), (9_000, 17_500, 2, (17_500, 2)),
            ]),
            ("no usage", false, &[(0, 100, 1, (100, 1)), (0, 250, 2, (250, 2))]),
            ("the same again", false, &[(90, 7, 5, (7, 5)), (90, 7, 5, (7, 5)), (95, 1, 2, (1, 2))]),
        ];
        for (name, totals, answers) in cases {
            let mut meter = TokenMeter::new(totals);
            let session = SessionId("s".into());
            for (used, input, output, expected) in answers {
                meter.on_prompt(&session);
                assert_eq!(counted(&mut meter, (*used, *input, *output)), *expected, "{name}");
            }
        }
    }

    /// TD-9: another session begins its own totals, and the counts of a prompt are never totals.
    #[test]
    fn totals_are_of_one_session() {
        let mut meter = TokenMeter::new(true);
        for (session, input, expected) in [("one", 100, 100), ("two", 150, 150), ("two", 250, 100)]
        {
            meter.on_prompt(&SessionId(session.into()));
            assert_eq!(counted(&mut meter, (0, input, 0)).0, expected, "{session}");
        }
        let total = Tokens { input: 300, output: 0, cached: 0 };
        let own = TokensSpent { total, is_of_prompt: true, ..TokensSpent::default() };
        let (stop_reason, tokens) = (StopReason::EndTurn, Some(Box::new(own)));
        let reply = meter.read(PromptReply::Stopped { stop_reason, tokens });
        assert_eq!(reply.tokens().unwrap().total.input, 300);
    }
}
