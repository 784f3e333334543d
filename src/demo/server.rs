//! The demo's own server: this very program, in a directory and on a port of its own.

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::screen::Screen;
use crate::cli::CliError;
use crate::client::{Client, ClientError};

pub const DATABASE: &str = "greenroom.db";
pub const CONFIG: &str = "greenroom.toml";

const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Beyond the server's own drain and ladders.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

const POLL_PAUSE: Duration = Duration::from_millis(20);

/// How long the last log lines may take after the server's end.
const LOG_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes the directory of a demo: `wanted`, or a fresh one. Absolute, and for its owner alone.
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
    /// Ends when the log does.
    log: Receiver<()>,
}

impl Server {
    /// Starts a server whose data is in `directory` and whose log is shown on `screen`.
    pub fn start(directory: &Path, screen: Screen) -> Result<Self, CliError> {
        let config = directory.join(CONFIG);
        fs::write(&config, config_text(directory)?)?;
        // The port is free now; if another program takes it at once, the server says so.
        let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg("--config").arg(&config).args(["--listen", &listen]);
        // The demo is the same whatever is configured around it.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("GREENROOM_") || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        command.current_dir(directory);
        Self::spawn(command, format!("http://{listen}"), screen)
    }

    fn spawn(mut command: Command, url: String, screen: Screen) -> Result<Self, CliError> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (ended, log) = mpsc::channel();
        let stderr = child.stderr.take();
        thread::spawn(move || {
            let lines = stderr.into_iter().flat_map(|stderr| BufReader::new(stderr).lines());
            lines.map_while(Result::ok).for_each(|line| screen.log(&line));
            drop(ended);
        });
        Ok(Server { child, url, log })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits until the server takes work.
    pub fn wait_ready(&self, client: &Client) -> Result<(), CliError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            match client.get("/readyz") {
                // Readiness is the status; the body may be anything.
                Ok(_) | Err(ClientError::BadAnswer { .. } | ClientError::CutOff { .. }) => {
                    return Ok(());
                }
                Err(error) if deadline < Instant::now() => return Err(error.into()),
                Err(_) => {}
            }
            if self.log.recv_timeout(POLL_PAUSE) == Err(mpsc::RecvTimeoutError::Disconnected) {
                let ended = "the server ended before it was ready; its log says why";
                return Err(CliError::Io(io::Error::other(ended)));
            }
        }
    }

    /// Asks the server to end, and waits for it; true if it ended well.
    pub fn stop(mut self) -> io::Result<bool> {
        let clean = self.end()?;
        let _ = self.log.recv_timeout(LOG_TIMEOUT);
        Ok(clean)
    }

    fn end(&mut self) -> io::Result<bool> {
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
        let _ = self.end();
    }
}

/// A configuration with which the same data can be served again.
fn config_text(directory: &Path) -> Result<String, CliError> {
    let database = directory.join(DATABASE);
    let url = database.to_str().map(|path| format!("sqlite:{path}"));
    let url = url.ok_or_else(|| CliError::Usage("the directory's name is not UTF-8".into()))?;
    // A JSON string is a TOML string, too.
    Ok(format!("[storage]\nurl = {}\n", serde_json::Value::from(url)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_is_fresh_and_private() {
        let (one, two) = (directory(None).unwrap(), directory(None).unwrap());
        assert_ne!(one, two);
        assert!(one.is_absolute());
        assert_eq!(fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o700);
        fs::remove_dir(one).unwrap();
        fs::remove_dir(two).unwrap();
    }

    #[test]
    fn its_configuration_is_one_that_loads() {
        let directory = tempfile::tempdir().unwrap();
        let odd = directory.path().join("a \"b\" \\c");
        fs::create_dir(&odd).unwrap();
        let file = odd.join(CONFIG);
        fs::write(&file, config_text(&odd).unwrap()).unwrap();
        let config = crate::config::Config::load(Some(&file), None).unwrap();
        assert_eq!(config.storage.path, odd.join(DATABASE));
    }

    #[test]
    fn a_server_that_ends_at_once_is_no_endless_wait() {
        let screen = Screen::new();
        let server =
            Server::spawn(Command::new("false"), "http://127.0.0.1:1".into(), screen).unwrap();
        let client = Client::new(server.url(), None).unwrap();
        let start = Instant::now();
        let error = server.wait_ready(&client).unwrap_err();
        assert!(error.to_string().starts_with("the server ended before it was ready"), "{error}");
        assert!(start.elapsed() < READY_TIMEOUT);
        assert!(!server.stop().unwrap());
    }

    #[test]
    fn a_server_is_asked_to_end_and_its_exit_counts() {
        for (script, clean) in [("exit 0", true), ("exit 3", false)] {
            let directory = tempfile::tempdir().unwrap();
            let mut command = Command::new("sh");
            let script = format!("trap '{script}' TERM; touch up; while :; do sleep 0.01; done");
            command.args(["-c", &script]).current_dir(directory.path());
            let server = Server::spawn(command, String::new(), Screen::new()).unwrap();
            while !directory.path().join("up").exists() {
                thread::sleep(POLL_PAUSE);
            }
            assert_eq!(server.stop().unwrap(), clean, "{script}");
        }
    }
}
