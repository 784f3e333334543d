//! What a database must do for greenroom, whichever one it is: one suite for every implementation
//! of `Store` and `Archive`, played here on SQLite.

#![allow(clippy::unwrap_used, missing_docs)]

mod actor;
mod conformance;
mod digests;
mod exports;
mod fail_stop;
mod lease;
mod locks;
mod reading;
mod retention;
mod sqlite;
#[path = "../../core/tests/world/mod.rs"]
mod world;

use std::path::Path;

use greenroom_actors::storage::{
    Archive, Store, StoreError,
    sqlite::{Database, SqliteArchive, SqliteStore},
};

/// An implementation under test: a database in a directory, opened and closed by being dropped.
pub trait Engine: Sized {
    type Store: Store;
    type Archive: Archive;

    fn open(dir: &Path) -> Result<Self, StoreError>;
    fn store(&self) -> Self::Store;
    fn archive(&self) -> Self::Archive;
}

impl Engine for Database {
    type Store = SqliteStore;
    type Archive = SqliteArchive;

    fn open(dir: &Path) -> Result<Self, StoreError> {
        Database::open(&dir.join("greenroom.db"))
    }

    fn store(&self) -> SqliteStore {
        Database::store(self).unwrap()
    }

    fn archive(&self) -> SqliteArchive {
        self.opener().archive().unwrap()
    }
}

/// Runs the whole suite over an engine.
macro_rules! conforms {
    ($engine:ty: $($suite:ident::$test:ident),* $(,)?) => {
        $(#[test]
        fn $test() {
            $suite::$test::<$engine>();
        })*
    };
}

conforms!(Database:
    conformance::groups_of_one_batch_are_stored_together,
    conformance::a_later_owner_fences_the_earlier_one_and_nobody_else,
    conformance::adopting_gives_the_next_epoch_and_the_open_tasks_in_order,
    conformance::facts_that_do_not_follow_the_log_are_not_written,
    conformance::a_second_claimed_task_is_refused,
    conformance::a_terminal_state_is_not_written_over,
    conformance::a_second_living_run_and_a_second_open_segment_are_refused,
    conformance::what_is_refused_leaves_nothing_behind,
    conformance::any_history_is_read_back_as_it_was,
    conformance::what_an_earlier_attempt_compacted_is_read_back,
    conformance::a_purge_takes_one_group_and_no_other,
    conformance::a_key_is_kept_until_it_is_forgotten,
    conformance::keys_are_as_old_as_the_trusted_time_says,
    conformance::lists_tell_positions_and_pages,
    conformance::a_directory_has_one_owner,
    exports::the_place_up_to_which_tasks_were_handed_on_is_kept,
    exports::an_ended_task_is_found_by_its_group_and_ordinal,
    locks::a_lock_has_one_holder_and_tokens_grow,
    locks::a_lease_is_refreshed_and_released_by_its_holder_and_token_only,
    locks::a_lock_is_reclaimed_when_it_expires_or_its_holder_is_dead,
    locks::old_leases_are_forgotten_and_no_others,
    locks::what_is_published_without_its_lease_is_not_written,
    locks::adopting_or_purging_a_group_frees_its_own_locks,
    locks::a_closed_segment_without_a_child_is_reopened,
    reading::frames_are_read_as_they_were_written,
    reading::a_read_ends_at_its_limits_and_goes_on_behind_them,
    digests::only_digests_up_to_the_last_frame_are_gone_on_from,
    digests::a_damaged_digest_is_none,
    digests::digests_of_an_earlier_owner_are_refused,
    digests::digests_go_with_what_they_are_about,
    digests::turns_are_listed_either_way,
    digests::ended_turns_are_listed_by_their_ends,
    digests::a_run_is_found_by_its_name,
    retention::any_history_may_be_cut_anywhere,
    retention::only_what_is_old_enough_is_cut,
    retention::a_cut_takes_what_has_ended_and_nothing_else,
    retention::frames_below_a_cut_are_gone_at_once_and_deleted_in_parts,
);
