//! The failpoints at which a benchmark makes an actor of the real server panic (F3, I15).
//!
//! Compiled into debug builds, and with the feature `failpoints`, which only the benchmark enables.
//! In any other build, and so in all that is shipped, [`pass`] is empty.

use greenroom_core::GroupId;

/// Panics if the environment variable `FAILPOINT` has this actor and a prefix of this group's name,
/// as in `group=panics-`.
#[cfg(any(debug_assertions, feature = "failpoints"))]
pub fn pass(actor: &str, group: &GroupId) {
    use std::{env::var, sync::LazyLock};

    static NAMED: LazyLock<String> = LazyLock::new(|| var("FAILPOINT").unwrap_or_default());
    let named = NAMED.split_once('=');
    if named.is_some_and(|(name, groups)| name == actor && group.as_str().starts_with(groups)) {
        panic!("failpoint {actor} of {group}");
    }
}

/// Does nothing.
#[cfg(not(any(debug_assertions, feature = "failpoints")))]
pub fn pass(_actor: &str, _group: &GroupId) {}
