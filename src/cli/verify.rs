//! `greenroom verify`: the log folded again, and compared with every row (I13); `--repair` makes a
//! group's rows from it.

use std::io::Write;

use greenroom_actors::{
    repair::{self, Repair},
    storage::{
        Archive as _, StoreError, chain,
        sqlite::{Database, Opener, SqliteArchive},
    },
    verify::{Verdict, verify},
};
use serde_json::json;

use super::{CliError, Exit, render};
use crate::config::Config;

/// Verifies the configured database, or one group of it; also while a server works on it.
///
/// # Errors
///
/// The database cannot be read, or the output not written. A difference is no error but
/// [`Exit::Failed`].
pub fn run(
    config: &Config,
    group: Option<&str>,
    as_json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let failed = |err: StoreError| CliError::Storage(chain(&err));
    let archive = Opener::at(&config.storage.path).inspect().map_err(failed)?;
    let mut damage = archive.damage().map_err(failed)?;
    damage.extend(archive.at_one_moment(SqliteArchive::strays).map_err(failed)?.map_err(failed)?);
    let index = archive.group_index().map_err(failed)?;
    let wanted = |id: &str| group.is_none_or(|group| group == id);
    let chosen: Vec<_> =
        index.groups.into_iter().filter(|(_, id, _)| wanted(id.as_str())).collect();
    if let (Some(group), true) = (group, chosen.is_empty()) {
        return Err(CliError::Usage(format!("there is no group {group}")));
    }
    let mut differences = damage.len();
    for line in &damage {
        tell(out, as_json, &json!({ "group": null, "difference": line }), line)?;
    }
    let (groups, mut frames) = (chosen.len(), 0);
    for (no, id, _) in chosen {
        let verdict = archive.at_one_moment(|archive| verify(archive, no)).map_err(failed)?;
        // A group may have been deleted in the meantime.
        let Some(verdict) = verdict.map_err(failed)? else { continue };
        let Verdict { frames: folded, differences: found, .. } = verdict;
        frames += folded;
        differences += found.len();
        for difference in found {
            let value = json!({ "group": id, "difference": difference });
            tell(out, as_json, &value, &format!("{id}: {difference}"))?;
        }
    }
    let value = json!({ "groups": groups, "frames": frames, "differences": differences });
    let text = format!("{groups} groups, {frames} frames, {differences} differences");
    tell(out, as_json, &value, &text)?;
    Ok(if differences == 0 { Exit::Done } else { Exit::Failed })
}

/// Makes a group's rows from its log, in the configured database of a server that is stopped, and
/// says what was wrong, what could not be had again, and what is still wrong.
///
/// # Errors
///
/// A server uses the database, it cannot be read or written, or the output not written. If the log
/// itself is damaged nothing is changed, and that is no error but [`Exit::Failed`].
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
    let archive = database.opener().archive().map_err(failed)?;
    let index = archive.group_index().map_err(failed)?;
    let Some((no, id, _)) = index.groups.into_iter().find(|(_, id, _)| id.as_str() == group) else {
        return Err(CliError::Usage(format!("there is no group {group}")));
    };
    let mut say = |what: &str, line: &str| {
        tell(out, as_json, &json!({ "group": id, what: line }), &format!("{id}: {line}"))
    };
    let before = verify(&archive, no).map_err(failed)?;
    archive.left_out();
    let salvage = store.salvage(no).map_err(failed)?;
    let made = repair::repair(&archive, no, id.clone(), salvage).map_err(failed)?;
    // Damage is printed once, as damage.
    let is_damage = |line: &String| matches!(&made, Repair::Damaged(why) if why.contains(line));
    for line in before.iter().flat_map(|verdict| &verdict.differences) {
        if !is_damage(line) {
            say("difference", line)?;
        }
    }
    let (rows, lost) = match made {
        Repair::Rows(rows, lost) => (rows, lost),
        Repair::Damaged(why) => {
            for line in why {
                say("damage", &line)?;
            }
            let advice = "the log itself is damaged, so nothing was changed: restore a backup, or \
                          purge the group";
            say("failed", advice)?;
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
    say("repaired", &counts)?;
    for line in &lost {
        say("lost", line)?;
    }
    let after = verify(&archive, no).map_err(failed)?;
    let left = after.map(|verdict| verdict.differences).unwrap_or_default();
    for line in &left {
        say("left", &format!("not repaired: {line}"))?;
    }
    if left.is_empty() {
        return Ok(Exit::Done);
    }
    say("failed", "some rows cannot be made from its log: restore a backup, or purge the group")?;
    Ok(Exit::Failed)
}

fn tell(
    out: &mut impl Write,
    as_json: bool,
    value: &serde_json::Value,
    text: &str,
) -> Result<(), CliError> {
    if as_json {
        render::json_line(out, value)?;
    } else {
        writeln!(out, "{}", crate::text::clean(text))?;
    }
    Ok(())
}
