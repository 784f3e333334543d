//! A database with an unreadable row (I15): its group is `broken` and the others continue; once the
//! row is readable again, the group continues too.

use greenroom_test_support::poll;
use rusqlite::Connection;
use serde_json::json;

use crate::{
    Result,
    history::text,
    server::{PATIENCE, Server},
    stage::{Ask, Client, Stage},
};

/// A group that no caller uses.
const PATH: &str = "/v1/groups/damaged";

/// Kills the server, damages a row, and starts a server that must still do its work. Returns the
/// proof that the group was broken.
pub fn strike(stage: &Stage, server: &mut Server) -> Result<Option<String>> {
    let client = stage.client();
    let made = Ask { method: "PUT", ..Ask::post(PATH, json!({ "agent": "plain" })) };
    until(|| client.send(&made).filter(|made| (200..300).contains(&made.status)))?;
    restart(stage, server, |database| {
        let sql = "UPDATE groups SET settings = '{' || settings WHERE id = 'damaged'";
        Ok(database.execute(sql, [])?)
    })?;
    let before = witness(stage, &client)?;
    let shown = until(|| client.json(PATH).filter(|shown| shown["status"] == "broken"))?;
    // The witness has a turn at almost any time.
    until(|| witness(stage, &client).ok().filter(|now| *now > before))?;
    restart(stage, server, |database| {
        let sql = "UPDATE groups SET settings = substr(settings, 2) WHERE id = 'damaged'";
        Ok(database.execute(sql, [])?)
    })?;
    until(|| client.json(PATH).filter(|shown| shown["status"] == "idle"))?;
    Ok(Some(format!("a group was broken: {}", text(&shown, "broken"))))
}

fn restart(
    stage: &Stage,
    server: &mut Server,
    change: impl Fn(&Connection) -> Result<usize>,
) -> Result<()> {
    server.process.kill();
    stage.set_address(None);
    let database = Connection::open(stage.home.file("data/greenroom.db"))?;
    if change(&database)? != 1 {
        return Err("there is no such row".into());
    }
    drop(database);
    *server = Server::start(&stage.home, stage.life(), None)?;
    let address = server.wait_ready()?.ok_or_else(|| server.logged())?;
    stage.set_address(Some(address));
    Ok(())
}

/// Returns the last frame of the witness.
fn witness(stage: &Stage, client: &Client<'_>) -> Result<u64> {
    let group = stage.plan.groups.iter().find(|group| group.witness).ok_or("no witness")?;
    let shown = client.json(&format!("/v1/groups/{}", group.name)).unwrap_or_default();
    Ok(shown["last_seq"].as_u64().unwrap_or(0))
}

fn until<T>(look: impl FnMut() -> Option<T>) -> Result<T> {
    Ok(poll(PATIENCE, look).ok_or("a group with an unreadable row: timed out")?)
}
