//! The digests of groups, runs, turns and time windows, as the API returns them.

use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, millis, server::id};

/// The digest of an empty log.
fn empty_digest() -> Value {
    let bounds: Vec<u64> = (0..23).map(|power| 1 << power).collect();
    json!({
        "group": null, "run": null, "agent": null, "schema_version": 1,
        "watermark_seq": null, "frame_count": 0, "turn_count": 0,
        "first_at": null, "last_at": null, "duration_ms": null,
        "usage": { "used": null, "size": null, "input": 0, "output": 0, "cached": 0 },
        "cost": null, "more_costs": [], "by_model": {}, "stop_reasons": {}, "errors": {},
        "tools": {},
        "permissions": { "asked": 0, "selected": 0, "cancelled": 0, "expired": 0, "void": 0 },
        "compactions": {
            "completed": 0, "failed": 0, "cancelled": 0, "abandoned": 0, "skipped": 0, "noop": 0,
            "tokens_before": 0, "tokens_after": 0,
        },
        "latency_histogram": {
            "bounds_ms": bounds, "counts": vec![0; 24], "count": 0, "sum_ms": 0,
            "p50_ms": null, "p90_ms": null, "p99_ms": null,
        },
        "outcome": null, "outcomes": {}, "findings_count": 0, "findings": [],
    })
}

/// A-8, TD-9: a digest has all its fields from the first frame on, and so has a merge of no groups.
/// It sums turns, tools, permissions, errors and compactions; the digest of the only run equals the
/// group's.
#[test]
fn a_digest_sums_turns_tools_permissions_errors_and_compactions() {
    let server = Server::usual();
    let with = |fields: Value| {
        let mut digest = empty_digest();
        digest.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        digest
    };
    assert_eq!(server.merged(""), with(json!({ "groups": 0, "from": null, "to": null })));
    let created = server.put("/v1/groups/work", &json!({})).expect(201);
    let at = &created["created_at"];
    let first = json!({
        "group": "work", "watermark_seq": 1, "frame_count": 1, "first_at": at, "last_at": at,
        "duration_ms": 0,
    });
    assert_eq!(server.digest("work"), with(first));

    server.complete("work", "[[usage:90:1000:0.25:USD]][[tokens:7:5]][[tool]][[tool:failed]]");
    server.complete("work", "[[usage:95:1000:0.75:USD]][[tokens:1:2]][[model:m-1:1:2]][[reply:x]]");
    server.complete("work", "[[usage:95:1000:3:EUR]][[permission]][[refuse]]");
    let failed = server.turn("work", "[[error:-32602:no]]");
    server.complete("work", "[[silent]]");
    server.finish_as(&server.compact_with("work", "[[usage:10:1000]]"), "completed");
    let (digest, group) = (server.digest("work"), server.group("work"));
    let empty = &digest["findings"][0];
    let at = format!("&after={}", empty["seq"].as_u64().unwrap() - 1);
    let ended = &server.frames_where("work", &at)[0];
    assert_eq!(ended["kind"], "greenroom/task_ended", "{empty}");
    let (code, last) = (failed["error"]["code"].as_str().unwrap(), &group["last_seq"]);
    // The times have tests of their own, in core.
    let times = ["first_at", "last_at", "duration_ms", "latency_histogram"];
    let mut expected = with(json!({
        "group": "work", "watermark_seq": last, "frame_count": last, "turn_count": 5,
        "usage": { "used": 10, "size": 1000, "input": 8, "output": 7, "cached": 0 },
        "cost": { "amount": 3.0, "currency": "EUR" },
        "more_costs": [{ "amount": 0.75, "currency": "USD" }],
        "by_model": { "m-1": { "input": 1, "output": 2, "cached": 0 } },
        "stop_reasons": { "end_turn": 3, "refusal": 1, "_error": 1 },
        "errors": { code: { "count": 1, "samples": [failed["seq_last"]] } },
        "tools": { "execute": { "calls": 2, "failed": 1 } },
        "permissions": { "asked": 1, "selected": 1, "cancelled": 0, "expired": 0, "void": 0 },
        "compactions": {
            "completed": 1, "failed": 0, "cancelled": 0, "abandoned": 0, "skipped": 0, "noop": 0,
            "tokens_before": digest["compactions"]["tokens_before"],
            "tokens_after": digest["compactions"]["tokens_after"],
        },
        "findings_count": 1,
        "findings": [
            { "kind": "empty_answer", "seq": ended["seq"], "task": ended["payload"]["task"] },
        ],
    }));
    times.iter().for_each(|time| expected[time] = digest[time].clone());
    assert_eq!(digest, expected);
    let latency = &digest["latency_histogram"];
    let counts = latency["counts"].as_array().unwrap().iter();
    assert_eq!(counts.map(|count| count.as_u64().unwrap()).sum::<u64>(), 5, "{latency}");
    assert!(latency["count"] == 5 && latency["p99_ms"].is_u64(), "{latency}");

    let run = server.run_digest(group["current_run"].as_str().unwrap());
    let of_run = ["run", "agent", "frame_count", "first_at", "duration_ms"];
    of_run.iter().for_each(|name| expected[name] = run[name].clone());
    assert_eq!(run, expected);
    assert_eq!((&run["run"], &run["agent"]), (&group["current_run"], &json!("scripted")));
    assert_command_line(&server, group["current_run"].as_str().unwrap());
}

