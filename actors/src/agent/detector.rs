//! What a run tells of compactions: the words of all detectors that its profile listens to, with
//! the little memory that it takes to read them. What they mean is core's to decide.

use std::collections::VecDeque;

use greenroom_core::{Details, Lineage, Provenance, SUMMARY_BYTES_MAX, Sign, Signal, Source};

use super::{
    acp::{self, Clues, Report},
    bounds::append,
    hermes,
};
use crate::profile::Signals;

/// Compactions that are remembered, and hermes sessions. An agent has one at a time, and says
/// little of an old one.
const KNOWN_MAX: usize = 16;

/// The detectors of one run. It forgets with the run: compaction ids are the agent's own.
#[derive(Debug)]
pub struct Detector {
    listens: Signals,
    known: VecDeque<Known>,
    /// hermes sessions that others continue.
    left: VecDeque<String>,
}

/// A compaction whose name ACP gave.
#[derive(Debug)]
struct Known {
    key: String,
    /// What came of its summary by and by.
    summary: String,
    ended: bool,
}

/// What was seen in one line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Something of a compaction.
    pub signal: Option<Signal>,
    /// The hermes session in force, whether it changed or not.
    pub provenance: Option<Provenance>,
}

impl Detector {
    /// One that listens to ACP, and to what the profile adds.
    pub fn new(listens: Signals) -> Self {
        Self { listens, known: VecDeque::new(), left: VecDeque::new() }
    }

    /// Takes in what an update tells. What is replayed while a session is loaded is old, and must
    /// not be given here.
    pub fn update(&mut self, clues: Clues) -> Seen {
        let provenance = clues.provenance.filter(|_| self.listens.hermes_meta);
        let provenance = provenance.and_then(|provenance| self.in_force(provenance));
        let signal = match clues.report {
            None => None,
            Some(Report::Compaction(signal)) => Some(self.compaction(signal)),
            Some(Report::SummaryChunk { key, text }) => self.summary_chunk(key, &text),
            Some(Report::Call { id, compacts, sign, error }) => {
                let is_known = self.known.iter().any(|known| known.key == id);
                (compacts || is_known).then(|| {
                    let details = Details { error, ..Details::default() };
                    self.compaction(acp_signal(sign, id, details))
                })
            }
        };
        Seen { signal, provenance }
    }

    /// The hermes session in force by the answer to `session/new`, `session/load` or
    /// `session/resume`.
    pub fn answer(&self, result: &str) -> Option<Provenance> {
        self.listens.hermes_meta.then(|| acp::provenance(result)).flatten()
    }

    /// What a line on stderr tells: nothing, unless the profile listens (SEEDS AM-20).
    pub fn stderr(&self, line: &str) -> Option<Signal> {
        self.listens.hermes_stderr.then(|| hermes::stderr_signal(line)).flatten()
    }

    /// hermes sends a title of its own accord, with a provenance as if the ACP session's own were
    /// still in force. A session that was continued by another does not come back within a run.
    fn in_force(&mut self, provenance: Provenance) -> Option<Provenance> {
        if self.left.contains(&provenance.current) {
            return None;
        }
        if let Some(previous) = &provenance.previous
            && !self.left.contains(previous)
        {
            remember(&mut self.left, previous.clone());
        }
        Some(provenance)
    }

    fn compaction(&mut self, mut signal: Signal) -> Signal {
        let Some(key) = &signal.key else { return signal };
        let known = self.known(key);
        known.ended |= !matches!(signal.sign, Sign::Started | Sign::Noted);
        match &signal.details.summary {
            // A whole summary replaces what came in pieces.
            Some(whole) if !known.ended => known.summary.clone_from(whole),
            Some(_) => known.summary.clear(),
            None if known.ended && !known.summary.is_empty() => {
                signal.details.summary = Some(std::mem::take(&mut known.summary));
            }
            None => {}
        }
        signal
    }

