//! Which content blocks of a prompt an agent takes, as it says in its answer to `initialize`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Json;

/// The blocks that an agent takes besides text and links, which every agent takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptCapabilities {
    /// Images.
    #[serde(default)]
    pub image: bool,
    /// Audio.
    #[serde(default)]
    pub audio: bool,
    /// Embedded resources.
    #[serde(default)]
    pub embedded_context: bool,
}

/// A block of a prompt that the agent does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedBlock {
    /// Its place in the prompt, from 0.
    pub index: usize,
    /// Its type.
    pub kind: BlockKind,
}

/// The type of a block that an agent may not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// An image.
    Image,
    /// Audio.
    Audio,
    /// An embedded resource.
    Resource,
    /// Any other.
    #[serde(other)]
    Other,
}

impl PromptCapabilities {
    /// All blocks.
    pub const ALL: Self = Self { image: true, audio: true, embedded_context: true };

    /// Returns the first block of a prompt that the agent does not take.
    pub fn refused(&self, prompt: &Json) -> Option<RefusedBlock> {
        #[derive(Deserialize)]
        struct Block {
            #[serde(rename = "type")]
            kind: BlockKind,
        }
        let blocks: Vec<Block> = serde_json::from_str(prompt.as_str()).ok()?;
        let mut kinds = blocks.into_iter().map(|block| block.kind).enumerate();
        let (index, kind) = kinds.find(|(_, kind)| !self.takes(*kind))?;
        Some(RefusedBlock { index, kind })
    }

    fn takes(self, kind: BlockKind) -> bool {
        match kind {
            BlockKind::Image => self.image,
            BlockKind::Audio => self.audio,
            BlockKind::Resource => self.embedded_context,
            BlockKind::Other => true,
        }
    }
}

impl BlockKind {
    /// Returns its name in a prompt.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Audio => "audio",
            Self::Resource => "resource",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for RefusedBlock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, kind } = self;
        let what = match kind {
            BlockKind::Image => "image",
            BlockKind::Audio => "audio",
            BlockKind::Resource => "embedded resource",
            BlockKind::Other => "unknown",
        };
        write!(
            formatter,
            "block {index} of the prompt is an {what} block, which the agent did not advertise"
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// API-2: text and links are for every agent, other blocks for agents that advertise them.
    #[test]
    fn a_block_that_the_agent_did_not_advertise_is_refused() {
        let none = PromptCapabilities::default();
        let images = PromptCapabilities { image: true, ..none };
        let all = PromptCapabilities { image: true, audio: true, embedded_context: true };
        #[rustfmt::skip]
        let cases = [
            (r#"[{"type":"text","text":"image"}]"#,                   [None, None]),
            (r#"[{"type":"resource_link","uri":"u","name":"n"}]"#,    [None, None]),
            (r#"[{"type":"text"},{"type":"image","data":"AA=="}]"#,   [Some((1, BlockKind::Image)), None]),
            (r#"[{"type":"image"},{"type":"audio"}]"#,                [Some((0, BlockKind::Image)), Some((1, BlockKind::Audio))]),
            (r#"[{"resource":{},"type":"resource"}]"#,                [Some((0, BlockKind::Resource)); 2]),
            (r#"[{"type":"from_the_future"}]"#,                       [None, None]),
            ("[]",                                                    [None, None]),
        ];
        for (prompt, expected) in cases {
            let prompt = Json::parse(prompt.into()).unwrap();
            let found = [none, images].map(|given| {
                given.refused(&prompt).map(|RefusedBlock { index, kind }| (index, kind))
            });
            assert_eq!(found, expected, "{prompt:?}");
            assert_eq!(all.refused(&prompt), None);
        }
    }
}
