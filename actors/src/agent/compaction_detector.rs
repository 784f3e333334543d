//! Detects compactions in a run's output: all detectors that its profile enables, and their state.
//!
//! Core decides what the signals mean.

use std::collections::VecDeque;

use greenroom_core::{
    CompactionSignal, Details, Lineage, Provenance, SUMMARY_BYTES_MAX, SignalKind, Source,
};

use super::hermes;
use crate::{
    acp::{self, CompactionReport, ContextUpdate, bounds::append_bounded},
    profile::Detector,
};

/// The number of compactions remembered, and of hermes sessions. An agent has one at a time, and
/// rarely mentions an old one.
const KNOWN_MAX: usize = 16;

/// The detectors of one run. Their state ends with the run, as compaction ids are the agent's own.
#[derive(Debug)]
pub struct CompactionDetector {
    enabled: Vec<Detector>,
    known: VecDeque<Known>,
    /// hermes sessions that another one continues.
    continued: VecDeque<String>,
}

/// A compaction with an id from ACP.
#[derive(Debug)]
struct Known {
    key: String,
    /// The chunks of its summary so far.
    summary: String,
    ended: bool,
}

/// What one line reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Detected {
    /// The signal of a compaction.
    pub signal: Option<CompactionSignal>,
    /// The current hermes session, whether it changed or not.
    pub provenance: Option<Provenance>,
}

impl CompactionDetector {
    /// Creates the detectors: ACP's, and those that the profile enables.
    pub fn new(enabled: &[Detector]) -> Self {
        let enabled = enabled.to_vec();
        Self { enabled, known: VecDeque::new(), continued: VecDeque::new() }
    }

    fn is_enabled(&self, detector: Detector) -> bool {
        self.enabled.contains(&detector)
    }

    /// Detects compactions in an update. The replay of a restored session is old, and must not be
    /// passed here.
    pub fn update(&mut self, context: ContextUpdate) -> Detected {
        let provenance = context.provenance.filter(|_| self.is_enabled(Detector::HermesMeta));
        let provenance = provenance.and_then(|provenance| self.current(provenance));
        let signal = match context.report {
            None => None,
            Some(CompactionReport::Compaction(signal)) => Some(self.compaction(signal)),
            Some(CompactionReport::SummaryChunk { key, text }) => self.summary_chunk(key, &text),
            Some(CompactionReport::Call { id, compacts, kind, error }) => {
                let is_known = self.known.iter().any(|known| known.key == id);
                (compacts || is_known).then(|| {
                    let details = Details { error, ..Details::default() };
                    self.compaction(acp_signal(kind, id, details))
                })
            }
        };
        Detected { signal, provenance }
    }

    /// Returns the current hermes session from the response to `session/new`, `session/load` or
    /// `session/resume`.
    pub fn provenance(&self, result: &str) -> Option<Provenance> {
        self.is_enabled(Detector::HermesMeta).then(|| acp::provenance(result)).flatten()
    }

    /// Detects a compaction in a line from stderr, if the profile enables that (AM-20).
    pub fn stderr(&self, line: &str) -> Option<CompactionSignal> {
        self.is_enabled(Detector::HermesStderr).then(|| hermes::stderr_signal(line)).flatten()
    }

    /// Filters out a provenance that is not current. With a title, hermes sends the provenance of
    /// the ACP session's first hermes session; but a session that another one continues does not
    /// become current again within a run.
    fn current(&mut self, provenance: Provenance) -> Option<Provenance> {
        if self.continued.contains(&provenance.current) {
            return None;
        }
        if let Some(previous) = &provenance.previous
            && !self.continued.contains(previous)
        {
            remember(&mut self.continued, previous.clone());
        }
        Some(provenance)
    }

    fn compaction(&mut self, mut signal: CompactionSignal) -> CompactionSignal {
        let Some(key) = &signal.key else { return signal };
        let known = self.known(key);
        known.ended |= !matches!(signal.kind, SignalKind::Started | SignalKind::Noted);
        match &signal.details.summary {
            // A whole summary replaces the chunks.
            Some(whole) if !known.ended => known.summary.clone_from(whole),
            Some(_) => known.summary.clear(),
            None if known.ended && !known.summary.is_empty() => {
                signal.details.summary = Some(std::mem::take(&mut known.summary));
            }
            None => {}
        }
        signal
    }