/// API-5: `greenroom digest` shows a summary of a group or a run; `--json` prints the server's
/// answer.
#[track_caller]
fn assert_command_line(server: &Server, run: &str) {
    let stdout = server.cli_stdout(&["digest", "work"]);
    assert!(stdout.contains("1% (10 of 1000)"), "{stdout}");
    let json = server.cli_stdout(&["digest", "work", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), server.digest("work"));
    let stdout = server.cli_stdout(&["digest", "work", "--run", run]);
    assert!(stdout.contains(&format!("{run} of scripted")), "{stdout}");
    let absent = server.cli(&["digest", "absent"]);
    assert_eq!(absent.status.code(), Some(5), "{absent:?}");
}

/// TD-6: digests that are damaged, missing or in an old format are rebuilt before they are served,
/// by a group that sleeps and by a live one. If a rebuild does not help, the answer is a problem
/// instead of a wrong digest, and later requests do not wait for another rebuild.
#[test]
fn missing_damaged_and_old_digests_are_rebuilt() {
    let mut server = Server::usual();
    server.turn("work", "[[reply:x]][[die:1]]");
    server.complete("other", "[[reply:y]]");
    let restart = |server: &mut Server, sql: &str| {
        server.terminate();
        server.wait_exit();
        server.writable_database().execute_batch(sql).unwrap();
        server.boot();
    };
    let no = "WHERE no = (SELECT no FROM groups WHERE id = 'work')";
    let outdate = "UPDATE heads SET digest_version = 0, digest = '{}', carry = '{}';
        UPDATE runs SET digest = NULL; DELETE FROM turns;";
    let unversioned = format!("UPDATE heads SET digest_version = NULL {no}");
    for (damage, path, is_live) in [
        (outdate, "/v1/groups/work/digest", false),
        (outdate, "/v1/digest?agent=scripted", false),
        (&format!("UPDATE runs SET digest = '{{' {no}"), "/v1/runs/$run/digest", true),
        (&unversioned, "/v1/groups/work/turns", true),
        (&format!("UPDATE heads SET digest = '{{' {no}"), "/v1/digest", true),
    ] {
        // An actor rebuilds them once.
        restart(&mut server, "");
        if is_live {
            server.complete("work", "[[tool]]");
        }
        let runs = server.list("work", "runs");
        let read = |server: &Server| {
            let turns = server.get("/v1/groups/work/turns").expect(200);
            let digests = runs.iter().map(|run| server.run_digest(id(run)));
            let all = [server.digest("work"), server.merged(""), turns];
            digests.chain(all).collect::<Vec<_>>()
        };
        let before = read(&server);
        if is_live {
            server.writable_database().execute_batch(damage).unwrap();
        } else {
            restart(&mut server, damage);
        }
        // Any first read rebuilds them.
        server.get(&path.replace("$run", id(&runs[runs.len() - 1]))).expect(200);
        assert_eq!(read(&server), before, "{damage}: {path}");
    }
    restart(&mut server, "");
    server.complete("work", "[[tool]]");
    server.writable_database().execute_batch(&unversioned).unwrap();
    server.digest("work");
    server.writable_database().execute_batch(&unversioned).unwrap();
    for path in ["/v1/groups/work/digest", "/v1/groups/work/turns", "/v1/digest"] {
        server.get(path).problem(500, "digest-missing");
    }
    server.log.wait("the missing digest", |line| {
        line.contains("ERROR") && line.contains("digest missing")
    });
    server.complete("work", "next");
    assert_eq!(server.digest("work")["turn_count"], 6, "a commit stores them");
}

