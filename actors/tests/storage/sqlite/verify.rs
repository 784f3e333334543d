//! `verify` and `repair` on the database of a server (`tests/fixtures/database`), which has rows of
//! every kind and six truncated logs. Each of its columns is changed, and each kind of frame.

use std::{collections::BTreeSet, fs};

use greenroom_actors::{
    projections::{
        repair::{Repair, repair},
        verify::verify,
    },
    storage::{
        ReadStore as _, Store as _, StoreError,
        sqlite::{Database, SqliteReadStore, SqliteStore},
    },
};
use rusqlite::{Connection, ToSql, types::Value};
use tempfile::TempDir;

use super::UP;

const FIXTURE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/database/greenroom.db");

/// Each table, the group of a row, and the words with which a difference names a row.
const TABLES: [(&str, &str, &str); 10] = [
    ("groups", "no", ""),
    ("heads", "no", ""),
    ("tasks", "key >> 36", "tsk_"),
    ("runs", "no", "run"),
    ("segments", "no", "segment"),
    ("compactions", "key >> 36", "compaction"),
    ("permissions", "key >> 36", "permission"),
    ("turns", "key >> 36", "turns"),
    ("bases", "no", ""),
    ("blocks", "key >> 36", "frame"),
];
/// The groups of the fixture by number: one whose log is truncated, one with permissions, and one
/// with compactions, whose only run has ended.
const TRUNCATED: u32 = 1;
const TRUNCATED_MAX: u32 = 6;
const ASKED: u32 = 12;
const COMPACTED: u32 = 15;

/// Changes that `verify` does not find, as no frame has the value. `NULL` was in the column before.
#[rustfmt::skip]
const NOT_LOGGED: &str = "
    blocks.kinds blocks.text compactions.id compactions.key permissions.key permissions.task
    heads.blocked_by heads.digest_version heads.epoch heads.launch_due heads.provenance
    NULL:heads.launch_due NULL:heads.provenance
    permissions.expires_at permissions.options permissions.tool_call
    runs.continuity runs.session NULL:runs.continuity NULL:runs.session
    segments.provenance NULL:segments.provenance
    tasks.created_at tasks.deadline_ms tasks.expires tasks.focus tasks.metadata tasks.retry_at
    tasks.retry_of tasks.tokens
    NULL:tasks.deadline_ms NULL:tasks.expires NULL:tasks.focus NULL:tasks.metadata
    NULL:tasks.retry_of NULL:tasks.strategy NULL:tasks.tokens
    queued:tasks.created_at queued:tasks.deadline_ms queued:tasks.expires queued:tasks.metadata
    queued:tasks.prompt
";

/// Columns without whose value an actor cannot load its group.
const BREAKING: &str = "
    NULL:heads.current_run NULL:heads.current_task NULL:runs.ended_at blocks.count blocks.key
    groups.created_at groups.id groups.settings heads.blocked_by heads.compacting heads.crashes
    heads.current_run heads.current_task heads.epoch heads.held heads.interruptions heads.last_seq
    heads.launch_due heads.lead_in heads.provenance heads.queue_length heads.segment heads.session
    heads.status heads.tasks heads.usage segments.segment
    queued:tasks.attempt queued:tasks.created_at queued:tasks.deadline_ms queued:tasks.expires
    queued:tasks.id queued:tasks.key queued:tasks.kind queued:tasks.metadata queued:tasks.origin
    queued:tasks.prompt queued:tasks.state queued:tasks.text
    tasks.expires tasks.key tasks.metadata tasks.retry_at
";

/// A copy of the database, which can be changed and restored.
struct Copy {
    _dir: TempDir,
    sql: Connection,
    store: SqliteStore,
    read_store: SqliteReadStore,
}

