//! Where a test has an actor of the real server panic (RELIABILITY F3, I15).
//!
//! Only in a build with the feature `failpoints`, which nothing but the benchmark asks for: in any
//! other build nothing of it is left.

use greenroom_core::GroupId;

/// Panics if the environment's `FAILPOINT` names this actor and how this group's name begins, as
/// `group=panics-` does.
#[cfg(feature = "failpoints")]
pub fn pass(actor: &str, group: &GroupId) {
    use std::{env::var, sync::LazyLock};

    static NAMED: LazyLock<String> = LazyLock::new(|| var("FAILPOINT").unwrap_or_default());
    let named = NAMED.split_once('=');
    if named.is_some_and(|(own, groups)| own == actor && group.as_str().starts_with(groups)) {
        panic!("failpoint {actor} of {group}");
    }
}

/// Nothing.
#[cfg(not(feature = "failpoints"))]
pub fn pass(_actor: &str, _group: &GroupId) {}
