//! `greenroom turn`, `compact`, `cancel` and `retry`: one task, followed to its outcome.

use std::{
    io::{self, Write},
    time::Duration,
};

use greenroom_actors::clock;
use serde_json::{Value, json};

use super::{
    error::{CliError, Exit},
    render::{cell, json_line},
    waiting::{Subject, Waiting},
};
use crate::{
    client::{Backoff, Client, ClientError, encode, is_terminal, read_json},
    text::{Visible, frame::answer_chunk, visible},
};

/// How long one request waits for the task to end.
const WAIT: Duration = Duration::from_secs(60);

/// Enqueues a turn and streams the agent's answer; with `json`, prints the ended task instead.
pub fn turn(
    client: &Client,
    group: &str,
    text: String,
    json: bool,
    out: &mut impl Write,
    waiting: &Waiting,
) -> Result<Exit, CliError> {
    let text = if text == "-" { io::read_to_string(io::stdin().lock())? } else { text };
    if text.trim().is_empty() {
        return Err(CliError::Usage("the prompt is empty".into()));
    }
    let path = format!("/v1/groups/{}", encode(group));
    // Frames after this one may belong to the turn; the group may not exist yet.
    let after = match until_answered(false, waiting, || client.get(&path)) {
        Ok(group) => group["last_seq"].as_u64().unwrap_or(0),
        Err(ClientError::Problem { status: 404, .. }) => 0,
        Err(error) => return Err(error.into()),
    };
    let task = enqueue(client, &format!("{path}/turns"), &json!({"prompt": text}), true, waiting)?;
    let id = task_id(&task)?;
    print_hint_on_interrupt(&id, waiting);
    let following = waiting.follow(client, Subject::Task(id.clone()));
    if json {
        let task = wait(client, &id, waiting)?;
        drop(following);
        json_line(out, &task)?;
        return Ok(exit_of(&task));
    }
    let mut answer = Answer { out, text: Visible::default(), last_char: None, waiting };
    let task = follow(client, &format!("{path}/events"), &id, after, &mut answer)?;
    drop(following);
    answer.end(&task)?;
    Ok(report(&task))
}

/// Enqueues a compaction and waits for it.
pub fn compact(
    client: &Client,
    group: &str,
    json: bool,
    out: &mut impl Write,
    waiting: &Waiting,
) -> Result<Exit, CliError> {
    let path = format!("/v1/groups/{}/compactions", encode(group));
    let task = enqueue(client, &path, &json!({}), false, waiting)?;
    let id = task_id(&task)?;
    print_hint_on_interrupt(&id, waiting);
    let following = waiting.follow(client, Subject::Task(id.clone()));
    let task = wait(client, &id, waiting)?;
    drop(following);
    if json {
        json_line(out, &task)?;
        return Ok(exit_of(&task));
    }
    if task["state"] == "completed" {
        writeln!(out, "compacted")?;
    }
    Ok(report(&task))
}

/// Requests that the server cancels a task. A running task may take a while to end.
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

/// Retries an ended task, as a new task.
pub fn retry(
    client: &Client,
    task: &str,
    json: bool,
    out: &mut impl Write,
    waiting: &Waiting,
) -> Result<Exit, CliError> {
    let path = format!("/v1/tasks/{}/retry", encode(task));
    let task = enqueue(client, &path, &json!({}), false, waiting)?;
    if json {
        json_line(out, &task)?;
    } else {
        writeln!(out, "{}", cell(&task["id"]))?;
    }
    Ok(Exit::Done)
}

/// Writes the agent's answer, chunk by chunk.
struct Answer<'a, W> {
    out: &'a mut W,
    text: Visible,
    /// The last character written.
    last_char: Option<char>,
    waiting: &'a Waiting,
}

impl<W: Write> Answer<'_, W> {
    /// Writes what a terminal may show of a chunk.
    fn add(&mut self, chunk: &str) -> io::Result<()> {
        let shown = self.text.push(chunk);
        self.write(&shown)
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let Some(last) = text.chars().next_back() else { return Ok(()) };
        self.last_char = Some(last);
        self.waiting.print(last == '\n', || {
            self.out.write_all(text.as_bytes())?;
            self.out.flush()
        })
    }

    /// Ends the last line. If no chunk was streamed, first writes the task's text.
    fn end(&mut self, task: &Value) -> io::Result<()> {
        let rest = self.text.finish();
        self.write(&rest)?;
        if self.last_char.is_none() {
            self.write(&visible(task["text"].as_str().unwrap_or_default()))?;
        }
        match self.last_char {
            None | Some('\n') => Ok(()),
            Some(_) => self.write("\n"),
        }
    }
}

/// Enqueues a task. The idempotency key makes a retry safe after a lost answer.
fn enqueue(
    client: &Client,
    path: &str,
    body: &Value,
    was_reached: bool,
    waiting: &Waiting,
) -> Result<Value, ClientError> {
    let key = format!("cli-{}", clock::fresh());
    until_answered(was_reached, waiting, || client.post_once(&key, path, body))
}

/// Retries a request until the server answers. Final at once: a full queue, and a failed connection
/// unless the server was reached before (`was_reached`).
fn until_answered<T>(
    mut was_reached: bool,
    waiting: &Waiting,
    request: impl Fn() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let mut backoff = Backoff::bounded();
    loop {
        match request() {
            Err(error @ ClientError::Unreachable { connected: false, .. }) if !was_reached => {
                return Err(error);
            }
            Err(error @ ClientError::Problem { status: 429, .. }) => return Err(error),
            Err(error) => pause_after(&mut backoff, error, waiting)?,
            Ok(answer) => return Ok(answer),
        }
        was_reached = true;
    }
}

