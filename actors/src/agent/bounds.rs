//! How much is kept of what an agent says of its context: an agent can say anything (I11).

/// Of an error's text.
pub const ERROR_BYTES_MAX: usize = 4 << 10;
/// An id that is longer names nothing: cut, it could name two things.
const ID_BYTES_MAX: usize = 256;

/// The first `bytes_max` bytes of a text, or a little less where a character would be cut.
pub fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

/// Adds to a text until it is `bytes_max` long.
pub fn append(text: &mut String, more: &str, bytes_max: usize) {
    let room = bytes_max.saturating_sub(text.len());
    text.push_str(&more[..more.floor_char_boundary(room)]);
}

/// A text as the id of something, if it can be one.
pub fn id(text: &str) -> Option<String> {
    (!text.is_empty() && text.len() <= ID_BYTES_MAX).then(|| text.to_owned())
}
