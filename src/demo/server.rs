//! The demo's server: a child process of this same program, with its own directory and port.

use std::{
    fs,
    io::{self, BufRead, BufReader, ErrorKind},
    net::TcpListener,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{DemoError, screen::Screen};
use crate::client::{Client, ClientError};

pub const DATABASE: &str = "greenroom.db";
pub const CONFIG: &str = "greenroom.toml";

const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Longer than the server's own drain and the termination of its agents.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

const POLL_PAUSE: Duration = Duration::from_millis(20);

/// How long the last log lines may take after the server has exited.
const LOG_TIMEOUT: Duration = Duration::from_secs(1);

/// Creates the demo's directory, `wanted` or a new one, with mode 0700. Returns its absolute path.
pub fn directory(wanted: Option<PathBuf>) -> io::Result<PathBuf> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    if let Some(wanted) = wanted {
        builder.recursive(true).create(&wanted)?;
        return wanted.canonicalize();
    }
    let parent = std::env::temp_dir().canonicalize()?;
    for number in 1.. {
        let directory = parent.join(format!("greenroom-demo-{}-{number}", std::process::id()));
        match builder.create(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// A running server; stopped when dropped.
pub struct Server {
    child: Child,
    url: String,
    /// Disconnects when the log ends.
    log: Receiver<()>,
}

impl Server {
    /// Starts a server with its data in `directory` and its log on `screen`.
    pub fn start(directory: &Path, screen: Screen) -> Result<Self, DemoError> {
        let config = directory.join(CONFIG);
        fs::write(&config, config_text(directory)?)?;
        // The port is free now; if another program takes it meanwhile, the server reports that.
        let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg("--config").arg(&config).args(["--listen", &listen]);
        // The demo ignores the configuration in its environment.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("GREENROOM_") || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        command.current_dir(directory);
        Self::spawn(command, format!("http://{listen}"), screen)
    }

    fn spawn(mut command: Command, url: String, screen: Screen) -> Result<Self, DemoError> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (log_open, log) = mpsc::channel();
        let stderr = child.stderr.take();
        thread::spawn(move || {
            let lines = stderr.into_iter().flat_map(|stderr| BufReader::new(stderr).lines());
            lines.map_while(Result::ok).for_each(|line| screen.log(&line));
            drop(log_open);
        });
        Ok(Server { child, url, log })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits until the server is ready for work.
    pub fn wait_ready(&self, client: &Client) -> Result<(), DemoError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            match client.get("/readyz") {
                // The status alone reports readiness; the body may be anything.
                Ok(_) | Err(ClientError::BadAnswer { .. } | ClientError::Truncated { .. }) => {
                    return Ok(());
                }
                Err(error) if deadline < Instant::now() => return Err(error.into()),
                Err(_) => {}
            }
            if self.log.recv_timeout(POLL_PAUSE) == Err(mpsc::RecvTimeoutError::Disconnected) {
                let exited = "the server exited before it was ready; its log has the reason";
                return Err(DemoError::Io(io::Error::other(exited)));
            }
        }
    }

    /// Stops the server with SIGTERM and waits for it; true if its exit code was 0.
    pub fn stop(mut self) -> io::Result<bool> {
        let is_clean = self.terminate()?;
        _ = self.log.recv_timeout(LOG_TIMEOUT);
        Ok(is_clean)
    }

    fn terminate(&mut self) -> io::Result<bool> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status.success());
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            thread::sleep(POLL_PAUSE);
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(false)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.terminate();
    }
}

/// Returns a configuration that serves the same data again later.
fn config_text(directory: &Path) -> Result<String, DemoError> {
    let database = directory.join(DATABASE);
    let url = database.to_str().map(|path| format!("sqlite:{path}"));
    let url = url.ok_or(DemoError::DirectoryName)?;
    // A JSON string is a TOML string, too.
    Ok(format!("[storage]\nurl = {}\n", serde_json::Value::from(url)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_is_new_and_private() {
        let (one, two) = (directory(None).unwrap(), directory(None).unwrap());
        assert_ne!(one, two);
        assert!(one.is_absolute());
        assert_eq!(fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o700);
        fs::remove_dir(one).unwrap();
        fs::remove_dir(two).unwrap();
    }

    #[test]
    fn the_written_configuration_loads() {
        let directory = tempfile::tempdir().unwrap();
        let odd = directory.path().join("a \"b\" \\c");
        fs::create_dir(&odd).unwrap();
        let file = odd.join(CONFIG);
        fs::write(&file, config_text(&odd).unwrap()).unwrap();
        let config = crate::config::Config::load(Some(&file), None).unwrap();
        assert_eq!(config.storage.path, odd.join(DATABASE));
    }

    #[test]
    fn the_wait_ends_when_the_server_exits_at_once() {
        let screen = Screen::new();
        let server =
            Server::spawn(Command::new("false"), "http://127.0.0.1:1".into(), screen).unwrap();
        let client = Client::new(server.url(), None).unwrap();
        let start = Instant::now();
        let error = server.wait_ready(&client).unwrap_err();
        assert!(error.to_string().starts_with("the server exited before it was ready"), "{error}");
        assert!(start.elapsed() < READY_TIMEOUT);
        assert!(!server.stop().unwrap());
    }

    #[test]
    fn stop_sends_sigterm_and_returns_whether_the_exit_was_clean() {
        for (script, is_clean) in [("exit 0", true), ("exit 3", false)] {
            let directory = tempfile::tempdir().unwrap();
            let mut command = Command::new("sh");
            let script = format!("trap '{script}' TERM; touch up; while :; do sleep 0.01; done");
            command.args(["-c", &script]).current_dir(directory.path());
            let server = Server::spawn(command, String::new(), Screen::new()).unwrap();
            while !directory.path().join("up").exists() {
                thread::sleep(POLL_PAUSE);
            }
            assert_eq!(server.stop().unwrap(), is_clean, "{script}");
        }
    }
}