/// F19: while the database fails, a stored digest is served; a missing one is 503 instead of a
/// wrong answer.
#[test]
fn without_disk_space_a_missing_digest_is_503() {
    let server = Server::usual();
    server.complete("work", "x");
    server.complete("other", "x");
    let outdate = "UPDATE heads SET digest_version = 0 WHERE digest LIKE '%\"watermark_seq\"%' \
        AND no = (SELECT no FROM groups WHERE id = 'work')";
    assert_eq!(server.writable_database().execute(outdate, []).unwrap(), 1);
    server.limit_file_size(Some(1));
    let prompt = json!({ "prompt": "refused" });
    server.post("/v1/groups/work/turns", &prompt).problem(503, "storage-unavailable");
    for path in ["/v1/groups/work/digest", "/v1/groups/work/turns", "/v1/digest"] {
        server.get(path).problem(503, "storage-unavailable");
    }
    assert_eq!(server.digest("other")["turn_count"], 1);
    server.limit_file_size(None);
    let digest = eventually("the digest to be rebuilt", &server.log, || {
        let reply = server.get("/v1/groups/work/digest");
        (reply.status == 200).then(|| reply.json())
    });
    assert_eq!(digest["turn_count"], 1, "{digest}");
}

/// The rows of a page, and its cursors.
#[track_caller]
fn page(server: &Server, query: &str) -> (Vec<String>, Value) {
    let page = server.get(&format!("/v1/groups/work/turns{query}")).expect(200);
    let items = page["items"].as_array().unwrap().iter();
    (items.map(|turn| turn["task"].as_str().unwrap().to_owned()).collect(), page)
}

/// Reads from a page forward, or back, to the end; returns the items page by page, and the last
/// page.
#[track_caller]
fn walk(server: &Server, query: &str, from: &Value, by: &str) -> (Vec<Vec<String>>, Value) {
    let (mut pages, mut last) = (Vec::new(), from.clone());
    while let Some(cursor) = last[by].as_str() {
        let (items, next) = page(server, &format!("{query}&cursor={cursor}"));
        assert!(!items.is_empty(), "{by} led to an empty page: {next}");
        pages.push(items);
        last = next;
    }
    (pages, last)
}

/// API-2: pages of turns, in both orders and both directions, lose and repeat nothing, also while
/// turns are added.
#[test]
fn pages_of_turns_lose_and_repeat_nothing() {
    let server = Server::usual();
    let complete = |count| -> Vec<String> {
        (0..count).map(|_| id(&server.complete("work", "x")).to_owned()).collect()
    };
    server.put("/v1/groups/work", &json!({})).expect(201);
    server.complete("other", "x");
    let none = json!({ "items": [], "next_cursor": null, "prev_cursor": null });
    assert_eq!(page(&server, "").1, none);
    let mut all = complete(5);
    for (limit, order) in [1, 2, 3, 5, 6].into_iter().flat_map(|n| [(n, "asc"), (n, "desc")]) {
        let query = format!("?limit={limit}&order={order}");
        let (first, at_first) = page(&server, &query);
        assert_eq!(at_first["prev_cursor"], json!(null), "{query}");
        let (after, at_last) = walk(&server, &query, &at_first, "next_cursor");
        let forward = [vec![first], after].concat();
        let (before, _) = walk(&server, &query, &at_last, "prev_cursor");
        let back = before.into_iter().rev().chain(forward.last().cloned());
        for mut read in [back.collect::<Vec<_>>().concat(), forward.concat()] {
            if order == "desc" {
                read.reverse();
            }
            assert_eq!(read, all, "{query}");
        }
    }
    let (_, oldest) = page(&server, "?limit=2");
    let (_, newest) = page(&server, "?limit=2&order=desc");
    let cursor = newest["next_cursor"].as_str().unwrap();
    let (_, second) = page(&server, &format!("?limit=2&order=desc&cursor={cursor}"));
    all.extend(complete(2));
    let (later, _) = walk(&server, "?limit=2", &oldest, "next_cursor");
    assert_eq!(later.concat(), all[2..]);
    let (back, _) = walk(&server, "?limit=2&order=desc", &second, "prev_cursor");
    assert_eq!(back.concat(), [4, 3, 6, 5].map(|at: usize| all[at].clone()));
    // After the end there is an empty page with a `prev_cursor`; new turns appear there.
    for (order, cursor, nearest) in [("asc", 7, 6), ("desc", 1, 0)] {
        let (none, empty_page) = page(&server, &format!("?limit=1&order={order}&cursor={cursor}"));
        assert_eq!((none.len(), &empty_page["next_cursor"]), (0, &json!(null)), "{order}");
        let back = empty_page["prev_cursor"].as_str().unwrap();
        let (items, _) = page(&server, &format!("?limit=1&order={order}&cursor={back}"));
        assert_eq!(items, [all[nearest].clone()], "{order}");
    }
    all.extend(complete(1));
    assert_eq!(page(&server, "?limit=3&cursor=7").0, all[7..]);
    for end in ["18446744073709551615", "prev-0", "prev-18446744073709551615", "0"] {
        for order in ["asc", "desc"] {
            page(&server, &format!("?cursor={end}&order={order}"));
        }
    }
}

