//! Tests of the cost of reading a digest, as SQLite itself counts it.
#![allow(clippy::unwrap_used)]

use rusqlite::StatementStatus;
use uuid::Uuid;

use super::*;
use crate::storage::sqlite::Database;

const RUN: RunId = RunId(Uuid::from_u128(1));
const LIVE: RunId = RunId(Uuid::from_u128(2));
const LENGTHS: [i64; 3] = [10, 1_000, 100_000];

/// A database with a group that has this many frames, one ended and one living run; and some other
/// groups.
fn database(frames: i64) -> (tempfile::TempDir, Connection) {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(&dir.path().join("greenroom.db")).unwrap();
    let conn = Connection::open(database.path()).unwrap();
    conn.execute_batch("BEGIN").unwrap();
    for frame in 1..=frames {
        conn.prepare_cached(
            "INSERT INTO blocks (key, count, at, segment, kinds, text) \
             VALUES (?, 1, 0, 1, 'k', x'')",
        )
        .unwrap()
        .execute([key(7, frame as u64)])
        .unwrap();
    }
    for (run, ended_at) in [(RUN, Some(0)), (LIVE, None)] {
        conn.execute(
            "INSERT INTO runs (id, no, agent, started_at, ended_at) VALUES (?, 7, 'one', 0, ?)",
            params![run.0.as_bytes(), ended_at],
        )
        .unwrap();
    }
    for no in 1..20 {
        conn.execute(
            "INSERT INTO heads (no, epoch, last_seq, tasks, segment, paused, archived, status, \
             queue_length) VALUES (?, 1, ?, 0, 0, 0, 0, 'idle', 0)",
            [no, frames],
        )
        .unwrap();
        assert!(put(&conn, no as GroupNo, 1, &digests(frames as u64)).unwrap());
    }
    conn.execute_batch("COMMIT; ANALYZE").unwrap();
    (dir, conn)
}

fn digests(watermark_seq: u64) -> DigestRows {
    let digest = Digest { watermark_seq, frame_count: watermark_seq, ..Digest::default() };
    let of_run = |run| {
        let (agent, digest) = ("one".into(), digest.clone());
        json(&RunDigest { schema_version: SCHEMA_VERSION, run, agent, digest })
    };
    let sealed = SealedDigests { runs: [(RUN, of_run(RUN))].into(), ..SealedDigests::default() };
    let (group, run) = (json(&digest), Some(of_run(LIVE)));
    DigestRows { group, run, open: "{}".into(), sealed }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

/// Returns how often a statement ran, its steps in SQLite, and its steps of a full scan; then
/// resets the counters.
fn cost(conn: &Connection, sql: &str) -> [i32; 3] {
    let statement = conn.prepare_cached(sql).unwrap();
    [StatementStatus::Run, StatementStatus::VmStep, StatementStatus::FullscanStep]
        .map(|counter| statement.reset_status(counter))
}

/// TD-2, TD-11, I6: a digest is one row, found by its key, however long the log is; also on the
/// first read of a new connection, as after a crash.
#[test]
fn a_digest_is_one_row() {
    let mut costs = Vec::new();
    for frames in LENGTHS {
        let (_dir, conn) = database(frames);
        let read = digest(&conn, 7).unwrap().unwrap();
        assert_eq!(read.watermark_seq, frames as u64);
        let group = cost(&conn, OF_GROUP);
        let sealed = run_digest(&conn, RUN).unwrap().unwrap();
        assert_eq!((sealed.group, sealed.digest.unwrap().run), (7, RUN));
        let run = cost(&conn, OF_RUN);
        assert_eq!(cost(&conn, OF_LAST_RUN)[0], 0, "an ended run has a row of its own");
        let live = run_digest(&conn, LIVE).unwrap().unwrap().digest.unwrap();
        assert_eq!(live.run, LIVE);
        costs.push([group, run, cost(&conn, OF_RUN), cost(&conn, OF_LAST_RUN)]);
    }
    let [runs, steps, scanned] = [0, 1, 2].map(|of| costs[0].map(|cost| cost[of]));
    assert_eq!((runs, scanned), ([1; 4], [0; 4]));
    assert!(steps.iter().all(|steps| *steps < 30), "{steps:?}");
    assert!(costs.iter().all(|cost| *cost == costs[0]), "{costs:?}");
}

/// TD-6: the digest of a group's last run is served for that run only, and only in this version's
/// form. Any other has to be rebuilt.
#[test]
fn a_last_digest_serves_its_own_run_in_the_current_form() {
    let (_dir, conn) = database(10);
    let served = |run| run_digest(&conn, run).unwrap().unwrap().digest.map(|digest| digest.run);
    let other = RunId(Uuid::from_u128(3));
    conn.execute(
        "INSERT INTO runs (id, no, agent, started_at, ended_at) VALUES (?, 7, 'one', 0, 0)",
        [other.0.as_bytes()],
    )
    .unwrap();
    assert_eq!([served(LIVE), served(other)], [Some(LIVE), None]);
    let sql = "UPDATE heads SET run_digest = json_set(run_digest, '$.schema_version', ?)";
    conn.execute(sql, [SCHEMA_VERSION - 1]).unwrap();
    assert_eq!(served(LIVE), None);
}

/// The counters work: a scan of the log costs as many steps as it has frames.
#[test]
fn a_scan_of_the_log_is_counted() {
    let sql = "SELECT sum(count) FROM blocks WHERE segment = 1";
    let walks = LENGTHS.map(|frames| {
        let (_dir, conn) = database(frames);
        let sum: i64 = conn.prepare_cached(sql).unwrap().query_row([], |row| row.get(0)).unwrap();
        assert_eq!(sum, frames);
        cost(&conn, sql)[2]
    });
    assert_eq!(walks.map(i64::from), LENGTHS.map(|frames| frames - 1));
}