/// Pauses after a failed attempt; reports the first of a series on stderr.
fn pause_after(
    backoff: &mut Backoff,
    error: ClientError,
    waiting: &Waiting,
) -> Result<(), ClientError> {
    waiting.end();
    if backoff.is_fresh() && error.is_transient() {
        waiting.say(&format!("greenroom: {}; trying again", visible(&error.to_string())));
    }
    backoff.pause_after(error)
}

/// Streams the answer of task `id` until the task ends, also across a restart of the server.
/// Returns the ended task.
fn follow<W: Write>(
    client: &Client,
    path: &str,
    id: &str,
    after: u64,
    answer: &mut Answer<'_, W>,
) -> Result<Value, CliError> {
    let waiting = answer.waiting;
    let mut last_id = after.to_string();
    let mut backoff = Backoff::bounded();
    // The ended task, until the frames up to its end have been streamed.
    let mut ended: Option<Value> = None;
    loop {
        let events = match client.events(path, Some(&last_id)) {
            Ok(events) => events,
            Err(error) => match (pause_after(&mut backoff, error, waiting), ended.take()) {
                (Err(_), Some(task)) => return Ok(truncated(task, waiting)),
                (paused, task) => {
                    paused?;
                    ended = task;
                    continue;
                }
            },
        };
        if ended.is_none() {
            backoff.answered();
        }
        waiting.begin();
        // The stream may break after any event; the next stream starts after that event.
        for event in events.map_while(Result::ok) {
            backoff.progressed();
            if let Some(id) = event.id {
                last_id = id;
            }
            // Every stored frame was streamed, and the task's end was not among them.
            if event.kind == "greenroom/synced"
                && let Some(task) = ended.take()
            {
                return Ok(truncated(task, waiting));
            }
            let frame = read_json(&event.data).unwrap_or_default();
            if frame["task"] != id {
                continue;
            }
            waiting.moved();
            answer.add(answer_chunk(&frame).unwrap_or_default())?;
            if event.kind == "greenroom/task_ended" {
                return wait(client, id, waiting);
            }
        }
        waiting.end();
        // The server closed the stream, perhaps before the task's end. The next stream then has the
        // missing frames.
        match client.get(&task_path(id)) {
            Ok(task) if is_terminal(&task) => {
                let last: u64 = last_id.parse().unwrap_or_default();
                if task["seq_last"].as_u64().is_none_or(|end| end <= last) {
                    return Ok(task);
                }
                if backoff.is_exhausted() {
                    return Ok(truncated(task, waiting));
                }
                ended = Some(task);
                backoff.pause();
            }
            Ok(_) => backoff.pause(),
            Err(error) => pause_after(&mut backoff, error, waiting)?,
        }
    }
}

/// Reports on stderr that the answer of an ended task was not streamed to its end.
fn truncated(task: Value, waiting: &Waiting) -> Value {
    let id = cell(&task["id"]);
    waiting.say(&format!(
        "greenroom: the answer of {id} is truncated; GET /v1/tasks/{id} returns all of it"
    ));
    task
}

/// Waits until task `id` is terminal, also across a restart of the server.
fn wait(client: &Client, id: &str, waiting: &Waiting) -> Result<Value, CliError> {
    let until_end = format!("{}?wait={}", task_path(id), WAIT.as_secs());
    let mut backoff = Backoff::bounded();
    loop {
        waiting.begin();
        // After a failure the next request does not wait: a proxy may abort such long requests.
        let answer = match backoff.is_fresh() {
            true => client.get_waiting(&until_end, WAIT),
            false => client.get(&task_path(id)),
        };
        match answer {
            Ok(task) if is_terminal(&task) => return Ok(task),
            Ok(_) => backoff.answered(),
            Err(error) => pause_after(&mut backoff, error, waiting)?,
        }
    }
}

fn task_path(id: &str) -> String {
    format!("/v1/tasks/{}", encode(id))
}

fn task_id(task: &Value) -> Result<String, CliError> {
    let id = task["id"].as_str().map(str::to_owned);
    id.ok_or_else(|| CliError::Usage("the server's answer is not a task; is it greenroom?".into()))
}

/// Returns the exit code for an ended task.
pub fn exit_of(task: &Value) -> Exit {
    match task["state"].as_str() {
        Some("completed" | "skipped") => Exit::Done,
        Some("cancelled") => Exit::Cancelled,
        Some("interrupted") => Exit::Interrupted,
        _ => Exit::Failed,
    }
}

/// Prints on stderr how a task ended, unless it ended as expected.
fn report(task: &Value) -> Exit {
    if let Some(line) = outcome(task) {
        eprintln!("greenroom: {line}");
    }
    exit_of(task)
}

/// Describes how a task ended; `None` if it ended as expected.
fn outcome(task: &Value) -> Option<String> {
    let state = task["state"].as_str().unwrap_or_default();
    let stop_reason = task["stop_reason"].as_str();
    let mut line = format!("{} {}", cell(&task["id"]), cell(&task["state"]));
    match (state, stop_reason) {
        ("completed", None | Some("end_turn")) => return None,
        ("cancelled", _) | (_, None) => {}
        (_, Some(reason)) => line.push_str(&format!(" ({})", visible(reason))),
    }
    if task["error"].is_object() {
        let error = &task["error"];
        line.push_str(&format!(": {}: {}", cell(&error["code"]), cell(&error["message"])));
    }
    Some(line)
}

/// On Ctrl-C: ends this process, not the task, and prints how to cancel the task.
fn print_hint_on_interrupt(task: &str, waiting: &Waiting) {
    let task = visible(task);
    let hint =
        format!("\ngreenroom: {task} keeps running; to cancel it: greenroom cancel {task}\n");
    waiting.end_on_interrupt(hint);
}
