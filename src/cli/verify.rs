//! `greenroom verify`: the log folded again, and compared with every row (I13).

use std::io::Write;

use greenroom_actors::{
    storage::{
        Archive as _, StoreError, chain,
        sqlite::{Opener, SqliteArchive},
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
