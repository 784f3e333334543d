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

fn main() -> ExitCode {
    // Before anything else, above all before any thread starts: the shim forks.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == "shim") {
        return greenroom_actors::process::shim::main(args);
    }
    cli::main()
}
