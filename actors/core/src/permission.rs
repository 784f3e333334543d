//! Permissions: who decides, which state they reach, and which option says yes or no.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Json, PermissionId, RunId, TaskId, Timestamp};

/// ACP's kinds of tool calls.
pub const TOOL_KINDS: [&str; 10] = [
    "read",
    "edit",
    "delete",
    "move",
    "search",
    "execute",
    "think",
    "fetch",
    "switch_mode",
    "other",
];

/// The kind of a tool call for which the agent gives none.
const OTHER: &str = "other";

/// Who decides on a permission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// A person, over the API.
    #[default]
    Ask,
    /// greenroom allows everything.
    Allow,
    /// greenroom rejects everything.
    Reject,
}

/// Who decides, by the kind of tool. Its JSON form is a policy's word, or an object with such words
/// for `default` and for ACP's tool kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PermissionPolicy {
    /// For kinds that are not listed.
    pub default: Policy,
    /// For the listed kinds of tools.
    pub kinds: BTreeMap<String, Policy>,
}

impl PermissionPolicy {
    /// Returns who decides on a tool call of this kind.
    pub fn on(&self, kind: Option<&str>) -> Policy {
        self.kinds.get(kind.unwrap_or(OTHER)).copied().unwrap_or(self.default)
    }
}

impl From<Policy> for PermissionPolicy {
    fn from(default: Policy) -> Self {
        Self { default, kinds: BTreeMap::new() }
    }
}

impl Serialize for PermissionPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.kinds.is_empty() {
            return self.default.serialize(serializer);
        }
        let default = std::iter::once(("default", &self.default));
        let kinds = self.kinds.iter().map(|(kind, policy)| (&**kind, policy));
        serializer.collect_map(default.chain(kinds))
    }
}

impl<'de> Deserialize<'de> for PermissionPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PolicyVisitor)
    }
}

struct PolicyVisitor;

impl<'de> de::Visitor<'de> for PolicyVisitor {
    type Value = PermissionPolicy;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ask, allow, reject, or an object of these for default and kinds of tools")
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<PermissionPolicy, E> {
        Policy::deserialize(de::value::StrDeserializer::new(word)).map(Into::into)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<PermissionPolicy, A::Error> {
        let mut policy = PermissionPolicy::default();
        while let Some((kind, decider)) = map.next_entry::<String, Policy>()? {
            if kind == "default" {
                policy.default = decider;
            } else if TOOL_KINDS.contains(&&*kind) {
                policy.kinds.insert(kind, decider);
            } else {
                let kinds = TOOL_KINDS.join(", ");
                let wrong = format!("unknown kind of tool {kind:?}; known are default, {kinds}");
                return Err(de::Error::custom(wrong));
            }
        }
        Ok(policy)
    }
}

/// An option that the agent offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermissionOption {
    /// The agent's name for it.
    pub id: String,
    /// ACP's word for its meaning: `allow_once`, `allow_always`, `reject_once`, `reject_always`, or
    /// a word of a later ACP.
    pub kind: String,
}

/// An open permission: the agent asked, and it is not resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Permission {
    /// Its id.
    pub permission: PermissionId,
    /// The run that asked and gets the answer.
    pub run: RunId,
    /// The task whose attempt ran when it asked.
    pub task: Option<TaskId>,
    /// The request's JSON-RPC id.
    pub request: Json,
    /// The kind of the tool, as the agent named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_kind: Option<String>,
    /// The options that the agent offers.
    pub options: Vec<PermissionOption>,
    /// When it is rejected unless it is resolved before, by the wall clock at its opening.
    #[serde(skip)]
    pub expires_at: Timestamp,
    /// What a person needs to see to decide.
    #[serde(skip)]
    pub shown: Option<Box<PermissionShown>>,
}

/// What a person needs to see of a permission, unchanged.
#[derive(Clone, Debug, PartialEq)]
pub struct PermissionShown {
    /// ACP's `toolCall`.
    pub tool_call: Json,
    /// ACP's `options`.
    pub options: Json,
}

/// The state of a permission. All but the first are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PermissionState {
    /// It is open.
    Pending,
    /// An option was selected.
    Selected,
    /// The answer was `cancelled`.
    Cancelled,
    /// It reached its deadline, and greenroom rejected it.
    Expired,
    /// It ended with its turn or its run.
    Void,
}

/// A caller's answer to a permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The option with this id.
    Select(String),
    /// `cancelled`.
    Cancel,
}

/// Returns the option that allows: once, rather than always.
pub(crate) fn allow_option(options: &[PermissionOption]) -> Option<String> {
    first(options, ["allow_once", "allow_always"])
}

/// Returns the option that rejects: once, rather than always.
pub(crate) fn reject_option(options: &[PermissionOption]) -> Option<String> {
    first(options, ["reject_once", "reject_always"])
}

fn first(options: &[PermissionOption], kinds: [&str; 2]) -> Option<String> {
    let of = |kind: &str| options.iter().find(|option| option.kind == kind);
    kinds.into_iter().find_map(of).map(|option| option.id.clone())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(kinds: &[&str]) -> Vec<PermissionOption> {
        let option =
            |kind: &&str| PermissionOption { id: format!("id-{kind}"), kind: (*kind).into() };
        kinds.iter().map(option).collect()
    }

    #[test]
    fn once_is_preferred_to_always() {
        #[rustfmt::skip]
        let cases = [
            (&["allow_always", "allow_once", "reject_always", "reject_once"][..], Some("id-allow_once"),   Some("id-reject_once")),
            (&["reject_always", "allow_always"],                                  Some("id-allow_always"), Some("id-reject_always")),
            (&["something_else"],                                                 None,                    None),
            (&[],                                                                 None,                    None),
        ];
        for (kinds, allow, reject) in cases {
            let options = options(kinds);
            assert_eq!(allow_option(&options).as_deref(), allow, "{kinds:?}");
            assert_eq!(reject_option(&options).as_deref(), reject, "{kinds:?}");
        }
    }

    /// API-2: a policy by the tool's kind knows every kind of ACP; another has the default.
    #[test]
    fn a_policy_is_a_word_or_an_object_of_words() {
        let read = |text: &str| serde_json::from_str::<PermissionPolicy>(text);
        let word = read(r#""reject""#).unwrap();
        assert_eq!((word.on(Some("read")), word.on(None)), (Policy::Reject, Policy::Reject));
        let object = read(r#"{"default":"reject","read":"allow","other":"ask"}"#).unwrap();
        let on = |kind| object.on(kind);
        assert_eq!(
            (on(Some("read")), on(Some("execute")), on(Some("other")), on(None)),
            (Policy::Allow, Policy::Reject, Policy::Ask, Policy::Ask)
        );
        let kinds = "read edit delete move search execute think fetch switch_mode other";
        for kind in kinds.split(' ') {
            let one = read(&format!(r#"{{"default":"reject","{kind}":"allow"}}"#)).unwrap();
            assert_eq!((one.on(Some(kind)), one.on(Some("x"))), (Policy::Allow, Policy::Reject));
        }
        for policy in [word, object] {
            let text = serde_json::to_string(&policy).unwrap();
            assert_eq!(read(&text).unwrap(), policy, "{text}");
        }
        for bad in [r#""yes""#, r#"{"shell":"allow"}"#, r#"{"read":"yes"}"#, "1", "null"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let number = read("1").unwrap_err().to_string();
        assert!(number.contains("expected ask, allow, reject, or an object"), "{number}");
    }
}
