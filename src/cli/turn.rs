//! `greenroom turn`, `compact` and `cancel`: one task, followed to its outcome.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use greenroom_actors::clock;
use serde_json::{Value, json};

use super::render::{answer_chunk, cell, json_line};
use super::{CliError, Exit, INTERRUPT_EXIT};
use crate::client::{Client, ClientError, Patience, encode};
use crate::text::clean;

/// How long one request waits for a task to end.
const WAIT: Duration = Duration::from_secs(60);

/// Enqueues a turn and prints the answer as it comes; with `json`, the task when it has ended.
pub fn turn(
    client: &Client,
    group: &str,
    text: String,
    json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let text = if text == "-" { io::read_to_string(io::stdin().lock())? } else { text };
    if text.trim().is_empty() {
        return Err(CliError::Usage("the prompt is empty".into()));
    }
    let path = format!("/v1/groups/{}", encode(group));
    // Frames from here on may be of the turn; the group may not exist yet.
    let after = match until_answered(false, || client.get(&path)) {
        Ok(group) => group["last_seq"].as_u64().unwrap_or(0),
        Err(ClientError::Problem { status: 404, .. }) => 0,
        Err(error) => return Err(error.into()),
    };
    let task = enqueue(client, &format!("{path}/turns"), &json!({"prompt": text}), true)?;
    let id = task_id(&task)?;
    say_on_interrupt(&id);
    if json {
        let task = wait(client, &id)?;
        json_line(out, &task)?;
        return Ok(exit_of(&task));
    }
    let mut answer = Answer { out, last: None };
    let task = follow(client, &format!("{path}/events"), &id, after, &mut answer)?;
    answer.end(&task)?;
    Ok(report(&task))
}

/// Enqueues a compaction and waits for it.
pub fn compact(
    client: &Client,
    group: &str,
    json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let path = format!("/v1/groups/{}/compactions", encode(group));
    let task = enqueue(client, &path, &json!({}), false)?;
    let id = task_id(&task)?;
    say_on_interrupt(&id);
    let task = wait(client, &id)?;
    if json {
        json_line(out, &task)?;
        return Ok(exit_of(&task));
    }
    if task["state"] == "completed" {
        writeln!(out, "compacted")?;
    }
    Ok(report(&task))
}

/// Asks for a task to be cancelled. It is when its state says so, which may take a while.
pub fn cancel(
    client: &Client,
    task: &str,
    json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let task = client.post(&format!("/v1/tasks/{}/cancel", encode(task)), &json!({}))?;
    match (json, task["state"].as_str()) {
        (true, _) => json_line(out, &task)?,
        (false, Some("cancelled")) => writeln!(out, "{} is cancelled", cell(&task["id"]))?,
        (false, _) => writeln!(out, "{} will be cancelled", cell(&task["id"]))?,
    }
    Ok(Exit::Done)
}

/// Has an ended task made again, as a new one.
pub fn retry(
    client: &Client,
    task: &str,
    json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let path = format!("/v1/tasks/{}/retry", encode(task));
    let task = enqueue(client, &path, &json!({}), false)?;
    if json {
        json_line(out, &task)?;
    } else {
        writeln!(out, "{}", cell(&task["id"]))?;
    }
    Ok(Exit::Done)
}

/// The agent's words on their way to the reader.
struct Answer<'a, W> {
    out: &'a mut W,
    /// The last character written.
    last: Option<char>,
}

impl<W: Write> Answer<'_, W> {
    fn write(&mut self, text: &str) -> io::Result<()> {
        self.last = text.chars().next_back().or(self.last);
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Ends the last line; first writes what was not streamed at all.
    fn end(&mut self, task: &Value) -> io::Result<()> {
        if self.last.is_none() {
            self.write(&clean(task["text"].as_str().unwrap_or_default()))?;
        }
        match self.last {
            None | Some('\n') => Ok(()),
            Some(_) => self.write("\n"),
        }
    }
}

/// Enqueues a task. The idempotency key makes a retry safe whose first answer was lost.
fn enqueue(
    client: &Client,
    path: &str,
    body: &Value,
    was_there: bool,
) -> Result<Value, ClientError> {
    let key = format!("cli-{}", clock::fresh());
    until_answered(was_there, || client.post_once(&key, path, body))
}

/// Retries a request until it is answered. The error is final at once if no connection could be
/// made, unless the server was reached before (`was_there`), and if the queue is full.
fn until_answered<T>(
    mut was_there: bool,
    request: impl Fn() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let mut patience = Patience::bounded();
    loop {
        match request() {
            Err(error @ ClientError::Unreachable { connected: false, .. }) if !was_there => {
                return Err(error);
            }
            Err(error @ ClientError::Problem { status: 429, .. }) => return Err(error),
            Err(error) => pause_after(&mut patience, error)?,
            Ok(answer) => return Ok(answer),
        }
        was_there = true;
    }
}

/// Pauses after a failed attempt, and reports the first one in a row on stderr.
fn pause_after(patience: &mut Patience, error: ClientError) -> Result<(), ClientError> {
    if patience.is_fresh() && error.is_passing() {
        eprintln!("greenroom: {}; trying again", clean(&error.to_string()));
    }
    patience.pause_after(error)
}

