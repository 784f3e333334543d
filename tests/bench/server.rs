//! The server under test: the real binary, with a directory and a port of its own.

use greenroom_test_support::{Server, Setup, process, programs::built};
use tempfile::TempDir;

use crate::{Result, http::Connection};

/// The prefix of the names of groups whose actors panic in [`FAILING`].
pub const PANICS: &str = "panics-";

/// The name of the build in which actors may panic.
pub const FAILING: &str = "greenroom-failpoints";

/// Returns the configuration of most rows.
pub fn setup() -> Setup {
    Setup::new()
        .set("limits", "running_groups", 64)
        .set("limits", "queue", 1000)
        .text("defaults", "agent", "bench")
        .text("defaults", "idle_timeout", "10m")
        .text("defaults", "on_interrupt", "continue")
        .retries("10ms")
        // A backtrace takes long, and would be measured with the panic.
        .environment("RUST_BACKTRACE", "0")
}

/// Starts a server on an empty database, and waits until it is ready.
pub fn start(setup: Setup) -> Result<Server> {
    start_build("greenroom", setup)
}

/// [`start`] of this build.
pub fn start_build(name: &str, setup: Setup) -> Result<Server> {
    let agent = built("examples/bench-agent")?;
    let agent = agent.to_string_lossy();
    let setup = setup.command("bench", &agent).command("crashes", &agent);
    let setup = setup.set("agents.crashes", "args", "[\"crash\"]");
    // Beside the build, not in a temporary directory: that may be in memory, where a sync costs
    // nothing.
    let mut home = setup.home_in(TempDir::with_prefix_in("bench-", built("")?)?);
    home.program = built(name)?;
    home.verifies = false;
    Ok(Server::start(home))
}

/// Opens a connection to the server.
pub fn connect(server: &Server) -> Result<Connection> {
    Connection::open(server.address())
}

/// Returns the processor time of the server so far, in seconds.
pub fn cpu_seconds(server: &Server) -> f64 {
    process::cpu(server.pid()).as_secs_f64()
}
