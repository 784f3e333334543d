//! The contract of a database: one suite for every implementation of `Store` and `ReadStore`, run
//! here on SQLite.

pub mod actor;
mod conformance;
mod digests;
mod exports;
mod fail_stop;
pub mod gated;
mod lease;
mod locks;
mod reading;
mod restored;
mod retention;
mod sqlite;
mod writes;

use std::path::Path;

use greenroom_actors::storage::{
    ReadStore, Store, StoreError,
    sqlite::{Database, SqliteReadStore, SqliteStore},
};
use tempfile::TempDir;

/// An implementation under test: a database in a directory; dropping it closes it.
pub trait Engine: Sized {
    type Store: Store;
    type ReadStore: ReadStore;

    fn open(dir: &Path) -> Result<Self, StoreError>;
    fn store(&self) -> Self::Store;
    fn read_store(&self) -> Self::ReadStore;
}

impl Engine for Database {
    type Store = SqliteStore;
    type ReadStore = SqliteReadStore;

    fn open(dir: &Path) -> Result<Self, StoreError> {
        Database::open(&dir.join("greenroom.db"))
    }

    fn store(&self) -> SqliteStore {
        Database::store(self).unwrap()
    }

    fn read_store(&self) -> SqliteReadStore {
        self.opener().read_store().unwrap()
    }
}

/// A database in a new directory, its writer and a reader.
pub fn open<E: Engine>() -> (TempDir, E, E::Store, E::ReadStore) {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (store, read_store) = (engine.store(), engine.read_store());
    (dir, engine, store, read_store)
}

/// Runs the whole suite on an engine.
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
    conformance::only_the_owner_deletes,
    conformance::a_later_owner_fences_only_the_earlier_one,
    conformance::adopting_returns_the_next_epoch_and_the_open_tasks_in_order,
    conformance::facts_that_do_not_follow_the_log_are_refused,
    conformance::numbers_after_the_greatest_are_refused,
    conformance::a_second_claimed_task_is_refused,
    conformance::a_terminal_state_is_not_overwritten,
    conformance::a_late_text_is_cut_at_the_limit,
    conformance::a_second_live_run_and_a_second_open_segment_are_refused,
    conformance::a_refused_batch_stores_nothing,
    restored::any_history_is_restored_as_it_was,
    restored::an_attempt_is_restored_without_the_compactions_of_earlier_ones,
    conformance::a_purge_deletes_only_its_group,
    conformance::an_idempotency_key_is_kept_until_it_is_old,
    conformance::the_trusted_time_decides_the_age_of_keys,
    conformance::lists_have_positions_and_pages,
    conformance::a_directory_has_one_owner,
    exports::the_export_position_survives_a_restart,
    exports::an_ended_task_is_found_by_its_group_and_ordinal,
    locks::a_lock_has_one_holder_and_tokens_grow,
    locks::only_holder_and_token_refresh_or_release_a_lease,
    locks::a_lock_is_reclaimed_when_it_expires_or_its_holder_is_dead,
    locks::only_old_leases_are_deleted,
    locks::a_publication_without_its_lease_is_refused,
    locks::adopting_or_purging_a_group_releases_only_its_locks,
    locks::a_closed_segment_without_a_child_is_reopened,
    reading::frames_are_read_as_they_were_written,
    reading::a_read_stops_at_its_limits_and_the_next_continues,
    digests::only_current_digests_are_restored,
    digests::digests_of_an_earlier_owner_are_refused,
    digests::digests_are_deleted_with_their_tasks,
    digests::ended_turns_are_listed_by_end_time,
    digests::the_digest_of_a_run_is_found_by_its_id,
    retention::any_history_may_be_truncated_anywhere,
    retention::only_old_frames_are_truncated,
    retention::a_truncation_deletes_only_ended_tasks,
    retention::truncated_frames_are_hidden_at_once_and_deleted_in_parts,
);