impl Copy {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (file, sound) = (dir.path().join("greenroom.db"), dir.path().join("sound.db"));
        fs::copy(FIXTURE, &file).unwrap();
        let database = Database::open(&file).unwrap();
        let (store, read_store) =
            (database.store().unwrap(), database.opener().read_store().unwrap());
        let sql = Connection::open(file).unwrap();
        sql.pragma_update(None, "synchronous", "OFF").unwrap();
        sql.execute("VACUUM INTO ?", [sound.to_str()]).unwrap();
        sql.execute("ATTACH ? AS sound", [sound.to_str()]).unwrap();
        Self { _dir: dir, sql, store, read_store }
    }

    /// Restores a table, and all rows of a group.
    fn restore(&self, changed: &str, no: u32) {
        let all = TABLES.map(|(table, group, _)| {
            let rows = if table == changed { "1".into() } else { format!("{group} = {no}") };
            format!(
                "DELETE FROM {table} WHERE {rows}; \
                 INSERT INTO {table} SELECT * FROM sound.{table} WHERE {rows};"
            )
        });
        self.sql.execute_batch(&format!("BEGIN; {} COMMIT", all.concat())).unwrap();
    }

    /// Returns all columns of a table, and which of its rows to change.
    fn columns(&self, table: &str) -> Vec<(String, &'static str)> {
        let statement = self.sql.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let mut columns = Vec::new();
        for column in statement.column_names().filter(|column| *column != "no") {
            columns.extend(["IS NOT NULL", "IS NULL"].map(|rows| (column.to_owned(), rows)));
            let queued = (column.to_owned(), "IS NOT NULL AND state = 'queued'");
            columns.extend((table == "tasks").then_some(queued));
        }
        columns
    }

    /// Returns the rows of two columns.
    fn pairs(&self, sql: &str, parameters: &[&dyn ToSql]) -> Vec<(u32, Value)> {
        let mut statement = self.sql.prepare(sql).unwrap();
        let rows = statement.query_map(parameters, |row| Ok((row.get(0)?, row.get(1)?)));
        rows.unwrap().map(Result::unwrap).collect()
    }

    /// The changes of a value: to the least other one, to one that cannot be read, to no UTF-8.
    fn changes(&self, table: &str, column: &str, value: &Value) -> Vec<(&'static str, Value)> {
        let others =
            format!("SELECT 0, {column} FROM {table} WHERE {column} IS NOT ? ORDER BY 2 LIMIT 1");
        let mut changes: Vec<_> = match value {
            Value::Integer(number) => vec![("?", Value::Integer(number + 1_000))],
            _ if ["id", "parent", "claimed_at"].contains(&column) => Vec::new(),
            _ => self.pairs(&others, &[value]).into_iter().map(|(_, one)| ("?", one)).collect(),
        };
        match value {
            // A key out of range is another group's.
            Value::Integer(_) if column == "key" => {}
            Value::Integer(_) => changes.push(("?", Value::Integer(-1 << 62))),
            Value::Text(_) => {
                changes.push(("?", Value::Text("{sk-secret".into())));
                changes.push(("CAST(? AS TEXT)", Value::Blob(b"\xffsk-secret".into())));
            }
            Value::Blob(_) => changes.push(("?", Value::Blob(vec![0]))),
            Value::Null | Value::Real(_) => {}
        }
        changes
    }

    /// What `greenroom verify` reports of a group, and of rows of no group.
    fn differences(&self, no: u32) -> Vec<String> {
        let mut found = self.read_store.strays().unwrap();
        let verdict = verify(&self.read_store, no).unwrap();
        found.extend(verdict.into_iter().flat_map(|verdict| verdict.differences));
        found
    }

    /// Repairs a group, as `greenroom verify --repair` does, or returns why its log cannot be used.
    fn repair(&mut self, no: u32) -> Result<(), Vec<String>> {
        let index = self.read_store.group_index().unwrap();
        let found = index.groups.into_iter().find(|(known, ..)| *known == no);
        let Some((_, id, _)) = found else { return Err(vec!["no such group".into()]) };
        self.read_store.left_out();
        let salvage = self.store.salvage(no).unwrap();
        match repair(&self.read_store, no, id, salvage).unwrap() {
            Repair::Damaged(why) => Err(why),
            // A row of another group may have the same id.
            Repair::Rows(rows, _) => self.store.rebuild(*rows).map_err(|err| vec![err.to_string()]),
        }
    }

    /// Repairs a changed group: either all differences are gone, or nothing was changed, which only
    /// a changed log allows.
    #[track_caller]
    fn assert_repaired(&mut self, table: &str, no: u32, is_log: bool, what: &str) {
        let before = self.differences(no);
        match self.repair(no) {
            // What a checkpoint has is in no frame any more.
            Ok(()) if is_log && no <= TRUNCATED_MAX => {}
            Ok(()) => assert_eq!(self.differences(no), Vec::<String>::new(), "{what}"),
            Err(why) => {
                assert!(is_log && !why.is_empty(), "{what}: {why:?}");
                assert_eq!(self.differences(no), before, "{what}");
            }
        }
        let adopted = self.store.adopt(no, UP);
        assert!(is_log || adopted.is_ok(), "{what}: {adopted:?}");
        self.restore(table, no);
    }
}

