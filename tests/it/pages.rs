//! Pages of lists end at a limit of bytes.

use serde_json::{Value, json};

use crate::support::{Server, Setup};

/// Reads all pages of a list; returns the number of items of each page.
#[track_caller]
fn pages(server: &Server, path: &str) -> Vec<usize> {
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let separator = if path.contains('?') { '&' } else { '?' };
        let page = server.get(&format!("{path}{separator}limit=1000{cursor}")).expect(200);
        pages.push(page["items"].as_array().unwrap().len());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return pages,
        }
    }
}

/// I11, F28: a page of any list ends at 8 MiB of rows, after one item at least, and its cursor
/// continues it; so does that of a snapshot.
#[test]
fn a_page_of_any_list_ends_at_a_limit_of_bytes() {
    let server = Setup::new().asks().start();
    for _ in 0..11 {
        server.complete("work", "[[chunks:17:65000]]");
    }
    let metadata = json!({ "metadata": "x".repeat(1_000_000) });
    for number in 0..11 {
        server.put(&format!("/v1/groups/g{number}"), &metadata).expect(201);
    }
    let filler = "x".repeat(1_000_000);
    let call = format!(r#"{{"toolCallId":"$n","rawInput":"{filler}"}}"#);
    for number in 0..10 {
        let call = call.replace("$n", &number.to_string());
        let params = format!(r#"{{"sessionId":$session,"toolCall":{call},"options":[]}}"#);
        let method = "session/request_permission";
        let line = format!(r#"{{"id":{number},"method":"{method}","params":{params}}}"#);
        let (group, prompt) = ("asks", format!("[[line:{line}]]"));
        // The turn ends without an answer, and the permission with it.
        server.complete(group, &prompt);
    }
    let lists = [
        ("/v1/groups/work/tasks", 11),
        ("/v1/groups/work/turns", 11),
        ("/v1/groups", 13),
        ("/v1/permissions", 10),
        ("/v1/groups/asks/frames?kind=session/request_permission", 10),
    ];
    for (path, items) in lists {
        let pages = pages(&server, path);
        assert_eq!(pages.iter().sum::<usize>(), items, "{path}: {pages:?}");
        assert!(pages.len() > 1 && pages.iter().all(|items| *items <= 10), "{path}: {pages:?}");
    }
    let back = server.get("/v1/groups/work/turns?order=desc&limit=1000").expect(200);
    assert!(back["next_cursor"].is_string() && back["prev_cursor"] == Value::Null);

    let snapshot = server.get("/v1/groups/work/snapshot").expect(200);
    assert_eq!(
        (&snapshot["segments_cursor"], &snapshot["permissions_cursor"]),
        (&Value::Null, &Value::Null)
    );
}
