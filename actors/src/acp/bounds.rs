//! The limits on texts that an agent sends about its context (I11).

/// The longest error text kept.
pub const ERROR_BYTES_MAX: usize = 4 << 10;
/// The longest id. A longer one is ignored: truncated, it could name two things.
const ID_BYTES_MAX: usize = 256;

/// Truncates a text to `bytes_max` bytes, or slightly less at a character's boundary.
pub fn truncate(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

/// Appends to a text until it is `bytes_max` long.
pub fn append_bounded(text: &mut String, more: &str, bytes_max: usize) {
    let room = bytes_max.saturating_sub(text.len());
    text.push_str(&more[..more.floor_char_boundary(room)]);
}

/// Returns a text as an id, if it is neither empty nor too long.
pub fn bounded_id(text: &str) -> Option<String> {
    (!text.is_empty() && text.len() <= ID_BYTES_MAX).then(|| text.to_owned())
}
