//! Ids: each kind of name is its own type.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::{Uuid, fmt::Hyphenated};

/// Text that is no id of the expected kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {0} id")]
pub struct InvalidId(&'static str);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $noun:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let uuid = text.strip_prefix($prefix).ok_or(InvalidId($noun))?;
                Uuid::try_parse(uuid).map(Self).map_err(|_| InvalidId($noun))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                // Each commit writes ids, and formatting takes three times as long.
                let mut text = [0; $prefix.len() + Hyphenated::LENGTH];
                let (prefix, id) = text.split_at_mut($prefix.len());
                prefix.copy_from_slice($prefix.as_bytes());
                self.0.hyphenated().encode_lower(id);
                serializer.serialize_str(std::str::from_utf8(&text).unwrap_or_default())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

uuid_id!(
    /// A task: `tsk_` and a UUIDv7.
    TaskId,
    "tsk_",
    "task"
);
uuid_id!(
    /// A run: `run_` and a UUIDv7.
    RunId,
    "run_",
    "run"
);
uuid_id!(
    /// A compaction: `cmp_` and a UUIDv7.
    CompactionId,
    "cmp_",
    "compaction"
);
uuid_id!(
    /// A permission: `prm_` and a UUIDv7.
    PermissionId,
    "prm_",
    "permission"
);

/// A group's name, chosen by its users: `^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$`, so that channel ids
/// of chat systems fit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(Arc<str>);

impl GroupId {
    const BYTES_MAX: usize = 128;

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GroupId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let mut bytes = text.bytes();
        let is_first_valid = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let is_rest_valid =
            bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._:@-".contains(&byte));
        if is_first_valid && is_rest_valid && text.len() <= Self::BYTES_MAX {
            Ok(Self(text.into()))
        } else {
            Err(InvalidId("group"))
        }
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for GroupId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for GroupId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// An ACP session id, unchanged.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub Arc<str>);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_ids_accept_chat_channel_ids_and_no_paths() {
        let long = "a".repeat(128);
        for good in ["a", "work", "19:x@thread.v2", "C-1_2", "0", &long] {
            assert!(good.parse::<GroupId>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(129);
        for bad in ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\0", "a\n", "_a", &too_long] {
            assert!(bad.parse::<GroupId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_read_back_and_reject_another_kind() {
        let task = TaskId(Uuid::from_u128(7));
        assert_eq!(task.to_string().parse(), Ok(task));
        assert!(task.to_string().parse::<RunId>().is_err());
        assert!("tsk_".parse::<TaskId>().is_err());
    }

    #[test]
    fn names_that_others_chose_are_shown_unchanged() {
        let group: GroupId = "19:x@thread.v2".parse().expect("a group's name");
        assert_eq!((group.as_str(), &*group.to_string()), ("19:x@thread.v2", "19:x@thread.v2"));
        assert_eq!(SessionId(" a/ä ".into()).to_string(), " a/ä ");
    }
}
