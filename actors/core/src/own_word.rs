//! `OwnWord`: an agent's own stop reason, which ACP does not have.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::StopReason;

/// The longest word that is kept, bytes.
const BYTES_MAX: usize = 40;

/// A short word of letters, digits and `_-.:/`, and none of greenroom's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnWord {
    bytes: [u8; BYTES_MAX],
    length: u8,
}

impl OwnWord {
    /// Returns the word, if it is one, and no other stop reason's.
    pub fn new(word: &str) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:/".contains(&byte);
        let is_word = (1..=BYTES_MAX).contains(&word.len()) && word.bytes().all(is_plain);
        if !is_word || StopReason::KNOWN_WORDS.contains(&word) {
            return None;
        }
        let mut bytes = [0; BYTES_MAX];
        bytes[..word.len()].copy_from_slice(word.as_bytes());
        Some(Self { bytes, length: u8::try_from(word.len()).ok()? })
    }

    /// Returns its text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Debug for OwnWord {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.as_str())
    }
}

impl Serialize for OwnWord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for OwnWord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        Self::new(&word).ok_or_else(|| de::Error::custom("it is no stop reason"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// API-1: the words of rows and frames stay, and an agent's own word is among them unchanged.
    #[test]
    fn each_stop_reason_has_one_word() {
        use StopReason as S;
        #[rustfmt::skip]
        let known = [
            S::EndTurn, S::MaxTokens, S::MaxTurnRequests, S::Refusal, S::Cancelled, S::Error,
            S::ProcessExited, S::ServerRestart, S::Deadline, S::Protocol, S::Storage, S::Unclear,
        ];
        for (reason, word) in known.into_iter().zip(S::KNOWN_WORDS) {
            let json = format!("\"{word}\"");
            assert_eq!(serde_json::to_string(&reason).unwrap(), json);
            assert_eq!(serde_json::from_str::<S>(&json).unwrap(), reason);
            assert_eq!(OwnWord::new(word), None, "{word}");
            let from_agent = S::from_agent(word);
            assert!(from_agent == reason || from_agent == S::Unclear, "{word}: {from_agent:?}");
            assert_eq!(from_agent == reason, !word.starts_with('_') || reason == S::Unclear);
        }
        assert_eq!(known.len(), S::KNOWN_WORDS.len());
        let own = S::from_agent("_vendor/pause:1.2");
        assert_eq!(serde_json::to_string(&own).unwrap(), r#""_vendor/pause:1.2""#);
        assert_eq!(serde_json::from_str::<S>(r#""_vendor/pause:1.2""#).unwrap(), own);
        assert_eq!((own.counted(), own.is_unclear(), own.is_answer()), (S::Unclear, true, true));
        let long = "x".repeat(BYTES_MAX + 1);
        for word in ["", "two words", "ä", "a\n", &*long] {
            assert_eq!(S::from_agent(word), S::Unclear, "{word}");
            let json = serde_json::to_string(word).unwrap();
            assert!(serde_json::from_str::<S>(&json).is_err(), "{word}");
        }
        let counted = std::collections::BTreeMap::from([(own, 1), (S::EndTurn, 2)]);
        let json = serde_json::to_string(&counted).unwrap();
        let read: std::collections::BTreeMap<S, i32> = serde_json::from_str(&json).unwrap();
        assert_eq!(read, counted);
    }
}