/// I13, I6, AM-18, C16: whatever column of whatever row changes, to another value or to one that
/// cannot be read, `verify` finds it, and names the row; a repair makes the rows from the log, or
/// refuses if the log is damaged. An actor gets the group, or an error without the value.
#[test]
fn any_changed_column_is_found_and_repaired() {
    let mut copy = Copy::new();
    let groups = copy.read_store.group_index().unwrap().groups;
    assert!(groups.iter().all(|(no, ..)| copy.differences(*no).is_empty()), "sound at first");
    let (mut tried, mut missed, mut breaking) = (0, BTreeSet::new(), BTreeSet::new());
    for (table, group, noun) in TABLES {
        for (column, rows) in copy.columns(table) {
            let prefix = [("IS NULL", "NULL:"), ("IS NOT NULL", "")];
            let prefix = prefix.iter().find(|(known, _)| *known == rows).map_or("queued:", |p| p.1);
            let name = format!("{prefix}{table}.{column}");
            let rows = format!("FROM {table} WHERE {column} {rows}");
            let middle = format!("LIMIT 1 OFFSET (SELECT count(*) / 2 {rows})");
            let row = copy.pairs(&format!("SELECT {group}, {column} {rows} {middle}"), &[]);
            let Some((no, value)) = row.into_iter().next() else { continue };
            for (to, changed) in copy.changes(table, &column, &value) {
                let what = format!("{name} of {no}: {value:?} to {changed:?}");
                let update = format!(
                    "UPDATE {table} SET {column} = {to} WHERE {group} = ? AND {column} IS ?"
                );
                copy.sql.execute(&update, (&changed, no, &value)).expect(&what);
                tried += 1;
                let found = copy.differences(no);
                match copy.store.adopt(no, UP) {
                    Ok(_) => {}
                    Err(StoreError::Unreadable(row)) => {
                        assert!(!row.what.contains("sk-"), "{what}: {row}");
                        breaking.insert(name.clone());
                    }
                    Err(err) => panic!("{what}: {err}"),
                }
                if found.is_empty() {
                    missed.insert(name.clone());
                    copy.restore(table, no);
                    continue;
                }
                assert!(found.iter().any(|line| line.contains(noun)), "{what}: {found:?}");
                let is_log = ["blocks", "bases"].contains(&table) || column == "key";
                copy.assert_repaired(table, no, is_log || name == "groups.id", &what);
            }
        }
    }
    assert!(300 < tried, "{tried}");
    for (found, expected) in [(missed, NOT_LOGGED), (breaking, BREAKING)] {
        let expected = expected.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
        let wrong: Vec<_> = found.symmetric_difference(&expected).collect();
        assert!(wrong.is_empty(), "{wrong:?} in {found:?}");
    }
}

