//! Content blocks that the agent did not advertise.

use serde_json::{Value, json};

use crate::support::Server;

/// AM-2, API-2: a block that the agent did not advertise is refused with its place and type. Before
/// the agent's first start it is unknown: the task then fails and the agent never gets its prompt.
/// A restart, or a kill, changes nothing: it is refused before the agent's next start.
#[test]
fn a_block_that_the_agent_did_not_advertise_is_refused() {
    let mut server = Server::usual();
    let turns = "/v1/groups/work/turns";
    let prompt = |block: Value| json!({ "prompt": [{ "type": "text", "text": "see" }, block] });
    let image = prompt(json!({ "type": "image", "data": "AA==", "mimeType": "image/png" }));
    let audio = prompt(json!({ "type": "audio", "data": "AA==", "mimeType": "audio/wav" }));
    let resource = json!({ "uri": "file:///a", "text": "embedded" });
    let resource = prompt(json!({ "type": "resource", "resource": resource }));
    let link = prompt(json!({ "type": "resource_link", "uri": "file:///a", "name": "a" }));
    for life in 1..=3 {
        if life == 1 {
            let failed = server.post(turns, &image).expect(202);
            let failed = server.finish_as(&failed, "failed");
            assert_eq!(failed["error"]["code"], "prompt_not_supported", "{failed}");
            assert_eq!((&failed["attempt"], &failed["seq_first"]), (&json!(0), &json!(null)));
            assert!(failed["error"]["message"].as_str().unwrap().contains("block 1"), "{failed}");
            assert!(server.frames_of_kind("work", "greenroom/turn_started").is_empty());
        }
        for (body, kind) in [(&image, "image"), (&audio, "audio")] {
            let problem = server.post(turns, body).problem(422, "prompt-not-supported");
            assert_eq!(problem["block"], json!({ "index": 1, "type": kind }), "{problem}");
        }
        for body in [&resource, &link] {
            server.finish_as(&server.post(turns, body).expect(202), "completed");
        }
        if life == 1 {
            server.restart();
        } else {
            server.kill_and_boot();
        }
    }
    assert_eq!(server.journal.prompts().len(), 6, "only the taken ones");
}
