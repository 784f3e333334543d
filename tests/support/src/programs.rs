//! The programs that cargo built, and the environment in which they run.

use std::{env, io, path::PathBuf, process::Command};

/// Builds the server and what the arguments name as this program was built, if cargo runs it: so
/// that no old build is tested.
pub fn build(arguments: &[&str]) -> io::Result<()> {
    let Some(cargo) = env::var_os("CARGO") else { return Ok(()) };
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--bin", "greenroom"]).args(arguments);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let built = command.status().is_ok_and(|status| status.success());
    if built { Ok(()) } else { Err(io::Error::other("the server could not be built")) }
}

/// Returns a program that cargo built in the same profile as this one.
pub fn built(name: &str) -> io::Result<PathBuf> {
    let program = env::current_exe()?;
    let path = program.ancestors().nth(2).map(|profile| profile.join(name)).unwrap_or_default();
    let missing = || io::Error::other(format!("{} is not built", path.display()));
    if path.exists() { Ok(path) } else { Err(missing()) }
}

/// Removes the variables that configure greenroom from the command's environment.
pub fn clean(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("GREENROOM_") || text.starts_with("RUST_LOG") {
            command.env_remove(&name);
        }
    }
}