/// I13, I2, I3, I6, I9: missing and stray rows are found, and frames and checkpoints that
/// contradict the rows.
#[test]
fn missing_stray_and_contradicting_rows_are_found() {
    let mut copy = Copy::new();
    #[rustfmt::skip]
    let cases = [
        (COMPACTED, "DELETE FROM heads WHERE $one",        "has no row in heads"),
        (COMPACTED, "DELETE FROM tasks WHERE $one",        "was accepted and has no row"),
        (COMPACTED, "DELETE FROM runs WHERE $one",         "runs without a row"),
        (COMPACTED, "DELETE FROM segments WHERE $one",     "number of segments"),
        (COMPACTED, "DELETE FROM compactions WHERE $one",  "compactions without a row"),
        (ASKED,     "DELETE FROM permissions WHERE $one",  "permissions without a row"),
        (COMPACTED, "DELETE FROM turns WHERE $one",        "digests of turns"),
        (COMPACTED, "DELETE FROM blocks WHERE $one",       "was never accepted"),
        (COMPACTED, "DELETE FROM blocks WHERE $one AND kinds LIKE '%task_queued%'", "I3: frame"),
        (COMPACTED, "DELETE FROM blocks WHERE $one AND kinds LIKE '%run_exited'", "head"),
        (COMPACTED, "DELETE FROM groups WHERE $one",       "blocks of no group, numbered 15"),
        (COMPACTED, "INSERT INTO turns SELECT ended_at + 1, key, agent, digest FROM turns WHERE $one", "turns of no task"),
        (COMPACTED, "INSERT INTO bases VALUES (99, 1, '{}')", "bases of no group, numbered 99"),
        (COMPACTED, "INSERT INTO tasks (key, id, kind, origin, prompt, created_at, state) SELECT key + 99, randomblob(16), \
                     kind, origin, prompt, created_at, state FROM tasks WHERE $one", "was never accepted"),
        (COMPACTED, "INSERT INTO blocks SELECT max(key) + 4, 1, max(at), 3, NULL, NULL, 'session/update', text \
                     FROM blocks WHERE $one AND kinds = 'session/update'", "output outside a run"),
        (COMPACTED, "UPDATE blocks SET $text 'completed', 'failed') WHERE $one AND kinds LIKE '%task_ended%'", "task tsk_"),
        (COMPACTED, "UPDATE blocks SET $text 'completed', 'queued') WHERE $one AND kinds LIKE '%task_ended%'", "which is no end"),
        (COMPACTED, "UPDATE blocks SET $text '\"type\":\"text\"', '\"type\":\"x\"') WHERE $one AND kinds LIKE '%turn_started%'", "prompt of tsk_"),
        (COMPACTED, "UPDATE blocks SET $text '\"code\":0', '\"code\":8') WHERE $one AND kinds LIKE '%run_exited%'", "run run_"),
        (COMPACTED, "UPDATE blocks SET $text 'compaction', 'reset') WHERE $one AND kinds LIKE '%segment_ended%'", "segment 1"),
        (COMPACTED, "UPDATE blocks SET $text 'sessionId', 'x') WHERE $one AND kinds LIKE '%session/prompt%'", "is no prompt"),
        (COMPACTED, "UPDATE blocks SET $text '\"text\":\"', '\"text\":\"x') WHERE $one AND kinds = 'session/update'", "task tsk_"),
        (COMPACTED, "UPDATE blocks SET run = NULL WHERE $one AND kinds = 'session/update'", "run and task of frame"),
        (COMPACTED, "UPDATE blocks SET kinds = 'session/update' WHERE $one AND kinds LIKE '%run_exited'", "current run"),
        (COMPACTED, "UPDATE blocks SET text = x'ff0aff' WHERE $one AND count > 2", "I3: frame"),
        (COMPACTED, "UPDATE blocks SET count = 0 WHERE $one AND count > 2",     "I3: frame"),
        (TRUNCATED, "DELETE FROM bases WHERE $one",        "follows frame 0"),
        (TRUNCATED, "UPDATE bases SET seq = seq - 1 WHERE $one", "the log was cut"),
        (TRUNCATED, "UPDATE bases SET state = json_set(state, '$.head.tasks', 1) WHERE $one", "head"),
        (TRUNCATED, "UPDATE bases SET state = json_set(state, '$.head.compacting.count', 7) WHERE $one", "head"),
        (TRUNCATED, "UPDATE bases SET state = json_set(state, '$.head.settings.agent', 'x') WHERE $one", "head"),
        (TRUNCATED, "UPDATE bases SET state = json_set(state, '$.run', 'x') WHERE $one", "cannot be read"),
        (TRUNCATED, "UPDATE segments SET end_reason = 'reset' WHERE $one AND segment = 1", "segments before the cut"),
        (TRUNCATED, "UPDATE segments SET session = 'x' WHERE $one AND segment = 3", "segment 3"),
        (TRUNCATED, "DELETE FROM segments WHERE $one",     "number of segments"),
        (COMPACTED, "INSERT INTO locks (key, holder, group_no, ttl_ms, acquired_at, expires_boot_ms, boot) \
                     VALUES ('s', 'h', 999, 1, 0, 0, '')", "of no group, numbered 999"),
    ];
    for (no, sql, words) in cases {
        let names = TABLES.iter().find(|(table, ..)| sql.split(' ').any(|word| word == *table));
        let (table, of_group, _) = *names.unwrap_or(&TABLES[0]);
        let text = "text = CAST(replace(CAST(text AS TEXT),";
        let sql = sql.replace("$one", &format!("{of_group} = {no}")).replace("$text", text);
        let sql = if sql.contains(text) { sql.replace(") WHERE", ") AS BLOB) WHERE") } else { sql };
        assert!(0 < copy.sql.execute(&sql, []).expect(&sql), "{sql} changes nothing");
        let found = copy.differences(no);
        assert!(found.iter().any(|line| line.contains(words)), "{sql}: {found:?}");
        if sql.contains("VALUES") {
            // A repair is of one group.
            copy.restore(table, no);
            continue;
        }
        let is_row = sql.starts_with("DELETE") && !["blocks", "groups"].contains(&table);
        copy.assert_repaired(table, no, !is_row || no == TRUNCATED, &sql);
    }
}

