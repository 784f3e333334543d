//! Collects an agent's lines for its group while the group commits the last batch.

use greenroom_core::{Event, FrameKind, Kinds, Lines, OutputSummary, RunId, SessionId};

/// A batch is full with this many bytes, or lines; then the agent's pipe applies back-pressure.
/// Other groups' commits wait for a batch, so it must stay small.
const BYTES_MAX: usize = 256 << 10;
const LINES_MAX: usize = 1024;
/// Room beyond that for lines that cannot be held back.
const RESERVE_LINES: usize = 64;

/// Events of one run, in order; consecutive lines of plain output share one event.
pub struct Batch {
    run: RunId,
    events: Vec<Event>,
    open: Option<Open>,
    bytes: usize,
    lines: usize,
    /// The last prompt that the agent was sent.
    last_prompt: Option<u64>,
    /// Whether any of its events is more than plain output.
    is_urgent: bool,
    /// Whether any of its messages is output.
    has_output: bool,
    /// The size of the last text, to reserve: the batches of a stream are alike.
    text_bytes: usize,
}

struct Open {
    count: u64,
    kinds: Kinds,
    text: String,
    summary: OutputSummary,
    /// The session that the summary is about, if its messages name one.
    session: Option<SessionId>,
    /// The last prompt before its messages.
    after_prompt: Option<u64>,
}

impl Batch {
    /// Creates an empty batch.
    pub fn new(run: RunId) -> Self {
        let (events, open, last_prompt) = (Vec::new(), None, None);
        Self {
            run,
            events,
            open,
            bytes: 0,
            lines: 0,
            last_prompt,
            is_urgent: false,
            has_output: false,
            text_bytes: 0,
        }
    }

    /// Records that the agent was sent a prompt: the messages before cannot be its output.
    pub fn on_prompt(&mut self, id: u64) {
        self.close();
        self.last_prompt = Some(id);
    }

    /// Whether more may be read from stdout.
    pub fn has_room(&self) -> bool {
        self.bytes < BYTES_MAX && self.lines < LINES_MAX
    }

    /// Whether there is room for a line that cannot be held back.
    pub fn has_reserve(&self) -> bool {
        self.lines < LINES_MAX + RESERVE_LINES
    }

    /// Whether there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.open.is_none()
    }

    /// Whether it has more than plain output.
    pub fn is_urgent(&self) -> bool {
        self.is_urgent
    }

    /// Whether any of its messages is output.
    pub fn has_output(&self) -> bool {
        self.has_output
    }

    /// Adds a message that is only stored, its summary, and the session that it names.
    pub fn push_line(
        &mut self,
        line: &str,
        kind: FrameKind,
        session: Option<&str>,
        summary: OutputSummary,
    ) {
        self.count(line.len());
        self.has_output |= summary.has_output;
        match self.open.as_mut().filter(|open| open.fits(session, &summary)) {
            Some(open) => open.add(line, kind, session, summary),
            None => {
                self.close();
                let mut text = String::with_capacity(self.text_bytes.max(line.len()));
                text.push_str(line);
                let (kinds, session) = (Kinds::All(kind), session.map(|id| SessionId(id.into())));
                let after_prompt = self.last_prompt;
                self.open = Some(Open { count: 1, kinds, text, summary, session, after_prompt });
            }
        }
    }

    /// Adds another event.
    pub fn push(&mut self, event: Event) {
        self.push_sized(event, 0);
    }

    /// Adds another event that holds this many bytes of the agent's.
    pub fn push_sized(&mut self, event: Event, bytes: usize) {
        self.count(bytes);
        self.close();
        self.is_urgent = true;
        self.events.push(event);
    }

    /// Returns all events, and empties the batch.
    pub fn take(&mut self) -> Vec<Event> {
        self.close();
        (self.bytes, self.lines) = (0, 0);
        (self.is_urgent, self.has_output) = (false, false);
        std::mem::take(&mut self.events)
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.lines += 1;
    }

    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let Open { count, kinds, text, summary, session, after_prompt } = open;
        self.text_bytes = text.len();
        let (run, lines) = (self.run, Lines { count, kinds, text: text.into() });
        self.events.push(Event::OutputReceived { run, lines, summary, session, after_prompt });
    }
}

impl Open {
    /// Whether one decision is about both summaries: they are about one session and one message, or
    /// one is empty. Words of the user may make history of an answer before them.
    fn fits(&self, session: Option<&str>, summary: &OutputSummary) -> bool {
        if summary.is_users && (self.summary.has_answer || !self.summary.text.is_empty()) {
            return false;
        }
        let is_same_session = self.session.as_ref().map(|session| &*session.0) == session;
        (is_same_session && self.summary.message == summary.message)
            || summary.is_empty()
            || self.summary.is_empty()
    }

