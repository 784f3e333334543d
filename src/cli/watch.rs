//! `greenroom watch`: what happens, as it happens, until Ctrl-C.

use std::io::Write;
use std::time::SystemTime;

use serde_json::Value;

use super::render::{frame_line, json_line, status_line};
use super::{CliError, Exit};
use crate::client::{Client, Event, Patience, encode};

/// Prints the frames of `group` from now on, or status changes of all groups. Comes back only with
/// an error: once it was connected, it connects again for as long as it takes.
pub fn watch(
    client: &Client,
    group: Option<&str>,
    json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let mut watch = Watch { last_id: None, live_from: None, out, json };
    let path = match group {
        Some(group) => {
            let path = format!("/v1/groups/{}", encode(group));
            let last = client.get(&path)?["last_seq"].as_u64().unwrap_or(0);
            watch.last_id = Some(last.to_string());
            format!("{path}/events")
        }
        None => {
            // Where the end of this stream is only the stream itself says.
            let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
            watch.live_from = Some(now);
            "/v1/events".to_owned()
        }
    };
    let mut patience = Patience::endless();
    let mut events = client.events(&path, watch.last_id.as_deref())?;
    loop {
        for event in events.map_while(Result::ok) {
            patience.progressed();
            watch.take(event)?;
        }
        eprintln!("greenroom: the stream ended; connecting again");
        patience.pause();
        events = loop {
            match client.events(&path, watch.last_id.as_deref()) {
                Ok(events) => break events,
                Err(error) => patience.pause_after(error)?,
            }
        };
    }
}

struct Watch<'a, W> {
    last_id: Option<String>,
    /// Events from before this time are history, until the server says where that ends.
    live_from: Option<String>,
    out: &'a mut W,
    json: bool,
}

impl<W: Write> Watch<'_, W> {
    fn take(&mut self, event: Event) -> Result<(), CliError> {
        if let Some(id) = event.id {
            self.last_id = Some(id);
        }
        if event.kind == "greenroom/synced" {
            self.live_from = None;
            return Ok(());
        }
        let frame: Value = serde_json::from_str(&event.data).unwrap_or_default();
        let old = |from: &String| frame["at"].as_str().is_some_and(|at| at < from.as_str());
        if self.live_from.as_ref().is_some_and(old) {
            return Ok(());
        }
        match (self.json, event.kind.as_str()) {
            (true, _) => json_line(self.out, &frame)?,
            (false, "greenroom/gap") => {
                writeln!(self.out, "(older frames are no longer kept)")?;
            }
            (false, "greenroom/status") => writeln!(self.out, "{}", status_line(&frame))?,
            (false, _) => writeln!(self.out, "{}", frame_line(&frame))?,
        }
        Ok(self.out.flush()?)
    }
}
