//! `greenroom verify`: a sound database has no differences, and any change is found.

use std::{fs, process::Stdio};

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use crate::support::{Home, Server, Setup, server::greenroom};

/// The exit code and the output of `greenroom verify`.
struct Verified {
    code: i32,
    lines: Vec<String>,
}

#[track_caller]
fn verify(home: &Home, arguments: &[&str]) -> Verified {
    let config = home.config();
    let all = [&["verify", "--config", config.to_str().unwrap()], arguments].concat();
    let ended = greenroom(home, &all).stdout(Stdio::piped()).output().unwrap();
    let output = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
    Verified {
        code: ended.status.code().unwrap_or_else(|| panic!("{}: {output}", ended.status)),
        lines: output.lines().map(str::to_owned).collect(),
    }
}

#[track_caller]
fn assert_sound(home: &Home, arguments: &[&str], begins: &str) {
    let Verified { code, lines } = verify(home, arguments);
    assert_eq!((code, lines.len()), (0, 1), "{arguments:?}: {lines:?}");
    assert!(lines[0].starts_with(begins), "{arguments:?}: {lines:?}");
    assert!(lines[0].ends_with("0 differences"), "{arguments:?}: {lines:?}");
}

/// Starts a server with a group `work` with many kinds of events, and four other groups.
fn start_eventful() -> Server {
    let rotating = "{ strategy = \"rotate\" }";
    let setup = Setup::new().agent("rotating", &[]).set("agents.rotating", "compaction", rotating);
    let server = setup.retries("1ms").start();
    server.complete("work", "[[reply:hello]][[tool]][[usage:90:1000]]");
    server.finish_as(&server.compact_with("work", "[[usage:10:1000]]"), "completed");
    server.finish_as(&server.submit("work", "[[error:-32602:no]]"), "failed");
    server.finish_as(&server.submit("work", "[[reply:half]][[die:7]]"), "interrupted");
    server.complete("work", "[[reply:again]]");
    server.complete("work", "[[times:1:die:1]][[reply:second]]");
    server.complete("work", "[[permission]][[reply:asked]]");
    server.put("/v1/groups/rotated", &json!({ "agent": "rotating" })).expect_any(&[200, 201]);
    server.journal.script("on-summary", "[[reply:all of it]]");
    server.complete("rotated", "[[reply:one]]");
    server.finish_as(&server.compact("rotated"), "completed");
    server.complete("rotated", "[[reply:two]]");
    let cancelled = server.submit("cancelled", "[[reply:before]][[gate:never]]");
    server.journal.wait_gate("never");
    server.cancel(&cancelled).expect(202);
    server.finish_as(&cancelled, "cancelled");
    server.complete("deleted", "[[reply:x]]");
    server.delete("/v1/groups/deleted").expect_any(&[200, 202, 204]);
    server.complete("quiet", "[[reply:y]]");
    server
}

/// I13: `verify` finds no difference while the server runs, after its kill, and after its next
/// start.
#[test]
fn a_sound_database_has_no_differences() {
    let mut server = start_eventful();
    assert_sound(&server.home, &[], "5 groups, ");
    for group in ["work", "rotated", "cancelled", "deleted", "quiet"] {
        assert_sound(&server.home, &[group], "1 groups, ");
    }
    let running = server.submit("work", "[[reply:some]][[gate:mid]]");
    let waiting = server.submit("work", "[[reply:later]]");
    server.journal.wait_gate("mid");
    assert_sound(&server.home, &[], "5 groups, ");
    server.kill();
    assert_sound(&server.home, &[], "5 groups, ");
    server.boot();
    server.finish_as(&running, "interrupted");
    server.finish_as(&waiting, "completed");
    assert_sound(&server.home, &[], "5 groups, ");
}

