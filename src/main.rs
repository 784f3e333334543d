//! greenroom: supervises AI agents over HTTP. `README.md` has the code map.

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

fn main() -> ExitCode {
    // Before anything else, and above all before any thread: the shim forks.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == "shim") {
        return greenroom_actors::agent::shim::main(args);
    }
    cli::main()
}