/// Streams the answer of task `id` until the task has ended, over a restart of the server if need
/// be. Gives the task as it ended.
fn follow<W: Write>(
    client: &Client,
    path: &str,
    id: &str,
    after: u64,
    answer: &mut Answer<'_, W>,
) -> Result<Value, CliError> {
    let mut last_id = after.to_string();
    let mut patience = Patience::bounded();
    // The task as it ended, while frames up to its end were not streamed yet.
    let mut ended: Option<Value> = None;
    loop {
        let events = match client.events(path, Some(&last_id)) {
            Ok(events) => events,
            Err(error) => match (pause_after(&mut patience, error), ended.take()) {
                (Err(_), Some(task)) => return Ok(cut_short(task)),
                (paused, task) => {
                    paused?;
                    ended = task;
                    continue;
                }
            },
        };
        if ended.is_none() {
            patience.answered();
        }
        // The stream may break at any event; the next one starts after it.
        for event in events.map_while(Result::ok) {
            patience.progressed();
            if let Some(id) = event.id {
                last_id = id;
            }
            let frame: Value = serde_json::from_str(&event.data).unwrap_or_default();
            if frame["task"] != id {
                continue;
            }
            if let Some(text) = answer_chunk(&frame) {
                answer.write(&text)?;
            }
            if event.kind == "greenroom/task_ended" {
                return wait(client, id);
            }
            // All that is kept was streamed, and the end was not among it.
            if event.kind == "greenroom/synced"
                && let Some(task) = ended.take()
            {
                return Ok(cut_short(task));
            }
        }
        // The server closed the stream, perhaps before it sent the task's end. The next stream then
        // has what is missing up to that.
        match client.get(&task_path(id)) {
            Ok(task) if is_terminal(&task) => {
                let last: u64 = last_id.parse().unwrap_or_default();
                if task["seq_last"].as_u64().is_none_or(|end| end <= last) {
                    return Ok(task);
                }
                if patience.is_used_up() {
                    return Ok(cut_short(task));
                }
                ended = Some(task);
                patience.pause();
            }
            Ok(_) => patience.pause(),
            Err(error) => pause_after(&mut patience, error)?,
        }
    }
}

/// Says that the answer was not streamed to its end, of a task that has ended.
fn cut_short(task: Value) -> Value {
    let id = cell(&task["id"]);
    eprintln!("greenroom: the answer of {id} broke off; GET /v1/tasks/{id} has all of it");
    task
}

/// Waits until task `id` is terminal, over a restart of the server if need be.
fn wait(client: &Client, id: &str) -> Result<Value, CliError> {
    let waiting = format!("{}?wait={}", task_path(id), WAIT.as_secs());
    let mut patience = Patience::bounded();
    loop {
        // After a failure the next request does not wait: a proxy may cut off requests that take
        // so long.
        let asked = match patience.is_fresh() {
            true => client.get_waiting(&waiting, WAIT),
            false => client.get(&task_path(id)),
        };
        match asked {
            Ok(task) if is_terminal(&task) => return Ok(task),
            Ok(_) => patience.answered(),
            Err(error) => pause_after(&mut patience, error)?,
        }
    }
}

fn task_path(id: &str) -> String {
    format!("/v1/tasks/{}", encode(id))
}

fn task_id(task: &Value) -> Result<String, CliError> {
    let id = task["id"].as_str().map(str::to_owned);
    id.ok_or_else(|| CliError::Usage("the server's answer is no task; is it greenroom?".into()))
}

pub fn is_terminal(task: &Value) -> bool {
    let states = ["completed", "failed", "cancelled", "interrupted", "skipped"];
    task["state"].as_str().is_some_and(|state| states.contains(&state))
}

pub fn exit_of(task: &Value) -> Exit {
    match task["state"].as_str() {
        Some("completed" | "skipped") => Exit::Done,
        Some("cancelled") => Exit::Cancelled,
        Some("interrupted") => Exit::Interrupted,
        _ => Exit::Failed,
    }
}

/// Says on stderr how a task ended, unless that is as expected.
fn report(task: &Value) -> Exit {
    if let Some(line) = outcome(task) {
        eprintln!("greenroom: {line}");
    }
    exit_of(task)
}

/// What is to be said of the task's end; None when it ended as expected.
fn outcome(task: &Value) -> Option<String> {
    let state = task["state"].as_str().unwrap_or_default();
    let stop_reason = task["stop_reason"].as_str();
    let mut line = format!("{} {}", cell(&task["id"]), cell(&task["state"]));
    match (state, stop_reason) {
        ("completed", None | Some("end_turn")) => return None,
        ("cancelled", _) | (_, None) => {}
        (_, Some(reason)) => line.push_str(&format!(" ({})", clean(reason))),
    }
    if task["error"].is_object() {
        let error = &task["error"];
        line.push_str(&format!(": {}: {}", cell(&error["code"]), cell(&error["message"])));
    }
    Some(line)
}

/// Ctrl-C ends this process, not the task: says so, and how to end that, too.
fn say_on_interrupt(task: &str) {
    let task = clean(task);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        if runtime.is_ok_and(|runtime| runtime.block_on(tokio::signal::ctrl_c()).is_ok()) {
            eprintln!("\ngreenroom: {task} goes on; to cancel it: greenroom cancel {task}");
            std::process::exit(INTERRUPT_EXIT);
        }
    });
}