/// API-2, TD-8: a turn is in the index from its start on, and its result from its end on;
/// compactions and tasks that did not start are not in it.
#[test]
fn the_turn_index_has_started_turns_and_their_results() {
    let server = Server::usual();
    let done = server.complete("work", "[[usage:1:2:0.5:USD]][[tokens:3:4]][[tool:failed]]");
    let failed = server.turn("work", "[[error:-32602:no]]");
    server.finish_as(&server.compact("work"), "completed");
    let running = server.submit("work", "[[tool]][[gate:go]]");
    server.journal.wait_gate("go");
    let waiting = server.submit("work", "waits");
    let list = || server.get("/v1/groups/work/turns").expect(200)["items"].clone();
    let turns = list();
    assert_eq!(turns.as_array().unwrap().len(), 3, "{turns}");
    for (turn, task) in
        turns.as_array().unwrap().iter().zip([&done, &failed, &server.task(&running)])
    {
        assert_eq!(turn["task"], task["id"]);
        let of_task = "state origin attempt stop_reason seq_first seq_last segment run started_at \
                       ended_at error";
        for name in of_task.split(' ') {
            assert_eq!(turn[name], task[name], "{name}: {turn} {task}");
        }
    }
    let first = &turns[0];
    assert_eq!(first["tokens"], json!({ "input": 3, "output": 4, "cached": 0 }));
    assert_eq!(first["cost"], json!({ "amount": 0.5, "currency": "USD" }));
    assert_eq!(first["tools"], json!({ "execute": { "calls": 1, "failed": 1 } }));
    assert_eq!((&first["errors"], &first["findings"]), (&json!({}), &json!([])));
    assert_eq!(first["duration_ms"], millis(&done["ended_at"]) - millis(&done["started_at"]));
    let code = failed["error"]["code"].as_str().unwrap();
    assert_eq!(turns[1]["errors"][code]["count"], 1, "{turns}");
    let results = "ended_at duration_ms stop_reason tokens cost tools errors findings seq_last";
    for name in results.split(' ') {
        assert_eq!(turns[2][name], json!(null), "{name}: {turns}");
    }
    let names = |turn: &Value| turn.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&turns[0]), names(&turns[2]));
    server.journal.open_gate("go");
    server.finish_as(&waiting, "completed");
    let turns = list();
    assert_eq!(turns[2]["tools"]["execute"]["calls"], 1, "{turns}");
    assert_eq!(turns[3]["task"], waiting["id"]);
    assert_eq!(server.digest("work")["turn_count"], 4);
}

