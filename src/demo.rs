//! `greenroom demo`: a real server as a child process, some work for it, and all of it shown.
//!
//! Uses the server as anybody would, over HTTP, and leaves its database for a look.

mod screen;
mod server;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::screen::Screen;
use self::server::Server;
use crate::cli::render::frame_line;
use crate::cli::{CliError, Exit, is_terminal};
use crate::client::{Client, DEFAULT_URL};

/// The two groups, which work at the same time.
const GROUPS: [&str; 2] = ["stage", "backstage"];

/// How long all the work may take; it takes two seconds or so.
const WORK_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a stream of events may take to show the last of them.
const STREAM_PAUSE: Duration = Duration::from_millis(300);

/// Plays the demo. Its data stays in `directory`, or in a fresh temporary one.
pub fn run(directory: Option<PathBuf>) -> Result<Exit, CliError> {
    let directory = server::directory(directory)?;
    let screen = Screen::new();
    screen.title(&format!("greenroom's demo, in {}", directory.display()));
    let server = Server::start(&directory, screen)?;
    let client = Client::new(server.url(), None)?;
    let played = server.wait_ready(&client).and_then(|()| play(&client, screen));
    screen.title("Shutting down");
    let stopped = server.stop();
    let tasks = played?;
    let clean = stopped?;

    screen.title("What became of it");
    for (what, task) in &tasks {
        let state = task["state"].as_str().unwrap_or("?");
        screen.plain(&format!("{what:<34} {state}"));
    }
    say_what_next(screen, &directory);
    if !clean {
        screen.title("The server did not shut down cleanly");
    }
    let good = clean && tasks.iter().all(|(_, task)| task["state"] == "completed");
    Ok(if good { Exit::Done } else { Exit::Failed })
}

/// A piece of work: group, what kind in the path, body.
type Work = (&'static str, &'static str, Value);

/// Sends the work and waits for it; gives each piece with its task as it ended.
fn play(client: &Client, screen: Screen) -> Result<Vec<(String, Value)>, CliError> {
    let turn = |group, text| -> Work { (group, "turns", json!({"prompt": text})) };
    let [stage, backstage] = GROUPS;
    let deadline = Instant::now() + WORK_TIMEOUT;

    screen.title("A turn for each of two groups, at the same time");
    let first = [turn(stage, "Good evening!"), turn(backstage, "Who is on tonight?")];
    let mut tasks = submit(client, screen, &first)?;
    for group in GROUPS {
        show_frames(client.clone(), screen, group);
    }
    await_all(client, &mut tasks, deadline)?;

    screen.title("Then a turn with a tool, a compaction, and a turn after it, all queued at once");
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
) -> Result<Vec<(String, Value)>, CliError> {
    work.iter()
        .map(|(group, kind, body)| {
            let path = format!("/v1/groups/{group}/{kind}");
            screen.plain(&format!("POST {path} {body}"));
            let task = client.post(&path, body)?;
            let what = body["prompt"].as_str().unwrap_or("(compaction)");
            Ok((format!("{group}: {what}"), task))
        })
        .collect()
}

/// Waits for every task to end, or for the deadline; puts in how it stands then.
fn await_all(
    client: &Client,
    tasks: &mut [(String, Value)],
    deadline: Instant,
) -> Result<(), CliError> {
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

/// Shows the frames of `group` until the server closes the stream.
fn show_frames(client: Client, screen: Screen, group: &'static str) {
    thread::spawn(move || {
        let Ok(events) = client.events(&format!("/v1/groups/{group}/events"), None) else {
            return screen.plain(&format!("the frames of {group} cannot be shown"));
        };
        for event in events.map_while(Result::ok) {
            if event.kind != "greenroom/synced" {
                let frame: Value = serde_json::from_str(&event.data).unwrap_or_default();
                screen.frame(GROUPS[0] == group, &frame_line(&frame));
            }
        }
    });
}

fn say_what_next(screen: Screen, directory: &Path) {
    let [stage, backstage] = GROUPS;
    screen.title("Now you");
    screen.plain(&format!("the database: {}", directory.join(server::DATABASE).display()));
    screen.plain("go on with it, in one terminal:");
    let file = directory.join(server::CONFIG);
    screen.plain(&format!("  greenroom serve --config {}", file.display()));
    screen.plain("and in another:");
    screen.plain(&format!("  curl {DEFAULT_URL}/v1/groups"));
    screen.plain(&format!("  curl '{DEFAULT_URL}/v1/groups/{stage}/frames?segment=current'"));
    screen.plain(&format!(
        "  curl -H 'content-type: application/json' -d '{{\"prompt\":\"Hello\"}}' \
         '{DEFAULT_URL}/v1/groups/{backstage}/turns?wait=10'"
    ));
    screen.plain(&format!("  greenroom turn {stage} 'And now something slow'"));
    screen.plain(&format!("  greenroom watch {stage}"));
}
