//! Whether an agent moved to another session by itself within an attempt (AM-13).

use std::collections::BTreeSet;

use crate::{Elsewhere, OutputSummary, SessionId, bounded_text::BoundedText};

/// The most sessions of subagents that are remembered of an attempt.
const CHILDREN_MAX: usize = 64;

/// Follows the sessions that an attempt's output names.
///
/// Agents send updates about other sessions too: of subagents, of background work, of another
/// window. The agent has moved only if exactly one other session had output since the last output
/// that names the prompted session, and nothing shows that one to be a child.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SessionMove {
    since_own: SinceOwn,
    children: BTreeSet<SessionId>,
}

/// Which sessions had output since the prompted session's last output.
#[derive(Clone, Debug, Default, PartialEq)]
enum SinceOwn {
    /// None.
    #[default]
    None,
    /// This one.
    One { session: SessionId, text: BoundedText, has_answer: bool },
    /// Several.
    Several,
}

impl SessionMove {
    /// Adds what the next messages output.
    pub fn add(&mut self, summary: &OutputSummary) {
        summary.children().iter().for_each(|child| self.add_child(child));
        if summary.has_output && summary.is_named {
            self.since_own = SinceOwn::None;
        }
        if let Some(elsewhere) = summary.elsewhere() {
            self.add_elsewhere(elsewhere);
        }
    }

    fn add_elsewhere(&mut self, other: &Elsewhere) {
        match &mut self.since_own {
            SinceOwn::One { session, text, has_answer } if *session == other.session => {
                text.push(&other.text);
                *has_answer |= other.has_answer;
            }
            SinceOwn::One { .. } | SinceOwn::Several => self.since_own = SinceOwn::Several,
            SinceOwn::None => {
                let (session, mut text) = (other.session.clone(), BoundedText::default());
                text.push(&other.text);
                self.since_own = SinceOwn::One { session, text, has_answer: other.has_answer };
            }
        }
    }

    fn add_child(&mut self, child: &SessionId) {
        if self.children.len() < CHILDREN_MAX {
            self.children.insert(child.clone());
        }
    }

    /// Returns the session to which the agent has moved, if the attempt ends now.
    pub fn target(&self) -> Option<&SessionId> {
        match &self.since_own {
            SinceOwn::One { session, .. } => Some(session).filter(|id| !self.children.contains(id)),
            SinceOwn::None | SinceOwn::Several => None,
        }
    }

    /// Returns what the agent output in the session to which it has moved: its text, and whether
    /// there is an answer in it.
    pub fn take(&mut self, to: &SessionId) -> Option<(BoundedText, bool)> {
        self.target().filter(|target| *target == to)?;
        match std::mem::take(&mut self.since_own) {
            SinceOwn::One { text, has_answer, .. } => Some((text, has_answer)),
            SinceOwn::None | SinceOwn::Several => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OtherSessions;

    fn own(children: &[&str]) -> OutputSummary {
        let children: Vec<_> = children.iter().map(|id| SessionId((*id).into())).collect();
        let others = OtherSessions { children, elsewhere: None };
        let other_sessions = (!others.children.is_empty()).then(|| Box::new(others));
        OutputSummary {
            has_output: true,
            is_named: true,
            other_sessions,
            ..OutputSummary::default()
        }
    }

    fn other(session: &str) -> OutputSummary {
        own(&[]).of_other_session(&SessionId(session.into()))
    }

    fn child(session: &str) -> OutputSummary {
        own(&["parent"]).of_other_session(&SessionId(session.into()))
    }

    /// An update without output: with the parent's id, or without.
    fn metadata(session: &str, children: &[&str]) -> OutputSummary {
        let summary = OutputSummary { has_output: false, ..own(children) };
        summary.of_other_session(&SessionId(session.into()))
    }

    /// AM-13: what of another session's output moves the group there.
    #[test]
    fn the_agent_has_moved_if_only_one_other_session_continued() {
        let unnamed = OutputSummary { is_named: false, ..own(&[]) };
        #[rustfmt::skip]
        let cases: [(&str, Vec<OutputSummary>, Option<&str>); 12] = [
            ("no output",                    vec![],                                           None),
            ("only its own",                 vec![own(&[])],                                   None),
            ("another after its own",        vec![own(&[]), other("b"), other("b")],           Some("b")),
            ("another at once",              vec![other("b")],                                 Some("b")),
            ("its own after another",        vec![other("b"), own(&[])],                       None),
            ("another after that",           vec![other("c"), own(&[]), other("b")],           Some("b")),
            ("several others",               vec![own(&[]), other("b"), other("c"), other("b")], None),
            ("a tool call names it",         vec![own(&["b"]), other("b")],                    None),
            ("it names its parent",          vec![own(&[]), other("b"), child("b")],           None),
            ("a title of another",           vec![own(&[]), metadata("b", &[])],               None),
            ("its title names its parent",   vec![metadata("b", &["p"]), other("b")],          None),
            ("a request of no session",      vec![own(&[]), other("b"), unnamed.clone()],      Some("b")),
        ];
        for (name, summaries, target) in cases {
            let mut sessions = SessionMove::default();
            summaries.iter().for_each(|summary| sessions.add(summary));
            assert_eq!(sessions.target().map(|id| &*id.0), target, "{name}");
        }
    }

    /// AM-13: all that the agent output in the other session is its answer.
    #[test]
    fn the_output_of_the_target_is_taken_once() {
        let mut sessions = SessionMove::default();
        let session = SessionId("b".into());
        for (text, has_answer) in [("", false), ("a", true), ("b", false)] {
            let output = OutputSummary { text: text.into(), has_answer, ..own(&[]) };
            sessions.add(&output.of_other_session(&session));
        }
        assert_eq!(sessions.take(&SessionId("c".into())), None);
        let (text, has_answer) = sessions.take(&session).unwrap_or_default();
        assert_eq!((text.as_str(), has_answer), ("ab", true));
        assert_eq!(sessions.take(&session), None);
    }

    /// I11: an agent that names sessions without number uses bounded memory.
    #[test]
    fn children_are_remembered_up_to_a_limit() {
        let mut sessions = SessionMove::default();
        for number in 0..2 * CHILDREN_MAX {
            sessions.add(&own(&[&format!("s{number}")]));
            sessions.add(&child(&format!("t{number}")));
        }
        assert_eq!(sessions.children.len(), CHILDREN_MAX);
    }
}