/// I13: a frame of any kind that cannot be read is found.
#[test]
fn unreadable_frames_are_found() {
    let copy = Copy::new();
    let kinds = "SELECT min(key >> 36), kinds FROM blocks WHERE kinds LIKE 'greenroom/%' \
                 AND key >> 36 IN (SELECT no FROM heads) GROUP BY kinds";
    for (no, kinds) in copy.pairs(kinds, &[]) {
        for set in [
            "kinds = replace(kinds, 'greenroom/', 'greenroom/x/')",
            "text = CAST(replace(CAST(text AS TEXT), '{', '[') AS BLOB)",
        ] {
            let sql = format!("UPDATE blocks SET {set} WHERE kinds = ? AND key >> 36 = ?");
            assert!(0 < copy.sql.execute(&sql, (&kinds, no)).unwrap());
            let found = copy.differences(no);
            let is_named =
                |line: &String| line.contains("cannot be read") || line.contains("I3: frame");
            assert!(found.iter().any(is_named), "{kinds:?}: {found:?}");
            copy.restore("blocks", no);
        }
    }
}

/// I13, I9: a log that lost its end is refused, also if the group's digest, which shows where it
/// ended, cannot be read: a repair would run ended tasks again.
#[test]
fn a_log_that_lost_its_end_repairs_nothing() {
    let mut copy = Copy::new();
    let last = "key = (SELECT max(key) FROM blocks WHERE key >> 36 = ?1)";
    for digest in ["digest", "'{'", "NULL"] {
        let damage = format!("UPDATE heads SET digest = {digest} WHERE no = ?1");
        assert_eq!(copy.sql.execute(&damage, [COMPACTED]).unwrap(), 1);
        copy.sql.execute(&format!("DELETE FROM blocks WHERE {last}"), [COMPACTED]).unwrap();
        let why = copy.repair(COMPACTED).unwrap_err();
        assert!(why.iter().any(|why| why.contains("the log ends with frame")), "{digest}: {why:?}");
        copy.restore("blocks", COMPACTED);
    }
}
