//! An agent is killed in the middle of a turn.

use std::{
    thread,
    time::{Duration, Instant},
};

use greenroom_test_support::{poll, process::signal};
use rustix::process::Signal;

use crate::{
    Result, Scale, http,
    http::Connection,
    rows::{GROUP, repeat},
    server::{connect, setup, start},
    subscriber::Subscriber,
    table::{Line, median, ms},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// From the kill to the turn's answer; a subscriber stays connected.
pub fn run(scale: &Scale) -> Result<Vec<Line>> {
    let server = start(setup())?;
    let mut client = connect(&server)?;
    client.turn(GROUP, "empty")?;
    let mut subscriber = Subscriber::open(server.address(), GROUP, 0)?;
    let mut looking = connect(&server)?;
    let settled = repeat(scale, || {
        thread::scope(|scope| {
            let turn = scope.spawn(|| -> Result<(Instant, bool)> {
                let task = client.exchange(&http::turn(GROUP, "hang", 60))?;
                let end = Instant::now();
                let task: serde_json::Value = serde_json::from_slice(&task)?;
                Ok((end, task["state"] == "interrupted"))
            });
            let pid = hanging(&mut looking)?;
            let start = Instant::now();
            signal(pid, Signal::KILL);
            let (end, interrupted) = turn.join().map_err(|_| "the client panicked")??;
            if !interrupted {
                return Err("the turn was not interrupted".into());
            }
            Ok((end - start).as_secs_f64())
        })
    })?;
    let after = client.turn(GROUP, "empty")?["seq_last"].as_u64().unwrap_or_default();
    subscriber.read_to(after)?;
    let settled = median(settled);
    Ok(vec![Line {
        name: "agent killed: until its turn is settled, subscribers stay".into(),
        greenroom: ms(settled),
        target: "≤ 100 ms",
        holds: Some(settled <= 0.1),
        ..Line::default()
    }])
}

/// Returns the process id that the hanging agent reports; each is new, as the last one was killed.
fn hanging(client: &mut Connection) -> Result<u32> {
    let path = format!("/v1/groups/{GROUP}/frames?order=desc&limit=1");
    let found = poll(PATIENCE, || {
        let page = client.get(&path).ok()?;
        let text = &page["items"][0]["payload"]["params"]["update"]["content"]["text"];
        text.as_str()?.strip_prefix("pid ")?.parse().ok()
    });
    Ok(found.ok_or("the agent does not hang")?)
}
