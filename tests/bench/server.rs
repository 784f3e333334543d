//! The server under test: the real binary, with a directory and a port of its own.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use greenroom_test_support::{
    process::signal,
    programs::{built, clean},
};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{Result, http::Connection, process};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server that ends on drop.
pub struct Server {
    directory: TempDir,
    address: SocketAddr,
    log_filter: Option<&'static str>,
    fails: bool,
    child: Option<Child>,
}

/// The settings that differ from the defaults.
#[derive(Clone, Copy)]
pub struct Setup {
    /// `limits.running_groups`
    pub running_groups: u32,
    /// `limits.queue`
    pub queue: u32,
    /// `defaults.idle_timeout`
    pub idle_timeout: &'static str,
    /// `GREENROOM_LOG`; absent: the default.
    pub log_filter: Option<&'static str>,
    /// Whether to use the build in which the actor of a group panics if its name begins with
    /// [`PANICS`].
    pub fails: bool,
}

/// The prefix of the names of groups whose actors panic.
pub const PANICS: &str = "panics-";

/// The name of the build in which actors may panic.
pub const FAILING: &str = "greenroom-failpoints";

impl Default for Setup {
    fn default() -> Self {
        Self {
            running_groups: 64,
            queue: 1000,
            idle_timeout: "10m",
            log_filter: None,
            fails: false,
        }
    }
}

impl Server {
    /// Starts a server on an empty database, and waits until it answers.
    pub fn start(setup: Setup) -> Result<Self> {
        // Beside the build, not in a temporary directory: that may be in memory, where a sync costs
        // nothing.
        let directory = TempDir::with_prefix_in("bench-", built("")?)?;
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let Setup { running_groups, queue, idle_timeout, log_filter, fails } = setup;
        let agent = built("examples/bench-agent")?;
        let config = format!(
            "[server]\nlisten = \"{address}\"\n\
             [limits]\nrunning_groups = {running_groups}\nqueue = {queue}\n\
             [defaults]\nagent = \"bench\"\nidle_timeout = \"{idle_timeout}\"\n\
             retry_base = \"10ms\"\non_interrupt = \"continue\"\n\
             [agents.bench]\ncommand = {agent:?}\n\
             [agents.crashes]\ncommand = {agent:?}\nargs = [\"crash\"]\n"
        );
        fs::write(directory.path().join("bench.toml"), config)?;
        let mut server = Self { directory, address, log_filter, fails, child: None };
        server.spawn()?;
        server.wait_ready()?;
        Ok(server)
    }

    /// Waits until it is ready.
    pub fn wait_ready(&self) -> Result<()> {
        let start = Instant::now();
        while self.connect().and_then(|mut client| client.get("/readyz")).is_err() {
            if start.elapsed() > PATIENCE {
                return Err("the server does not answer".into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Restarts the process on its database, without waiting.
    pub fn spawn(&mut self) -> Result<()> {
        let log = File::options().append(true).create(true).open(self.path().join("log"))?;
        let mut command = Command::new(built(if self.fails { FAILING } else { "greenroom" })?);
        clean(&mut command);
        command
            .args(["serve", "--config", "bench.toml"])
            // A backtrace takes long, and would be measured with the panic.
            .env("RUST_BACKTRACE", "0")
            .envs(self.fails.then(|| ("FAILPOINT", format!("group={PANICS}"))))
            .envs(self.log_filter.map(|filter| ("GREENROOM_LOG", filter)))
            .current_dir(self.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Ends the process with SIGTERM, which lets it close its database.
    pub fn stop(&mut self) -> Result<()> {
        signal(self.pid()?, Signal::TERM);
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// Ends the process with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Returns the process.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().ok_or("the server does not run")?.id())
    }

    /// Returns the processor time of the process so far, in seconds.
    pub fn cpu(&self) -> Result<f64> {
        Ok(process::cpu(self.pid()?)?.as_secs_f64())
    }

    /// Returns its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its working directory; the database is `data/greenroom.db`.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Opens a connection to it.
    pub fn connect(&self) -> Result<Connection> {
        Connection::open(self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The server is discarded; a failure here changes nothing.
        drop(self.kill());
    }
}
