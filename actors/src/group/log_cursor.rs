//! The group's cursor over its log: all that the facts so far add up to, set by recovery at once.

use greenroom_core::{Attempt, Digests, Settings};

use crate::storage::StoredGroup;

/// What a group's log says so far.
pub(super) struct LogCursor {
    /// The group by whose state core decides.
    pub core: greenroom_core::Group,
    /// The digests, up to the last commit.
    pub digests: Digests,
}

impl LogCursor {
    /// The cursor of a group without facts.
    pub fn new(settings: Settings) -> Self {
        Self { core: greenroom_core::Group::new(settings), digests: Digests::default() }
    }

    /// The cursor at the end of a stored log; `attempt` is the running one.
    pub fn restore(stored: StoredGroup, attempt: Option<Attempt>) -> Self {
        let StoredGroup { state, tasks, run, compactions, permissions, .. } = stored;
        let core =
            greenroom_core::Group::restore(state, tasks, run, attempt, compactions, permissions);
        Self {
            core: core.with_known_sessions(stored.known_sessions),
            digests: stored.digests.unwrap_or_default(),
        }
    }
}
