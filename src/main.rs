//! greenroom supervises AI agents over HTTP. `README.md` has the map of the code.

mod cli;
mod client;
mod config;
mod demo;
mod demo_agent;
mod http;
mod logs;
mod otlp;
mod serve;
mod text;

use std::process::ExitCode;

use greenroom_actors::process::{proc, shim};

fn main() -> ExitCode {
    // Before anything else, above all before any thread starts: the shim forks.
    let mut args = std::env::args_os().skip(1);
    let command = args.next();
    if command.as_ref().is_some_and(|command| command == "shim") {
        return shim::main(args);
    }
    // The server and its clients hold secrets. The demo agent is an agent as any other: found by
    // the marker in its environment.
    if command.is_none_or(|command| command != "demo-agent")
        && let Err(err) = proc::forbid_inspection()
    {
        eprintln!("greenroom: cannot keep agents from inspecting this process: {err}");
        return ExitCode::FAILURE;
    }
    cli::main()
}