    /// The pieces are told with the end. The first one of an unknown compaction begins it.
    fn summary_chunk(&mut self, key: String, text: &str) -> Option<Signal> {
        let begins = !self.known.iter().any(|known| known.key == key);
        let known = self.known(&key);
        if !known.ended {
            append(&mut known.summary, text, SUMMARY_BYTES_MAX);
        }
        begins.then(|| acp_signal(Sign::Started, key, Details::default()))
    }

    fn known(&mut self, key: &str) -> &mut Known {
        let at = self.known.iter().position(|known| known.key == key).unwrap_or_else(|| {
            let known = Known { key: key.to_owned(), summary: String::new(), ended: false };
            remember(&mut self.known, known);
            self.known.len() - 1
        });
        &mut self.known[at]
    }
}

fn remember<T>(few: &mut VecDeque<T>, one: T) {
    if few.len() == KNOWN_MAX {
        few.pop_front();
    }
    few.push_back(one);
}

fn acp_signal(sign: Sign, key: String, details: Details) -> Signal {
    Signal { source: Source::Acp, sign, key: Some(key), lineage: Lineage::default(), details }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const EVERYTHING: Signals = Signals { hermes_meta: true, hermes_stderr: true };

    fn seen(detector: &mut Detector, update: &str) -> Seen {
        let line = format!(
            r#"{{"method":"session/update","params":{{"sessionId":"s","update":{update}}}}}"#
        );
        match acp::hear(&line) {
            Ok(acp::Heard::Notice(notice)) => {
                notice.clues.map(|clues| detector.update(*clues)).unwrap_or_default()
            }
            other => panic!("{other:?}"),
        }
    }

    fn call(detector: &mut Detector, word: &str, id: &str, fields: &str) -> Option<(Sign, String)> {
        let update = format!(r#"{{"sessionUpdate":"{word}","toolCallId":"{id}"{fields}}}"#);
        seen(detector, &update).signal.map(|signal| (signal.sign, signal.key.unwrap()))
    }

    /// SEEDS AM-20: what the profile does not list changes nothing, even on an exact match.
    #[test]
    fn only_what_the_profile_lists_is_listened_to() {
        let update =
            r#"{"sessionUpdate":"session_info_update","_meta":{"hermes":{"hermesSessionId":"b"}}}"#;
        let answer = r#"{"_meta":{"hermes":{"hermesSessionId":"b"}}}"#;
        let line = "context compression done: session=b messages=9->5";
        for (hermes_meta, hermes_stderr) in [(false, false), (true, false), (false, true)] {
            let mut detector = Detector::new(Signals { hermes_meta, hermes_stderr });
            let provenance = seen(&mut detector, update).provenance;
            assert_eq!(provenance.is_some(), hermes_meta);
            assert_eq!(detector.answer(answer), provenance);
            assert_eq!(detector.stderr(line).is_some(), hermes_stderr);
        }
    }

    /// What hermes-agent 0.19.0 sends when a title is found after a turn that rotated.
    #[test]
    fn a_title_does_not_bring_back_a_session_that_was_left() {
        let mut detector = Detector::new(EVERYTHING);
        let mut current = |provenance: &str| {
            let update = format!(
                r#"{{"sessionUpdate":"session_info_update","_meta":{{"hermes":{{"sessionProvenance":{provenance}}}}}}}"#
            );
            seen(&mut detector, &update).provenance.map(|provenance| provenance.current)
        };
        const ROOT: &str = r#"{"acpSessionId":"a","currentHermesSessionId":"a"}"#;
        const CHILD: &str = r#"{"acpSessionId":"a","currentHermesSessionId":"b","previousHermesSessionId":"a","reason":"compression"}"#;
        const GRANDCHILD: &str = r#"{"acpSessionId":"a","currentHermesSessionId":"c","previousHermesSessionId":"b","reason":"compression"}"#;
        assert_eq!(current(ROOT).as_deref(), Some("a"));
        assert_eq!(current(CHILD).as_deref(), Some("b"));
        assert_eq!(current(ROOT), None);
        assert_eq!(current(GRANDCHILD).as_deref(), Some("c"));
        assert_eq!(current(CHILD), None);
        assert_eq!(current(ROOT), None);
    }

    /// REAL-AGENTS: the updates of a tool call carry its id and a status, and no title.
    #[test]
    fn the_updates_of_a_compacting_call_are_recognized() {
        const TITLE: &str = r#","title":"Compact conversation","kind":"think""#;
        let mut detector = Detector::new(Signals::default());
        let none = call(&mut detector, "tool_call_update", "c", r#","status":"completed""#);
        assert_eq!(none, None, "nobody said what it is");
        let named = |sign| Some((sign, "c".to_owned()));
        assert_eq!(call(&mut detector, "tool_call", "c", TITLE), named(Sign::Started));
        assert_eq!(call(&mut detector, "tool_call", "t", r#","title":"ls""#), None);
        let ended = r#","status":"completed""#;
        assert_eq!(call(&mut detector, "tool_call_update", "t", ended), None);
        assert_eq!(call(&mut detector, "tool_call_update", "c", ""), named(Sign::Noted));
        assert_eq!(call(&mut detector, "tool_call_update", "c", ended), named(Sign::Completed));
    }

    #[test]
    fn no_more_than_a_few_compactions_are_remembered() {
        const TITLE: &str = r#","title":"Compact conversation","kind":"think""#;
        let mut detector = Detector::new(Signals::default());
        for id in 0..=KNOWN_MAX {
            call(&mut detector, "tool_call", &id.to_string(), TITLE);
        }
        assert_eq!(detector.known.len(), KNOWN_MAX);
        assert_eq!(call(&mut detector, "tool_call_update", "0", ""), None, "the oldest is gone");
        assert!(call(&mut detector, "tool_call_update", "1", "").is_some());
    }

    /// ACP: a summary comes whole, or in pieces that are joined; a whole one replaces the pieces.
    #[test]
    fn a_summary_in_pieces_is_told_with_the_end() {
        const DONE: &str = r#","status":"completed""#;
        #[rustfmt::skip]
        let cases: [(&str, &[&str], Option<&str>); 5] = [
            ("pieces",            &["+a", "+b", DONE],                                       Some("ab")),
            ("none",              &[r#","status":"in_progress""#, DONE],                     None),
            ("whole at the end",  &["+a", r#","status":"completed","summary":[{"text":"w"}]"#], Some("w")),
            ("whole, then more",  &[r#","status":"in_progress","summary":[{"text":"w"}]"#, "+a", DONE], Some("wa")),
            ("failed with some",  &["+a", r#","status":"failed""#],                          Some("a")),
        ];
        for (name, updates, expected) in cases {
            let mut detector = Detector::new(EVERYTHING);
            let mut signals = Vec::new();
            for update in updates {
                let update = match update.strip_prefix('+') {
                    Some(text) => format!(
                        r#"{{"sessionUpdate":"compaction_summary_chunk","compactionId":"c","content":{{"type":"text","text":"{text}"}}}}"#
                    ),
                    None => {
                        format!(
                            r#"{{"sessionUpdate":"compaction_update","compactionId":"c"{update}}}"#
                        )
                    }
                };
                signals.extend(seen(&mut detector, &update).signal);
            }
            assert_eq!(signals.len(), 2, "{name}: its beginning and its end: {signals:?}");
            assert_eq!(signals[0].sign, Sign::Started, "{name}");
            assert_eq!(signals[1].details.summary.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_summary_in_many_pieces_is_bounded() {
        let mut detector = Detector::new(EVERYTHING);
        for _ in 0..100 {
            detector.summary_chunk("c".into(), &"ä".repeat(500));
        }
        assert_eq!(detector.known[0].summary.len(), SUMMARY_BYTES_MAX);
        let late = detector.compaction(acp_signal(Sign::Completed, "c".into(), Details::default()));
        assert_eq!(late.details.summary.map(|text| text.len()), Some(SUMMARY_BYTES_MAX));
        assert_eq!(detector.summary_chunk("c".into(), "late"), None);
        assert_eq!(detector.known[0].summary, "", "what comes behind the end is not kept");
    }
}
