//! The message text that a task keeps.

/// The most message text that a task keeps, in bytes; its frames keep all of it.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// The message text of an attempt, up to [`TEXT_BYTES_MAX`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct BoundedText {
    text: String,
    is_truncated: bool,
}

impl BoundedText {
    /// A text of at most [`TEXT_BYTES_MAX`], and whether there was more.
    pub fn new(text: String, is_truncated: bool) -> Self {
        Self { text, is_truncated }
    }

    /// Returns the text, and whether there was more.
    pub fn into_parts(self) -> (String, bool) {
        (self.text, self.is_truncated)
    }

    /// Appends as much as there is room for. A truncated text gets no more: a text with a hole
    /// would look complete.
    pub fn push(&mut self, more: &str) {
        let room =
            if self.is_truncated { 0 } else { TEXT_BYTES_MAX.saturating_sub(self.text.len()) };
        let kept = more.floor_char_boundary(room.min(more.len()));
        self.text.push_str(&more[..kept]);
        self.is_truncated |= kept < more.len();
    }

    /// Appends a text that may be truncated.
    pub fn append(&mut self, more: &Self) {
        self.push(&more.text);
        self.is_truncated |= more.is_truncated;
    }

    /// Takes that number of first bytes out, or a few more: only whole characters stay.
    pub fn forget(&mut self, bytes: usize) {
        let from = self.text.ceil_char_boundary(bytes.min(self.text.len()));
        self.text.drain(..from);
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether there was more.
    pub fn is_truncated(&self) -> bool {
        self.is_truncated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_text_stays_truncated_and_gets_no_more() {
        let (mut full, mut text) = (BoundedText::default(), BoundedText::default());
        full.push(&"x".repeat(TEXT_BYTES_MAX));
        assert!(!full.is_truncated(), "it just fits");
        full.push("y");
        assert!(full.is_truncated());
        text.append(&full);
        text.push("z");
        assert_eq!((text.as_str().len(), text.is_truncated()), (TEXT_BYTES_MAX, true));
        assert!(!text.as_str().ends_with('z'));
    }
}