    /// Collects a chunk, which is reported with the end. The first chunk of an unknown compaction
    /// starts it.
    fn summary_chunk(&mut self, key: String, text: &str) -> Option<CompactionSignal> {
        let begins = !self.known.iter().any(|known| known.key == key);
        let known = self.known(&key);
        if !known.ended {
            append_bounded(&mut known.summary, text, SUMMARY_BYTES_MAX);
        }
        begins.then(|| acp_signal(SignalKind::Started, key, Details::default()))
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

fn acp_signal(kind: SignalKind, key: String, details: Details) -> CompactionSignal {
    CompactionSignal {
        source: Source::Acp,
        kind,
        key: Some(key),
        lineage: Lineage::default(),
        details,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const EVERYTHING: &[Detector] = &[Detector::HermesMeta, Detector::HermesStderr];

    fn detected(detector: &mut CompactionDetector, update: &str) -> Detected {
        let line = format!(
            r#"{{"method":"session/update","params":{{"sessionId":"s","update":{update}}}}}"#
        );
        match acp::parse(&line) {
            Ok(acp::Message::Notification(notification)) => {
                notification.context.map(|context| detector.update(*context)).unwrap_or_default()
            }
            other => panic!("{other:?}"),
        }
    }

    fn call(
        detector: &mut CompactionDetector,
        name: &str,
        id: &str,
        fields: &str,
    ) -> Option<(SignalKind, String)> {
        let update = format!(r#"{{"sessionUpdate":"{name}","toolCallId":"{id}"{fields}}}"#);
        detected(detector, &update).signal.map(|signal| (signal.kind, signal.key.unwrap()))
    }

    /// AM-20: a detector that the profile does not list reports nothing, even on an exact match.
    #[test]
    fn only_detectors_of_the_profile_report() {
        let update =
            r#"{"sessionUpdate":"session_info_update","_meta":{"hermes":{"hermesSessionId":"b"}}}"#;
        let answer = r#"{"_meta":{"hermes":{"hermesSessionId":"b"}}}"#;
        let line = "context compression done: session=b messages=9->5";
        for enabled in [&[][..], &[Detector::HermesMeta], &[Detector::HermesStderr]] {
            let hermes_meta = enabled.contains(&Detector::HermesMeta);
            let hermes_stderr = enabled.contains(&Detector::HermesStderr);
            let mut detector = CompactionDetector::new(enabled);
            let provenance = detected(&mut detector, update).provenance;
            assert_eq!(provenance.is_some(), hermes_meta);
            assert_eq!(detector.provenance(answer), provenance);
            assert_eq!(detector.stderr(line).is_some(), hermes_stderr);
        }
    }

    /// What hermes-agent 0.19.0 sends with the title after a turn with a rotation.
    #[test]
    fn a_title_does_not_restore_a_session_that_another_one_continues() {
        let mut detector = CompactionDetector::new(EVERYTHING);
        let mut current = |provenance: &str| {
            let update = format!(
                r#"{{"sessionUpdate":"session_info_update","_meta":{{"hermes":{{"sessionProvenance":{provenance}}}}}}}"#
            );
            detected(&mut detector, &update).provenance.map(|provenance| provenance.current)
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

    /// RA: the updates of a tool call carry its id and a status, and no title.
    #[test]
    fn the_updates_of_a_compacting_call_are_recognized() {
        const TITLE: &str = r#","title":"Compact conversation","kind":"think""#;
        let mut detector = CompactionDetector::new(&[]);
        let none = call(&mut detector, "tool_call_update", "c", r#","status":"completed""#);
        assert_eq!(none, None, "no title so far");
        let named = |kind| Some((kind, "c".to_owned()));
        assert_eq!(call(&mut detector, "tool_call", "c", TITLE), named(SignalKind::Started));
        assert_eq!(call(&mut detector, "tool_call", "t", r#","title":"ls""#), None);
        let ended = r#","status":"completed""#;
        assert_eq!(call(&mut detector, "tool_call_update", "t", ended), None);
        assert_eq!(call(&mut detector, "tool_call_update", "c", ""), named(SignalKind::Noted));
        assert_eq!(
            call(&mut detector, "tool_call_update", "c", ended),
            named(SignalKind::Completed)
        );
    }

    #[test]
    fn the_number_of_remembered_compactions_is_bounded() {
        const TITLE: &str = r#","title":"Compact conversation","kind":"think""#;
        let mut detector = CompactionDetector::new(&[]);
        for id in 0..=KNOWN_MAX {
            call(&mut detector, "tool_call", &id.to_string(), TITLE);
        }
        assert_eq!(detector.known.len(), KNOWN_MAX);
        assert_eq!(
            call(&mut detector, "tool_call_update", "0", ""),
            None,
            "the oldest is forgotten"
        );
        assert!(call(&mut detector, "tool_call_update", "1", "").is_some());
    }

    /// ACP: a summary comes whole, or in chunks that are joined; a whole one replaces the chunks.
    #[test]
    fn a_summary_in_chunks_is_reported_with_the_end() {
        const DONE: &str = r#","status":"completed""#;
        #[rustfmt::skip]
        let cases: [(&str, &[&str], Option<&str>); 5] = [
            ("chunks",            &["+a", "+b", DONE],                                       Some("ab")),
            ("none",              &[r#","status":"in_progress""#, DONE],                     None),
            ("whole at the end",  &["+a", r#","status":"completed","summary":[{"text":"w"}]"#], Some("w")),
            ("whole, then more",  &[r#","status":"in_progress","summary":[{"text":"w"}]"#, "+a", DONE], Some("wa")),
            ("failed with some",  &["+a", r#","status":"failed""#],                          Some("a")),
        ];
        for (name, updates, expected) in cases {
            let mut detector = CompactionDetector::new(EVERYTHING);
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
                signals.extend(detected(&mut detector, &update).signal);
            }
            assert_eq!(signals.len(), 2, "{name}: start and end: {signals:?}");
            assert_eq!(signals[0].kind, SignalKind::Started, "{name}");
            assert_eq!(signals[1].details.summary.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_summary_in_many_chunks_is_bounded() {
        let mut detector = CompactionDetector::new(EVERYTHING);
        for _ in 0..100 {
            detector.summary_chunk("c".into(), &"ä".repeat(500));
        }
        assert_eq!(detector.known[0].summary.len(), SUMMARY_BYTES_MAX);
        let late =
            detector.compaction(acp_signal(SignalKind::Completed, "c".into(), Details::default()));
        assert_eq!(late.details.summary.map(|text| text.len()), Some(SUMMARY_BYTES_MAX));
        assert_eq!(detector.summary_chunk("c".into(), "late"), None);
        assert_eq!(detector.known[0].summary, "", "a chunk after the end is dropped");
    }
}