    fn add(&mut self, line: &str, kind: FrameKind, session: Option<&str>, summary: OutputSummary) {
        if self.summary.is_empty() && !summary.is_empty() {
            self.session = session.map(|id| SessionId(id.into()));
        }
        match &mut self.kinds {
            Kinds::All(all) if *all == kind => {}
            Kinds::All(all) => {
                let mut kinds = vec![all.clone(); usize::try_from(self.count).unwrap_or(0)];
                kinds.push(kind);
                self.kinds = Kinds::Each(kinds);
            }
            Kinds::Each(kinds) => kinds.push(kind),
        }
        self.count += 1;
        self.text.push('\n');
        self.text.push_str(line);
        self.summary.join(summary);
    }
}

/// Returns one message as [`Lines`].
pub fn single(line: &str, kind: FrameKind) -> Lines {
    Lines { count: 1, kinds: Kinds::All(kind), text: line.to_owned().into() }
}

#[cfg(test)]
mod tests {
    use greenroom_core::MessageKey;

    use super::*;

    /// I11: a batch is bounded in bytes and in lines, with a reserve for lines that cannot wait;
    /// once taken, it has room again.
    #[test]
    fn a_batch_is_full_at_its_bytes_or_its_lines() {
        let mut batch = Batch::new(RunId(uuid::Uuid::nil()));
        let push = |batch: &mut Batch, line: &str| {
            batch.push_line(line, "session/update".into(), None, OutputSummary::default());
        };
        push(&mut batch, &"x".repeat(BYTES_MAX / 2));
        push(&mut batch, &"x".repeat(BYTES_MAX / 2 - 1));
        assert!(batch.has_room());
        push(&mut batch, "x");
        assert!(!batch.has_room() && batch.has_reserve());

        assert_eq!(batch.take().len(), 1);
        assert!(batch.has_room() && batch.is_empty());
        for _ in 1..LINES_MAX {
            push(&mut batch, "");
        }
        assert!(batch.has_room());
        push(&mut batch, "");
        assert!(!batch.has_room() && batch.has_reserve());
        for _ in 0..RESERVE_LINES {
            push(&mut batch, "");
        }
        assert!(!batch.has_reserve());
    }

    /// I13: core decides about a summary as a whole, so it is about one session.
    #[test]
    fn output_about_two_sessions_is_two_events() {
        let says = |text: &str| OutputSummary {
            has_output: !text.is_empty(),
            text: text.into(),
            ..OutputSummary::default()
        };
        let mut batch = Batch::new(RunId(uuid::Uuid::nil()));
        #[rustfmt::skip]
        let lines = [
            ("1", Some("one"), ""),
            ("2", Some("two"), "a"),
            ("3", Some("one"), ""),
            ("4", Some("two"), "b"),
            ("5", Some("one"), "c"),
            ("6", None,        "d"),
            ("7", Some("two"), ""),
        ];
        for (line, session, text) in lines {
            batch.push_line(line, "session/update".into(), session, says(text));
        }
        let events = batch.take().into_iter().map(|event| match event {
            Event::OutputReceived { lines, summary, session, .. } => {
                let session = session.map(|id| id.0.to_string());
                (lines.text.to_string(), summary.text, session)
            }
            other => panic!("{other:?}"),
        });
        let expected =
            [("1\n2\n3\n4", "ab", Some("two")), ("5", "c", Some("one")), ("6\n7", "d", None)];
        let expected = expected.map(|(lines, text, session)| {
            (lines.to_owned(), text.to_owned(), session.map(str::to_owned))
        });
        assert_eq!(events.collect::<Vec<_>>(), expected);
    }

    /// AM-9: core decides whose output it is as a whole, so it is of one message, and on one side
    /// of a prompt.
    #[test]
    fn output_of_two_messages_or_around_a_prompt_is_two_events() {
        let mut batch = Batch::new(RunId(uuid::Uuid::nil()));
        for (prompt, line, message) in [
            (None, "1", Some("a")),
            (None, "2", Some("a")),
            (None, "3", Some("b")),
            (None, "4", None),
            (Some(7), "5", None),
            (None, "6", None),
        ] {
            prompt.into_iter().for_each(|prompt| batch.on_prompt(prompt));
            let message = message.map(MessageKey::new);
            let summary = OutputSummary { has_output: true, message, ..Default::default() };
            batch.push_line(line, "session/update".into(), None, summary);
        }
        let events = batch.take().into_iter().map(|event| match event {
            Event::OutputReceived { lines, after_prompt, .. } => {
                (lines.text.to_string(), after_prompt)
            }
            other => panic!("{other:?}"),
        });
        let expected = [("1\n2", None), ("3", None), ("4", None), ("5\n6", Some(7))];
        let expected = expected.map(|(lines, prompt)| (lines.to_owned(), prompt));
        assert_eq!(events.collect::<Vec<_>>(), expected);
    }
}
