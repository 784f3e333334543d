//! `greenroom backup FILE`: copies one snapshot of the database, also while a server writes to it.

use std::{io::Write, path::Path, time::Instant};

use greenroom_actors::storage::{
    chain,
    sqlite::{BackupError, Opener},
};
use serde_json::json;

use super::{
    error::{CliError, Exit},
    render,
};
use crate::config::Config;

/// Copies the configured database to `file`, and prints the size and the time taken.
///
/// # Errors
///
/// `file` exists, the database cannot be read, or the copy cannot be written; then `file` is not
/// created.
pub fn run(
    config: &Config,
    file: &Path,
    as_json: bool,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let started = Instant::now();
    let bytes = Opener::at(&config.storage.path).backup(file).map_err(|err| match err {
        BackupError::Exists(_) => CliError::Usage(err.to_string()),
        err => CliError::Storage(chain(&err)),
    })?;
    let took = started.elapsed();
    if as_json {
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        render::json_line(out, &json!({ "file": file, "bytes": bytes, "took_ms": took_ms }))?;
    } else {
        let text =
            format!("{}: {bytes} bytes, verified, in {:.2} s", file.display(), took.as_secs_f64());
        writeln!(out, "{}", crate::text::visible(&text))?;
    }
    Ok(Exit::Done)
}
