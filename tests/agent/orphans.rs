//! Processes that leave the agent's process group.

use std::{
    io::{self, BufRead, BufReader},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
};

/// How long an orphan sleeps: longer than any test waits for its death.
const ORPHAN_SECONDS: &str = "120";

/// Starts three processes that a kill of the group does not reach. Returns their pids.
///
/// The first leaves by `setsid` and holds the agent's stdout; the second is double-forked; the
/// third is both.
pub fn start() -> io::Result<String> {
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    let holder = Command::new("setsid")
        .args(["sleep", ORPHAN_SECONDS])
        .stdin(Stdio::null())
        .stdout(stdout)
        .spawn()?;
    let script = format!("sleep {ORPHAN_SECONDS} >/dev/null 2>&1 & echo $!");
    let forked = first_line(Command::new("sh").args(["-c", &script]))?;
    let both = first_line(Command::new("setsid").args(["sh", "-c", &script]))?;
    Ok(format!("{} {forked} {both}", holder.id()))
}

fn first_line(command: &mut Command) -> io::Result<String> {
    let mut child: Child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    child.wait()?;
    Ok(line.trim().to_owned())
}
