//! `greenroom demo`: starts a real server as a child process, submits work, prints what happens.
//!
//! It uses the server over HTTP as any client does, and keeps the database for inspection. Knows
//! nothing of the command line.

mod screen;
mod server;

use std::{
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use self::{screen::Screen, server::Server};
use crate::{
    client::{Client, ClientError, DEFAULT_URL, is_terminal, read_json},
    text::frame::frame_line,
};

/// The two groups; they work at the same time.
const GROUPS: [&str; 2] = ["stage", "backstage"];

/// How long all the work may take; it normally takes about two seconds.
const WORK_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the event streams may take to show the last events.
const STREAM_PAUSE: Duration = Duration::from_millis(300);

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the directory's name is not UTF-8")]
    DirectoryName,
}

/// Runs the demo. Its data stays in `directory`, or in a new temporary one.
///
/// Returns whether every task completed and the server shut down cleanly.
///
/// # Errors
///
/// The directory or the server cannot be created, or a request failed.
pub fn run(directory: Option<PathBuf>) -> Result<bool, DemoError> {
    let directory = server::directory(directory)?;
    let screen = Screen::new();
    screen.title(&format!("greenroom's demo, in {}", directory.display()));
    let server = Server::start(&directory, screen)?;
    let client = Client::new(server.url(), None)?;
    let results = server.wait_ready(&client).and_then(|()| submit_work(&client, screen));
    screen.title("Shutting down");
    let stopped = server.stop();
    let tasks = results?;
    let is_clean = stopped?;

    screen.title("Results");
    for (label, task) in &tasks {
        let state = task["state"].as_str().unwrap_or("?");
        screen.plain(&format!("{label:<34} {state}"));
    }
    print_next_steps(screen, &directory);
    if !is_clean {
        screen.title("The server did not shut down cleanly");
    }
    Ok(is_clean && tasks.iter().all(|(_, task)| task["state"] == "completed"))
}

/// A request: group, kind of task as in the path, body.
type Work = (&'static str, &'static str, Value);

/// Submits the work and waits for it; returns a label and the ended task for each request.
fn submit_work(client: &Client, screen: Screen) -> Result<Vec<(String, Value)>, DemoError> {
    let turn = |group, text| -> Work { (group, "turns", json!({"prompt": text})) };
    let [stage, backstage] = GROUPS;
    let deadline = Instant::now() + WORK_TIMEOUT;

    screen.title("One turn in each of two groups, at the same time");
    let first = [turn(stage, "Good evening!"), turn(backstage, "Who is on tonight?")];
    let mut tasks = submit(client, screen, &first)?;
    for group in GROUPS {
        show_frames(client.clone(), screen, group);
    }
    await_all(client, &mut tasks, deadline)?;

    screen.title("A turn with a tool, a compaction, and another turn, all queued at once");
    let second = [
        turn(stage, "Use a tool, please."),
        (stage, "compactions", json!({})),
        turn(stage, "Do you still know me?"),
    ];
    let mut more = submit(client, screen, &second)?;
    await_all(client, &mut more, deadline)?;
    thread::sleep(STREAM_PAUSE);
    tasks.extend(more);
    Ok(tasks)
}

fn submit(
    client: &Client,
    screen: Screen,
    work: &[Work],
) -> Result<Vec<(String, Value)>, DemoError> {
    work.iter()
        .map(|(group, kind, body)| {
            let path = format!("/v1/groups/{group}/{kind}");
            screen.plain(&format!("POST {path} {body}"));
            let task = client.post(&path, body)?;
            let label = body["prompt"].as_str().unwrap_or("(compaction)");
            Ok((format!("{group}: {label}"), task))
        })
        .collect()
}

/// Waits until every task has ended or the deadline has passed; updates each task in place.
fn await_all(
    client: &Client,
    tasks: &mut [(String, Value)],
    deadline: Instant,
) -> Result<(), DemoError> {
    for (_, task) in tasks {
        let path = format!("/v1/tasks/{}", task["id"].as_str().unwrap_or_default());
        while !is_terminal(task) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let wait = left.as_secs().max(1);
            *task = client.get_waiting(&format!("{path}?wait={wait}"), left)?;
        }
    }
    Ok(())
}

/// Prints the frames of `group`, in a thread, until the server closes the stream.
fn show_frames(client: Client, screen: Screen, group: &'static str) {
    thread::spawn(move || {
        let Ok(events) = client.events(&format!("/v1/groups/{group}/events"), None) else {
            return screen.plain(&format!("cannot read the frames of {group}"));
        };
        for event in events.map_while(Result::ok) {
            if event.kind != "greenroom/synced" {
                let frame = read_json(&event.data).unwrap_or_default();
                screen.frame(GROUPS[0] == group, &frame_line(&frame));
            }
        }
    });
}

/// Prints the commands that reuse the demo's data.
fn print_next_steps(screen: Screen, directory: &Path) {
    let [stage, backstage] = GROUPS;
    screen.title("Next steps");
    screen.plain(&format!("the database: {}", directory.join(server::DATABASE).display()));
    screen.plain("serve it again, in one terminal:");
    let file = directory.join(server::CONFIG);
    screen.plain(&format!("  greenroom serve --config {}", file.display()));
    screen.plain("and use it from another:");
    screen.plain(&format!("  curl {DEFAULT_URL}/v1/groups"));
    screen.plain(&format!("  curl '{DEFAULT_URL}/v1/groups/{stage}/frames?segment=current'"));
    screen.plain(&format!(
        "  curl -H 'content-type: application/json' -d '{{\"prompt\":\"Hello\"}}' \
         '{DEFAULT_URL}/v1/groups/{backstage}/turns?wait=10'"
    ));
    screen.plain(&format!("  greenroom turn {stage} 'And now something slow'"));
    screen.plain(&format!("  greenroom watch {stage}"));
}