/// API-2: a merge covers all groups, or the turns that ended in a window and under an agent. The
/// end of a window is exclusive.
#[test]
fn a_merge_selects_turns_by_window_and_agent() {
    let server = Setup::new().agent("second", &[]).start();
    server.create_group("b", "second", "");
    let first = server.complete("a", "[[usage:1:2]][[tokens:1:1]][[silent]]");
    // Its agent starts in between, so the clock reads later.
    let middle = server.turn("b", "[[tokens:10:10]][[error:-32602:no]]");
    let last = server.complete("a", "[[tokens:100:100]][[tool:failed]]");
    let at = middle["ended_at"].as_str().unwrap();
    assert!(first["ended_at"].as_str().unwrap() < at, "{first} {middle}");
    let [_, _, until] = [&first, &middle, &last].map(|task| task["ended_at"].as_str().unwrap());
    #[rustfmt::skip]
    let cases = [
        ("".to_owned(),                              2, 3, 101),
        ("?agent=scripted".to_owned(),               1, 2, 101),
        ("?agent=second".to_owned(),                 1, 1, 0),
        ("?agent=gone".to_owned(),                   0, 0, 0),
        (format!("?from={at}"),                      2, 2, 100),
        (format!("?from={at}&agent=scripted"),       1, 1, 100),
        (format!("?to={at}"),                        1, 1, 1),
        (format!("?from={at}&to={at}"),              0, 0, 0),
        ("?from=1999-01-01T00:00:00%2B01:00".into(), 2, 3, 101),
        ("?to=1999-01-01T00:00:00Z".to_owned(),      0, 0, 0),
    ];
    for (query, groups, turns, input) in cases {
        let merged = server.merged(&query);
        let counts = (&merged["groups"], &merged["turn_count"], &merged["usage"]["input"]);
        assert_eq!(counts, (&json!(groups), &json!(turns), &json!(input)), "{query}: {merged}");
        for unknown in ["group", "run", "watermark_seq", "outcome"] {
            assert_eq!(merged[unknown], json!(null), "{unknown}: {merged}");
        }
        assert_eq!(merged["usage"]["used"], json!(null), "{merged}");
        assert_eq!(merged["findings"], json!([]), "{merged}");
    }
    let merged = server.merged("");
    assert_eq!(merged["findings_count"], 1, "{merged}");
    let code = middle["error"]["code"].as_str().unwrap();
    assert_eq!(merged["errors"], json!({ code: { "count": 1, "samples": [] } }));
    let echoed = server.merged(&format!("?from={at}&to={until}&agent=x"));
    assert_eq!(
        (&echoed["from"], &echoed["to"], &echoed["agent"]),
        (&json!(at), &json!(until), &json!("x"))
    );
    assert_purged_is_left_out(&server);
}

/// A group that is purged during a merge is left out of the answer. Here a row without an actor
/// stands for a group that is purged after its row is read and before its actor gets a message.
#[track_caller]
fn assert_purged_is_left_out(server: &Server) {
    let gone = r#"INSERT INTO groups (no, id, settings, created_at) VALUES
            (99, 'gone', '{"agent":"scripted"}', 0);
        INSERT INTO heads (no, epoch, last_seq, tasks, segment, paused, archived, status,
            queue_length) VALUES (99, 1, 0, 0, 0, 0, 0, 'idle', 0);
        INSERT INTO runs (id, no, agent, started_at, ended_at)
            VALUES (x'0189000000007000800000000000000a', 99, 'scripted', 0, 0);"#;
    server.writable_database().execute_batch(gone).unwrap();
    let merged = server.merged("");
    assert_eq!((&merged["groups"], &merged["turn_count"]), (&json!(2), &json!(3)));
    server
        .get("/v1/runs/run_01890000-0000-7000-8000-00000000000a/digest")
        .problem(404, "run-not-found");
    let cleanup = "DELETE FROM runs WHERE no = 99; DELETE FROM heads WHERE no = 99;
        DELETE FROM groups WHERE no = 99;";
    server.writable_database().execute_batch(cleanup).unwrap();
    server.delete("/v1/groups/b?purge=true").expect(202);
    server.wait_purged("b");
    server.get("/v1/groups/b/digest").problem(404, "group-not-found");
    assert_eq!(server.merged("")["groups"], 1);
}

/// TD-11: merges read groups and turns page by page, and omit none. The turns and groups are copies
/// of the rows of one.
#[test]
fn a_merge_over_many_pages_omits_nothing() {
    let server = Server::usual();
    server.complete("work", "[[silent]]");
    let database = server.writable_database();
    let numbers = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1000)";
    let columns = "epoch, last_seq, tasks, segment, paused, archived, status, queue_length, \
                   digest_version, digest, carry";
    let copies = format!(
        "{numbers} INSERT INTO turns SELECT ended_at + n, key + n, agent, digest FROM turns, n;
         {numbers} INSERT INTO groups SELECT 1000 + n, 'g' || n, settings, created_at
             FROM groups, n WHERE n <= 200;
         INSERT INTO heads (no, {columns}) SELECT groups.no, {columns} FROM groups, heads
             WHERE 1000 < groups.no;"
    );
    database.execute_batch(&copies).unwrap();
    for (query, groups, turns) in [("", 201, 201), ("?from=1999-01-01T00:00:00Z", 1, 1001)] {
        let merged = server.merged(query);
        let counts = (&merged["groups"], &merged["turn_count"], &merged["findings_count"]);
        assert_eq!(counts, (&json!(groups), &json!(turns), &json!(turns)), "{query}: {merged}");
    }
    let cleanup = "DELETE FROM groups WHERE 1000 < no; DELETE FROM heads WHERE 1000 < no; \
        DELETE FROM turns WHERE key NOT IN (SELECT key FROM tasks);";
    database.execute_batch(cleanup).unwrap();
}
