//! `greenroom watch`: prints events as they happen, until Ctrl-C.

use std::{io::Write, time::SystemTime};

use super::{
    error::{CliError, Exit},
    render::json_line,
    waiting::{Subject, Waiting},
};
use crate::{
    client::{Backoff, Client, Event, encode, read_json},
    text::frame::{frame_line, status_line},
};

/// Prints the frames of `group` from now on, or the status changes of all groups. Returns only with
/// an error: once connected, it reconnects without end.
pub fn watch(
    client: &Client,
    group: Option<&str>,
    json: bool,
    out: &mut impl Write,
    waiting: &Waiting,
) -> Result<Exit, CliError> {
    waiting.end_on_interrupt(String::new());
    let mut watch = Watch { last_id: None, live_from: None, out, json };
    let path = match group {
        Some(group) => {
            let path = format!("/v1/groups/{}", encode(group));
            let last = client.get(&path)?["last_seq"].as_u64().unwrap_or(0);
            watch.last_id = Some(last.to_string());
            format!("{path}/events")
        }
        None => {
            // Only the stream itself marks the end of its history.
            let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
            watch.live_from = Some(now);
            "/v1/events".to_owned()
        }
    };
    let mut backoff = Backoff::endless();
    let mut events = client.events(&path, watch.last_id.as_deref())?;
    // The status changes of all groups say what blocks each.
    let _following = group.map(|group| waiting.follow(client, Subject::Group(group.to_owned())));
    loop {
        waiting.begin();
        for event in events.map_while(Result::ok) {
            backoff.progressed();
            waiting.moved();
            waiting.print(true, || watch.print(event))?;
        }
        waiting.end();
        waiting.say("greenroom: the stream ended; reconnecting");
        backoff.pause();
        events = loop {
            match client.events(&path, watch.last_id.as_deref()) {
                Ok(events) => break events,
                Err(error) => backoff.pause_after(error)?,
            }
        };
    }
}

struct Watch<'a, W> {
    last_id: Option<String>,
    /// Events older than this time are history, until the server marks the end of the history.
    live_from: Option<String>,
    out: &'a mut W,
    json: bool,
}

impl<W: Write> Watch<'_, W> {
    fn print(&mut self, event: Event) -> Result<(), CliError> {
        if let Some(id) = event.id {
            self.last_id = Some(id);
        }
        if event.kind == "greenroom/synced" {
            self.live_from = None;
            return Ok(());
        }
        let frame = read_json(&event.data).unwrap_or_default();
        let is_old = |from: &String| frame["at"].as_str().is_some_and(|at| at < from.as_str());
        if self.live_from.as_ref().is_some_and(is_old) {
            return Ok(());
        }
        match (self.json, event.kind.as_str()) {
            (true, _) => json_line(self.out, &frame)?,
            (false, "greenroom/gap") => {
                writeln!(self.out, "(some older events are missing)")?;
            }
            (false, "greenroom/status") => writeln!(self.out, "{}", status_line(&frame))?,
            (false, _) => writeln!(self.out, "{}", frame_line(&frame))?,
        }
        Ok(self.out.flush()?)
    }
}