/// I13: the late output of a stopping run belongs to no task, also if the next task is already
/// claimed and waits for the run to end.
#[test]
fn late_output_belongs_to_no_task_while_the_next_is_claimed() {
    let server = Setup::new().text("defaults", "idle_timeout", "0s").start();
    server.complete("work", "[[deaf]][[reply:x]][[answer]][[gate:late]][[reply:late]]");
    let next = server.submit("work", "next");
    server.journal.wait_gate("late");
    server.wait_frame("work", "the claim", |frame| {
        frame["kind"] == "greenroom/task_claimed" && frame["payload"]["task"] == next["id"]
    });
    server.journal.open_gate("late");
    let late = server.wait_frame("work", "the late update", |frame| {
        frame["payload"]["params"]["update"]["content"]["text"] == "late"
    });
    assert_eq!(late["task"], Value::Null, "{late}");
    assert_sound(&server.home, &[], "1 groups, ");
    server.finish_as(&next, "completed");
}

#[test]
fn the_output_can_be_json() {
    let mut server = Server::usual();
    server.complete("work", "[[reply:hello]]");
    server.kill();
    let last_seq = "SELECT last_seq FROM heads";
    let frames: i64 = server.database().query_row(last_seq, [], |row| row.get(0)).unwrap();
    let Verified { code, lines } = verify(&server.home, &["--json"]);
    let output: Value = serde_json::from_str(&lines[0]).unwrap();
    let expected = json!({ "groups": 1, "frames": frames, "differences": 0 });
    assert_eq!((code, lines.len(), output), (0, 1, expected));
    let Verified { code, lines } = verify(&server.home, &["absent"]);
    assert_eq!(code, 2, "{lines:?}");
    assert!(lines.concat().contains("no group absent"), "{lines:?}");

    let copy = Copies::of(&server);
    copy.change("UPDATE tasks SET state = 'failed'");
    let Verified { code, lines } = verify(&copy.home, &["--json", "work"]);
    let outputs: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, outputs.len()), (1, 2), "{lines:?}");
    assert_eq!(outputs[0]["group"], "work");
    let difference = outputs[0]["difference"].as_str().unwrap();
    assert!(difference.starts_with("task tsk_"), "{difference}");
    assert_eq!(outputs[1], json!({ "groups": 1, "frames": frames, "differences": 1 }));
}

/// Abbreviations for the number of the group `work`, the range of its keys, and a text in a blob.
const SHORT: [(&str, &str); 4] = [
    ("$keys", "key >> 36 = $no"),
    ("$no", "(SELECT no FROM groups WHERE id = 'work')"),
    ("$text", "text = CAST(replace(CAST(text AS TEXT),"),
    ("$end", ") AS BLOB)"),
];

/// A directory in which copies of a server's database are changed.
struct Copies {
    home: Home,
    sound: Vec<u8>,
}

impl Copies {
    fn of(server: &Server) -> Self {
        let home = Setup::new().home();
        fs::create_dir_all(home.data()).unwrap();
        let copy = home.data().join("sound.db");
        let into = copy.to_str().unwrap().to_owned();
        server.database().execute("VACUUM INTO ?", [into]).unwrap();
        Self { sound: fs::read(&copy).unwrap(), home }
    }

    /// Copies the database, changes it, and returns the number of changed rows.
    #[track_caller]
    fn change(&self, sql: &str) -> usize {
        let sql = SHORT.iter().fold(sql.to_owned(), |sql, (short, long)| sql.replace(short, long));
        let file = self.home.data().join("greenroom.db");
        for end in ["", "-wal", "-shm"] {
            fs::remove_file(self.home.data().join(format!("greenroom.db{end}"))).ok();
        }
        fs::write(&file, &self.sound).unwrap();
        let database = Connection::open_with_flags(&file, OpenFlags::SQLITE_OPEN_READ_WRITE);
        database.unwrap().execute(&sql, []).unwrap_or_else(|err| panic!("{sql}: {err}"))
    }

