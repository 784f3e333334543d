//! `greenroom verify`: replays the log and compares it with every row (I13); `--repair` rebuilds a
//! group's rows from the log.

use std::io::Write;

use greenroom_actors::{
    projections::{
        repair::{self, Repair},
        verify::{Verdict, verify},
    },
    storage::{
        ReadStore as _, StoreError, chain,
        sqlite::{Database, Opener, SqliteReadStore},
    },
};
use serde_json::json;

use super::{
    error::{CliError, Exit},
    render,
};
use crate::config::Config;

/// Verifies the configured database, or one group of it; also while a server uses it.
///
/// # Errors
///
/// The database cannot be read, or the output cannot be written. A difference is not an error: it
/// returns [`Exit::Failed`].
pub fn run(
    config: &Config,
    group: Option<&str>,
    as_json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let failed = |err: StoreError| CliError::Storage(chain(&err));
    let read_store = Opener::at(&config.storage.path).inspect().map_err(failed)?;
    let mut damage = read_store.damage().map_err(failed)?;
    damage.extend(
        read_store.at_one_moment(SqliteReadStore::strays).map_err(failed)?.map_err(failed)?,
    );
    let index = read_store.group_index().map_err(failed)?;
    let is_chosen = |id: &str| group.is_none_or(|group| group == id);
    let chosen: Vec<_> =
        index.groups.into_iter().filter(|(_, id, _)| is_chosen(id.as_str())).collect();
    if let (Some(group), true) = (group, chosen.is_empty()) {
        return Err(CliError::Usage(format!("there is no group {group}")));
    }
    let mut differences = damage.len();
    for line in &damage {
        print(out, as_json, &json!({ "group": null, "difference": line }), line)?;
    }
    let (groups, mut frames) = (chosen.len(), 0);
    for (no, id, _) in chosen {
        let verdict =
            read_store.at_one_moment(|read_store| verify(read_store, no)).map_err(failed)?;
        // A group may have been deleted in the meantime.
        let Some(verdict) = verdict.map_err(failed)? else { continue };
        let Verdict { frames: replayed, differences: found, .. } = verdict;
        frames += replayed;
        differences += found.len();
        for difference in found {
            let value = json!({ "group": id, "difference": difference });
            print(out, as_json, &value, &format!("{id}: {difference}"))?;
        }
    }
    let value = json!({ "groups": groups, "frames": frames, "differences": differences });
    let text = format!("{groups} groups, {frames} frames, {differences} differences");
    print(out, as_json, &value, &text)?;
    Ok(if differences == 0 { Exit::Done } else { Exit::Failed })
}

/// Rebuilds a group's rows from its log, in the configured database of a stopped server. Prints the
/// differences found, the values that could not be recovered, and the differences left.
///
/// # Errors
///
/// A server uses the database, the database cannot be read or written, or the output cannot be
/// written. If the log is damaged, nothing is changed and [`Exit::Failed`] is returned.
pub fn repair(
    config: &Config,
    group: &str,
    as_json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let failed = |err: StoreError| CliError::Storage(chain(&err));
    let path = &config.storage.path;
    if !path.exists() {
        return Err(CliError::Usage(format!("there is no database {}", path.display())));
    }
    let database = Database::open(path).map_err(failed)?;
    let mut store = database.store().map_err(failed)?;
    let read_store = database.opener().read_store().map_err(failed)?;
    let index = read_store.group_index().map_err(failed)?;
    let Some((no, id, _)) = index.groups.into_iter().find(|(_, id, _)| id.as_str() == group) else {
        return Err(CliError::Usage(format!("there is no group {group}")));
    };
    let mut report = |key: &str, line: &str| {
        print(out, as_json, &json!({ "group": id, key: line }), &format!("{id}: {line}"))
    };
    let before = verify(&read_store, no).map_err(failed)?;
    read_store.left_out();
    let salvage = store.salvage(no).map_err(failed)?;
    let repaired = repair::repair(&read_store, no, id.clone(), salvage).map_err(failed)?;
    // Damage is printed once, under its own key.
    let is_damage = |line: &String| matches!(&repaired, Repair::Damaged(why) if why.contains(line));
    for line in before.iter().flat_map(|verdict| &verdict.differences) {
        if !is_damage(line) {
            report("difference", line)?;
        }
    }
    let (rows, lost) = match repaired {
        Repair::Rows(rows, lost) => (rows, lost),
        Repair::Damaged(why) => {
            for line in why {
                report("damage", &line)?;
            }
            let advice = "the log itself is damaged; nothing was changed: restore a backup, or \
                          purge the group";
            report("failed", advice)?;
            return Ok(Exit::Failed);
        }
    };
    let counts = format!(
        "made from its log: the group's own row, its digests, {} tasks, {} runs, {} segments, \
         {} compactions, {} permissions",
        rows.tasks.len(),
        rows.runs.len(),
        rows.segments.len(),
        rows.compactions.len(),
        rows.permissions.len(),
    );
    store.rebuild(*rows).map_err(failed)?;
    report("repaired", &counts)?;
    for line in &lost {
        report("lost", line)?;
    }
    let after = verify(&read_store, no).map_err(failed)?;
    let left = after.map(|verdict| verdict.differences).unwrap_or_default();
    for line in &left {
        report("left", &format!("not repaired: {line}"))?;
    }
    if left.is_empty() {
        return Ok(Exit::Done);
    }
    let advice = "some rows cannot be rebuilt from its log: restore a backup, or purge the group";
    report("failed", advice)?;
    Ok(Exit::Failed)
}

/// Prints `value` as JSON, or `text`.
fn print(
    out: &mut impl Write,
    as_json: bool,
    value: &serde_json::Value,
    text: &str,
) -> Result<(), CliError> {
    if as_json {
        render::json_line(out, value)?;
    } else {
        writeln!(out, "{}", crate::text::visible(text))?;
    }
    Ok(())
}
