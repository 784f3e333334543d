//! The shim as a program of its own, for the tests of this package.

fn main() -> std::process::ExitCode {
    greenroom_actors::process::shim::main(std::env::args_os().skip(1))
}
