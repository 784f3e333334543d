//! Lines of an agent on their way to its group: collected while the last ones are made durable.

use greenroom_core::{Event, Fold, FrameKind, Kinds, Lines, RunId};

/// A batch is full with this many bytes, or lines. The agent's pipe then holds it back. Other
/// groups' commits wait for it.
const BYTES_MAX: usize = 256 << 10;
const LINES_MAX: usize = 1024;
/// Lines beyond that of what does not wait.
const FEW_MAX: usize = 64;

/// Events of one run, in order; lines without a meaning of their own share one.
pub struct Batch {
    run: RunId,
    events: Vec<Event>,
    open: Option<Open>,
    bytes: usize,
    lines: usize,
    /// How large the text before this one became: a stream's batches are alike.
    text_bytes: usize,
}

struct Open {
    count: u64,
    kinds: Kinds,
    text: String,
    fold: Fold,
}

impl Batch {
    /// Nothing yet.
    pub fn new(run: RunId) -> Self {
        Self { run, events: Vec::new(), open: None, bytes: 0, lines: 0, text_bytes: 0 }
    }

    /// Whether more may be read for it.
    pub fn has_room(&self) -> bool {
        self.bytes < BYTES_MAX && self.lines < LINES_MAX
    }

    /// Whether a few more lines are taken that nobody can hold back.
    pub fn has_room_for_few(&self) -> bool {
        self.lines < LINES_MAX + FEW_MAX
    }

    /// Whether there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.open.is_none()
    }

    /// Adds a message that is only kept, and what the rules need to know of it.
    pub fn say(&mut self, line: &str, kind: FrameKind, fold: Fold) {
        self.count(line.len());
        match &mut self.open {
            None => {
                let mut text = String::with_capacity(self.text_bytes.max(line.len()));
                text.push_str(line);
                self.open = Some(Open { count: 1, kinds: Kinds::All(kind), text, fold });
            }
            Some(open) => open.add(line, kind, fold),
        }
    }

    /// Adds an event of another sort.
    pub fn push(&mut self, event: Event) {
        self.count(0);
        self.close();
        self.events.push(event);
    }

    /// Takes everything out.
    pub fn take(&mut self) -> Vec<Event> {
        self.close();
        (self.bytes, self.lines) = (0, 0);
        std::mem::take(&mut self.events)
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.lines += 1;
    }

    fn close(&mut self) {
        let Some(Open { count, kinds, text, fold }) = self.open.take() else { return };
        self.text_bytes = text.len();
        let lines = Lines { count, kinds, text: text.into() };
        self.events.push(Event::AgentSaid { run: self.run, lines, fold });
    }
}

impl Open {
    fn add(&mut self, line: &str, kind: FrameKind, fold: Fold) {
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
        self.fold.join(fold);
    }
}

/// One message as [`Lines`].
pub fn single(line: &str, kind: FrameKind) -> Lines {
    Lines { count: 1, kinds: Kinds::All(kind), text: line.to_owned().into() }
}