    /// Checks that `verify` finds every change: in a line that names the group and contains these
    /// words.
    #[track_caller]
    fn assert_found(&self, cases: &[(&str, &str)]) {
        let mut wrong = Vec::new();
        for (sql, holds) in cases {
            assert!(0 < self.change(sql), "{sql} changes nothing");
            let Verified { code, lines } = verify(&self.home, &[]);
            let found = lines.iter().any(|line| line.starts_with("work: ") && line.contains(holds));
            if code != 1 || !found {
                let lines = lines.join("\n    ");
                wrong.push(format!("{sql}: exit code {code}, and no {holds:?} in\n    {lines}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[rustfmt::skip]
const CHANGED_ROWS: &[(&str, &str)] = &[
    ("UPDATE tasks SET state = 'cancelled' WHERE $keys AND state = 'failed'",                 "task tsk_"),
    ("UPDATE tasks SET state = 'queued' WHERE $keys AND state = 'failed'",                    "task tsk_"),
    ("UPDATE tasks SET text = 'bye' WHERE $keys AND text = 'again'",                          "task tsk_"),
    ("UPDATE tasks SET seq_last = seq_last + 1 WHERE $keys AND text = 'again'",               "task tsk_"),
    ("UPDATE tasks SET seq_first = seq_first - 1 WHERE $keys AND text = 'again'",             "task tsk_"),
    ("UPDATE tasks SET error = '{\"code\":\"x\",\"message\":\"y\"}' WHERE $keys AND state = 'failed'", "task tsk_"),
    ("UPDATE tasks SET error = NULL WHERE $keys AND state = 'failed'",                        "task tsk_"),
    ("UPDATE tasks SET retry_at = json_object('since', json_object('wall', 0, 'up', json_object('boot', '00000000-0000-0000-0000-000000000000', 'ms', 0)), 'ms', 0) WHERE $keys AND state = 'failed'", "task tsk_"),
    ("UPDATE tasks SET stop_reason = 'refusal' WHERE $keys AND text = 'again'",               "task tsk_"),
    ("UPDATE tasks SET interrupted = NULL WHERE $keys AND state = 'interrupted'",             "task tsk_"),
    ("UPDATE tasks SET usage = NULL WHERE $keys AND usage IS NOT NULL",                       "task tsk_"),
    ("UPDATE tasks SET findings = '[\"empty_answer\"]' WHERE $keys AND text = 'again'",       "task tsk_"),
    ("UPDATE tasks SET ended_at = ended_at + 1 WHERE $keys AND text = 'again'",               "task tsk_"),
    ("UPDATE tasks SET run = randomblob(16) WHERE $keys AND text = 'again'",                  "task tsk_"),
    ("UPDATE tasks SET segment = 9 WHERE $keys AND text = 'again'",                           "task tsk_"),
    ("UPDATE tasks SET origin = 'acp' WHERE $keys AND text = 'again'",                        "task tsk_"),
    ("UPDATE tasks SET kind = 'turn' WHERE $keys AND kind = 'compaction'",                    "is a Turn"),
    ("UPDATE tasks SET cancel_requested = 1 WHERE $keys AND text = 'again'",                  "task tsk_"),
    ("UPDATE tasks SET prompt = '[]' WHERE $keys AND text = 'again'",                         "prompt of tsk_"),
    ("UPDATE tasks SET key = key + 9 WHERE $keys AND text = 'again'",                         "task tsk_"),
    ("DELETE FROM tasks WHERE $keys AND text = 'again'",                                      "was accepted and has no row"),
    ("INSERT INTO tasks (key, id, kind, origin, prompt, created_at, state) SELECT key + 9, randomblob(16), kind, origin, prompt, created_at, state FROM tasks WHERE $keys AND text = 'again'", "was never accepted"),
    ("UPDATE tasks SET attempt = 1 WHERE $keys AND text = 'second'",                          "task tsk_"),
    ("UPDATE tasks SET state = 'retrying' WHERE $keys AND text = 'second'",                   "task tsk_"),
    ("UPDATE permissions SET state = 'void' WHERE $keys",                                     "permission prm_"),
    ("UPDATE permissions SET state = 'pending' WHERE $keys",                                  "permission prm_"),
    ("UPDATE permissions SET selected = 'x' WHERE $keys",                                     "permission prm_"),
    ("UPDATE permissions SET resolved_by = 'api' WHERE $keys",                                "permission prm_"),
    ("UPDATE permissions SET resolved_at = resolved_at + 1 WHERE $keys",                      "permission prm_"),
    ("UPDATE permissions SET opened_at = opened_at - 1 WHERE $keys",                          "permission prm_"),
    ("UPDATE permissions SET record = json_remove(record, '$.task') WHERE $keys",             "permission prm_"),
    ("DELETE FROM permissions WHERE $keys",                                                   "permissions without a row"),
    ("UPDATE runs SET code = 8 WHERE no = $no AND code = 7",                                  "run run_"),
    ("UPDATE runs SET reason = 'stopped' WHERE no = $no AND code = 7",                        "run run_"),
    ("UPDATE runs SET pid = pid + 1 WHERE no = $no AND code = 7",                             "run run_"),
    ("UPDATE runs SET agent = 'other' WHERE no = $no AND code = 7",                           "run run_"),
    ("DELETE FROM runs WHERE no = $no AND code = 7",                                          "runs without a row"),
    ("UPDATE segments SET end_reason = 'reset' WHERE no = $no AND segment = 1",               "segment 1"),
    ("UPDATE segments SET closed_seq = closed_seq + 1 WHERE no = $no AND segment = 1",        "segment 1"),
    ("UPDATE segments SET parent = NULL WHERE no = $no AND segment = 2",                      "segment 2"),
    ("UPDATE segments SET session = 'other' WHERE no = $no AND segment = 2",                  "segment 2"),
    ("DELETE FROM segments WHERE no = $no AND segment = 1",                                   "number of segments"),
    ("UPDATE compactions SET status = 'failed', record = replace(record, 'completed', 'failed') WHERE $keys", "compaction cmp_"),
    ("UPDATE compactions SET ended_at = ended_at + 1 WHERE $keys",                            "compaction cmp_"),
    ("UPDATE compactions SET status = 'failed' WHERE $keys",                                  "compaction cmp_"),
    ("DELETE FROM compactions WHERE $keys",                                                   "compactions without a row"),
    ("UPDATE heads SET compacting = json_set(compacting, '$.count', 7) WHERE no = $no",       "head"),
    ("UPDATE heads SET last_seq = last_seq + 1 WHERE no = $no",                               "head"),
    ("UPDATE heads SET tasks = tasks + 1 WHERE no = $no",                                     "head"),
    ("UPDATE heads SET session = 'other' WHERE no = $no",                                     "head"),
    ("UPDATE heads SET segment = 1 WHERE no = $no",                                           "head"),
    ("UPDATE heads SET usage = '{\"used\":1,\"size\":2}' WHERE no = $no",                     "head"),
    ("UPDATE heads SET paused = 1 WHERE no = $no",                                            "head"),
    ("UPDATE heads SET archived = 1 WHERE no = $no",                                          "head"),
    ("UPDATE heads SET lead_in = 'x' WHERE no = $no",                                         "head"),
    ("UPDATE heads SET held = 'interrupted' WHERE no = $no",                                  "head"),
    ("UPDATE heads SET interruptions = 2 WHERE no = $no",                                     "head"),
    ("UPDATE heads SET crashes = 6 WHERE no = $no",                                           "head"),
    ("UPDATE heads SET unspoken = 1 WHERE no = $no",                                          "head"),
    ("UPDATE heads SET status = 'running' WHERE no = $no",                                    "status"),
    ("UPDATE heads SET blocked_by = 'slot' WHERE no = $no",                                   "blocked_by"),
    ("UPDATE heads SET queue_length = 1 WHERE no = $no",                                      "queue length"),
    ("UPDATE heads SET current_task = randomblob(16) WHERE no = $no",                         "current task"),
    ("UPDATE heads SET current_run = randomblob(16) WHERE no = $no",                          "current run"),
    ("UPDATE heads SET is_compacting = 1 WHERE no = $no",                                     "is_compacting"),
    ("UPDATE groups SET settings = json_set(settings, '$.title', 'x') WHERE id = 'work'",     "head"),
    ("UPDATE groups SET created_at = created_at + 1 WHERE id = 'work'",                       "head"),
];

/// I13: a row that differs from the log is found.
#[test]
fn a_changed_row_is_found() {
    let server = start_eventful();
    let copies = Copies::of(&server);
    copies.assert_found(CHANGED_ROWS);
}

#[rustfmt::skip]
const CHANGED_DIGESTS: &[(&str, &str)] = &[
    ("UPDATE heads SET digest = json_set(digest, '$.frame_count', 7) WHERE no = $no",       "I6: digest:"),
    ("UPDATE heads SET digest = digest || ' ' WHERE no = $no",                              "I6: digest:"),
    ("UPDATE heads SET digest = json_remove(digest, '$.outcome') WHERE no = $no",           "I6: digest:"),
    ("UPDATE heads SET run_digest = json_set(run_digest, '$.agent', 'other') WHERE no = $no",             "I6: digest of the last run:"),
    ("UPDATE heads SET run_digest = NULL WHERE no = $no",                                          "I6: digest of the last run:"),
    ("UPDATE heads SET carry = '{}' WHERE no = $no",                                        "what the digests fold on from:"),
    ("UPDATE heads SET digest = NULL WHERE no = $no",                                         "I6: digest:"),
    ("UPDATE runs SET digest = json_set(digest, '$.digest.outcome', 'exited') WHERE no = $no AND code = 7", "I6: digests of runs:"),
    ("UPDATE runs SET digest = NULL WHERE no = $no AND code = 7",                             "I6: digests of runs:"),
    ("UPDATE runs SET digest = (SELECT run_digest FROM heads WHERE no = $no) WHERE no = $no AND ended_at IS NULL", "I6: digests of runs:"),
    ("UPDATE turns SET digest = json_set(digest, '$.turn_count', 2) WHERE $keys",             "digests of turns:"),
    ("UPDATE turns SET agent = 'other' WHERE $keys",                                          "digests of turns:"),
    ("UPDATE turns SET ended_at = ended_at + 1 WHERE $keys",                                  "digests of turns:"),
    ("DELETE FROM turns WHERE $keys",                                                         "digests of turns:"),
];

/// I6, I13: a digest that differs from the frames, or that is missing, is found.
#[test]
fn a_changed_digest_is_found() {
    let server = start_eventful();
    let copies = Copies::of(&server);
    copies.assert_found(CHANGED_DIGESTS);
    copies
        .change("INSERT INTO turns SELECT ended_at + 1, key, agent, digest FROM turns WHERE $keys");
    let Verified { code, lines } = verify(&copies.home, &[]);
    let holds = "turns of no task";
    let found = lines.iter().any(|line| line.contains(holds));
    assert!(code == 1 && found, "exit code {code}: {lines:?}");
}

/// Changes of the log.
#[rustfmt::skip]
const CHANGED_LOG: &[(&str, &str)] = &[
    ("DELETE FROM blocks WHERE $keys AND kinds = 'session/update' AND text LIKE '%again%'",  "I3: frame"),
    ("DELETE FROM blocks WHERE $keys AND kinds LIKE '%task_ended%' AND text LIKE '%failed%'", "I3: frame"),
    ("DELETE FROM blocks WHERE $keys AND key = (SELECT max(key) FROM blocks WHERE $keys)",    "head"),
    ("DELETE FROM blocks WHERE $keys",                                                        "was never accepted"),
    ("UPDATE blocks SET $text 'again', 'never' $end WHERE $keys AND text LIKE '%again%' AND kinds = 'session/update'", "task tsk_"),
    ("UPDATE blocks SET $text 'failed', 'queued' $end WHERE $keys AND kinds LIKE '%task_ended%'", "task tsk_"),
    ("UPDATE blocks SET $text '[[reply:again]]', 'x' $end WHERE $keys AND kinds LIKE '%turn_started%'", "prompt of tsk_"),
    ("UPDATE blocks SET $text '\"code\":7', '\"code\":8' $end WHERE $keys AND kinds LIKE '%run_exited%'", "run run_"),
    ("UPDATE blocks SET $text 'compaction', 'reset' $end WHERE $keys AND kinds LIKE '%segment_ended%'", "segment 1"),
    ("UPDATE blocks SET kinds = replace(kinds, 'run_exited', 'run_vanished') WHERE $keys",    "(greenroom/run_vanished) cannot be read"),
    ("UPDATE blocks SET kinds = replace(kinds, 'task_ended', 'x/y') WHERE $keys",             "(greenroom/x/y) cannot be read"),
    ("UPDATE blocks SET $text '{', '[' $end WHERE $keys AND kinds LIKE '%run_ready%'",      "cannot be read"),
    ("UPDATE blocks SET $text 'sessionId', 'x' $end WHERE $keys AND kinds LIKE '%session/prompt%'", "is no prompt"),
    ("UPDATE blocks SET text = x'ff0aff' WHERE $keys AND count > 2",                          "I3: frame"),
    ("UPDATE blocks SET kinds = 'a' || char(10) || 'b' WHERE $keys AND count > 2",            "I3: frame"),
    ("UPDATE blocks SET count = 1 WHERE $keys AND count > 2",                                 "I3: frame"),
    ("UPDATE blocks SET count = 0 WHERE $keys AND count > 2",                                 "I3: frame"),
    ("UPDATE blocks SET count = -1 WHERE $keys AND count > 2",                                "I3: frame"),
    ("UPDATE blocks SET segment = 9 WHERE $keys AND kinds = 'session/update'",                "is stored in segment 9"),
    ("UPDATE blocks SET run = NULL WHERE $keys AND kinds = 'session/update'",                 "run and task of frame"),
    ("UPDATE blocks SET task = NULL WHERE $keys AND text LIKE '%again%'",                     "run and task of frame"),
];

/// I13: a log that differs from the rows is found.
#[test]
fn a_changed_log_is_found() {
    let server = start_eventful();
    let copies = Copies::of(&server);
    copies.assert_found(CHANGED_LOG);
}

#[rustfmt::skip]
const UNREADABLE_ROWS: &[(&str, &str)] = &[
    ("UPDATE tasks SET state = 'unheard of' WHERE $keys AND text = 'again'",          "was accepted and has no row"),
    ("UPDATE tasks SET prompt = '{' WHERE $keys AND text = 'again'",                  "was accepted and has no row"),
    ("UPDATE tasks SET error = '{' WHERE $keys AND state = 'failed'",                 "was accepted and has no row"),
    ("UPDATE tasks SET id = x'00' WHERE $keys AND text = 'again'",                    "was accepted and has no row"),
    ("UPDATE tasks SET run = x'00' WHERE $keys AND text = 'again'",                   "was accepted and has no row"),
    ("UPDATE tasks SET segment = -1 WHERE $keys AND text = 'again'",                  "was accepted and has no row"),
    ("UPDATE tasks SET text = CAST(x'ff' AS TEXT) WHERE $keys AND text = 'again'",    "was accepted and has no row"),
    ("UPDATE runs SET reason = 'unheard of' WHERE no = $no AND code = 7",             "runs without a row"),
    ("UPDATE runs SET id = x'00' WHERE no = $no AND code = 7",                        "runs without a row"),
    ("UPDATE runs SET pid = -1 WHERE no = $no AND code = 7",                          "runs without a row"),
    ("UPDATE segments SET end_reason = 'unheard of' WHERE no = $no AND segment = 1",  "number of segments"),
    ("UPDATE segments SET provenance = '{' WHERE no = $no AND segment = 1",           "number of segments"),
    ("UPDATE compactions SET record = '{' WHERE $keys",                               "compactions without a row"),
    ("UPDATE compactions SET status = 'unheard of' WHERE $keys",                      "compactions without a row"),
    ("UPDATE permissions SET record = '{' WHERE $keys",                               "permissions without a row"),
    ("UPDATE permissions SET state = 'unheard of' WHERE $keys",                       "permissions without a row"),
    ("UPDATE blocks SET run = x'00' WHERE $keys AND kinds = 'session/update'",        "I3: frame"),
    ("UPDATE blocks SET segment = -1 WHERE $keys AND kinds = 'session/update'",       "I3: frame"),
    ("UPDATE heads SET status = 'unheard of' WHERE no = $no",                         "the group's own row cannot be read"),
    ("UPDATE heads SET usage = '{' WHERE no = $no",                                   "the group's own row cannot be read"),
    ("UPDATE heads SET compacting = '{' WHERE no = $no",                              "the group's own row cannot be read"),
    ("UPDATE heads SET current_run = x'00' WHERE no = $no",                           "the group's own row cannot be read"),
    ("UPDATE groups SET settings = '{' WHERE id = 'work'",                            "the group's own row cannot be read"),
    ("DELETE FROM heads WHERE no = $no",                                              "has no row in heads"),
];

/// AM-18: an unreadable row is reported, and the others are still verified.
#[test]
fn an_unreadable_row_is_found() {
    let server = start_eventful();
    let copies = Copies::of(&server);
    copies.assert_found(UNREADABLE_ROWS);
    for (sql, holds) in [
        ("UPDATE groups SET id = 'no name' WHERE id = 'work'", "\"no name\" is no name of a group"),
        ("DELETE FROM groups WHERE id = 'work'", "blocks of no group, numbered"),
        (
            "INSERT INTO locks (key, holder, group_no, ttl_ms, acquired_at, expires_boot_ms, boot) \
             VALUES ('s', 'h', 999, 1, 0, 0, '')",
            "of no group, numbered 999",
        ),
    ] {
        copies.change(sql);
        let Verified { code, lines } = verify(&copies.home, &[]);
        let found = lines.iter().any(|line| line.contains(holds));
        assert!(code == 1 && found, "{sql}: exit code {code}: {lines:?}");
    }
    copies.change("UPDATE heads SET usage = '{' WHERE no = $no");
    assert_eq!(verify(&copies.home, &["work"]).code, 1);
    assert_sound(&copies.home, &["quiet"], "1 groups, ");
}

/// I13: any changed or unreadable row is repaired from the log; a damaged log is reported.
#[test]
fn changed_and_unreadable_rows_are_repaired() {
    let server = start_eventful();
    let copies = Copies::of(&server);
    let mut wrong = Vec::new();
    for (sql, _) in [CHANGED_ROWS, CHANGED_DIGESTS, UNREADABLE_ROWS].concat() {
        copies.change(sql);
        let repaired = verify(&copies.home, &["--repair", "work"]);
        let of_log = sql.starts_with("UPDATE blocks");
        let prints = |words: &str| repaired.lines.iter().any(|line| line.contains(words));
        if of_log {
            if repaired.code != 1 || !prints("nothing was changed") {
                wrong.push(format!("{sql}: {}: {:?}", repaired.code, repaired.lines));
            }
            continue;
        }
        let after = verify(&copies.home, &[]);
        if (repaired.code, after.code) != (0, 0) {
            let (repaired, after) = (repaired.lines.join("\n    "), after.lines.join("\n    "));
            wrong.push(format!("{sql}:\n    {repaired}\n  then\n    {after}"));
        }
    }
    // The repair trusts the log, or changes nothing.
    for (sql, _) in CHANGED_LOG {
        copies.change(sql);
        let repaired = verify(&copies.home, &["--repair", "work"]);
        let after = verify(&copies.home, &[]);
        let refused = repaired.lines.iter().any(|line| line.contains("nothing was changed"));
        let kept = sql.starts_with("UPDATE") && (repaired.code, after.code) == (0, 0);
        if !kept && (repaired.code, refused) != (1, true) {
            let (repaired, after) = (repaired.lines.join("\n    "), after.lines.join("\n    "));
            wrong.push(format!("{sql}:\n    {repaired}\n  then\n    {after}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    copies.change("UPDATE heads SET usage = '{' WHERE no = $no");
    assert_eq!(verify(&copies.home, &["--repair"]).code, 2, "a repair needs a group");
    assert_eq!(verify(&copies.home, &["--repair", "absent"]).code, 2);
    let usable = verify(&server.home, &["--repair", "work"]);
    assert!(usable.code == 1 && usable.lines.concat().contains("in use"), "{:?}", usable.lines);
}
