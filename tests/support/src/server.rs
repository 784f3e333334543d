//! The real server as a child process, and the requests that most tests send.

use std::{
    ffi::OsStr,
    net::SocketAddr,
    process::{Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use rustix::process::{Resource, Signal};
use serde_json::{Value, json};

use super::{
    Events, Home, Journal, Log, Setup, TIMEOUT, eventually,
    http::{self, Reply},
    process::{self, Process},
    programs::clean,
    stored,
};

/// The longest duration of one exchange: longer than any `wait` of a test.
const EXCHANGE: Duration = Duration::from_secs(60);

/// The `wait` of a request for a task, in seconds: below the timeout of a test.
const WAIT_SECONDS: u64 = 25;

/// The states that a task never leaves.
pub const TERMINAL: [&str; 5] = ["completed", "failed", "cancelled", "interrupted", "skipped"];

/// The server in its home; dropping it kills it.
pub struct Server {
    pub home: Home,
    pub log: Log,
    pub journal: Journal,
    process: Option<Process>,
    client: ureq::Agent,
}

impl Server {
    /// Starts the server in this directory and waits until it is ready.
    #[track_caller]
    pub fn start(home: Home) -> Self {
        let log = Log::default();
        let journal = Journal::new(home.script(), log.clone());
        let mut server = Self { home, log, journal, process: None, client: http::client(EXCHANGE) };
        server.boot();
        server
    }

    /// Starts a server with the usual configuration.
    #[track_caller]
    pub fn usual() -> Self {
        Setup::new().start()
    }

    /// Starts the server process on the existing data, and waits until it is ready.
    #[track_caller]
    pub fn boot(&mut self) {
        self.spawn();
        self.wait_for("/readyz");
    }

    /// Starts the server process on the existing data.
    #[track_caller]
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "the server is already running");
        self.log.push("--- start ---".into());
        self.process = Some(Process::spawn(&mut serve(&self.home), &self.log).unwrap());
    }

    /// Waits until the probe answers with 200: `/healthz`, or `/readyz`, which damaged data may
    /// prevent.
    #[track_caller]
    pub fn wait_for(&mut self, probe: &str) {
        let log = self.log.clone();
        eventually(&format!("200 at {probe}"), &log, || {
            if let Some(status) = self.running().exited() {
                panic!("the server ended with {status}\n{}", log.tail());
            }
            let reply = self.try_request("GET", probe, &[], None).ok()?;
            (200..300).contains(&reply.status).then_some(())
        });
    }

    /// Kills the server with SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
            self.log.push("--- killed ---".into());
        }
    }

    /// Kills the server and starts it again.
    #[track_caller]
    pub fn kill_and_boot(&mut self) {
        self.kill();
        self.boot();
    }

    /// Stops the server in order, and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        self.terminate();
        assert_eq!(self.wait_exit().code(), Some(0), "{}", self.log.tail());
        self.boot();
    }

    /// Sends the server SIGTERM.
    pub fn terminate(&self) {
        process::signal(self.pid(), Signal::TERM);
    }

    /// Waits until the server has exited by itself.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        let ended = self.running().wait_exit(TIMEOUT);
        let status = ended.unwrap_or_else(|| panic!("the server still runs\n{}", self.log.tail()));
        self.process = None;
        self.log.push(format!("--- ended: {status} ---"));
        self.verify_data();
        status
    }

    /// Checks the server's data at every orderly end: the server has exited by itself, or its test
    /// has passed.
    ///
    /// I13: replaying the log gives every row; and the log keeps the invariants.
    fn verify_data(&self) {
        if !self.home.verifies {
            return;
        }
        let found = stored::violations(&self.home.database()).unwrap();
        assert!(found.is_empty(), "{}\n{}", found.join("\n"), self.log.tail());
    }

    fn running(&mut self) -> &mut Process {
        self.process.as_mut().expect("the server runs")
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server runs").pid()
    }

    /// Makes the server's writes beyond this file size fail; `None`: no limit.
    pub fn limit_file_size(&self, bytes: Option<u64>) {
        process::limit(self.pid(), Resource::Fsize, bytes).unwrap();
    }

    pub fn address(&self) -> SocketAddr {
        self.home.address()
    }

    /// Sends a request; `Err` if no response came.
    pub fn try_request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Reply, ureq::Error> {
        let url = format!("http://{}{path}", self.address());
        http::exchange(&self.client, method, &url, headers, body)
    }

    #[track_caller]
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Reply {
        match self.try_request(method, path, headers, body) {
            Ok(reply) => reply,
            Err(err) => panic!("{method} {path}: {err}\n{}", self.log.tail()),
        }
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], None)
    }

    #[track_caller]
    pub fn delete(&self, path: &str) -> Reply {
        self.request("DELETE", path, &[], None)
    }

    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) -> Reply {
        self.send("PUT", path, &[], body)
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[], body)
    }

    /// POST with an `Idempotency-Key`.
    #[track_caller]
    pub fn post_once(&self, key: &str, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[("Idempotency-Key", key)], body)
    }

    #[track_caller]
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        let mut all = vec![("Content-Type", "application/json")];
        all.extend_from_slice(headers);
        self.request(method, path, &all, Some(body.to_string().as_bytes()))
    }

    /// Sends exactly these bytes on a connection of their own.
    #[track_caller]
    pub fn raw(&self, bytes: impl AsRef<[u8]>) -> Reply {
        http::Connection::open(self.address()).unwrap().exchange(bytes.as_ref()).unwrap()
    }

    /// Enqueues a turn and returns the task of the 202.
    #[track_caller]
    pub fn submit(&self, group: &str, prompt: &str) -> Value {
        let path = format!("/v1/groups/{group}/turns");
        self.post(&path, &json!({ "prompt": prompt })).expect(202)
    }

    /// Enqueues a turn and returns the ended task.
    #[track_caller]
    pub fn turn(&self, group: &str, prompt: &str) -> Value {
        let task = self.submit(group, prompt);
        self.finish(&task)
    }

    /// [`Self::turn`] that must complete.
    #[track_caller]
    pub fn complete(&self, group: &str, prompt: &str) -> Value {
        let task = self.turn(group, prompt);
        assert_eq!(task["state"], "completed", "{task}\n{}", self.log.tail());
        task
    }

    /// Enqueues a compaction and returns the task of the 202.
    #[track_caller]
    pub fn compact(&self, group: &str) -> Value {
        self.post(&format!("/v1/groups/{group}/compactions"), &json!({})).expect(202)
    }

    #[track_caller]
    pub fn group(&self, group: &str) -> Value {
        self.get(&format!("/v1/groups/{group}")).expect(200)
    }

    /// Returns the current state of this task.
    #[track_caller]
    pub fn task(&self, task: &Value) -> Value {
        self.get(&format!("/v1/tasks/{}", id(task))).expect(200)
    }

    #[track_caller]
    pub fn digest(&self, group: &str) -> Value {
        self.get(&format!("/v1/groups/{group}/digest")).expect(200)
    }

    #[track_caller]
    pub fn run_digest(&self, run: &str) -> Value {
        self.get(&format!("/v1/runs/{run}/digest")).expect(200)
    }

    /// The digest of all groups that the query selects.
    #[track_caller]
    pub fn merged(&self, query: &str) -> Value {
        self.get(&format!("/v1/digest{query}")).expect(200)
    }

    /// Waits until the task is terminal.
    #[track_caller]
    pub fn finish(&self, task: &Value) -> Value {
        let path = format!("/v1/tasks/{}?wait={WAIT_SECONDS}", id(task));
        let ended = self.get(&path).expect_any(&[200, 202]);
        let state = ended["state"].as_str().unwrap_or_default();
        assert!(
            TERMINAL.contains(&state),
            "not ended within {WAIT_SECONDS} s: {ended}\n{}",
            self.log.tail()
        );
        ended
    }

    /// Waits until the task is terminal, and checks its state.
    #[track_caller]
    pub fn finish_as(&self, task: &Value, state: &str) -> Value {
        let ended = self.finish(task);
        assert_eq!(ended["state"], state, "{ended}\n{}", self.log.tail());
        ended
    }

    #[track_caller]
    pub fn cancel(&self, task: &Value) -> Reply {
        self.post(&format!("/v1/tasks/{}/cancel", id(task)), &json!({}))
    }

    /// Returns all frames of the group that the query selects, over all pages.
    #[track_caller]
    pub fn frames_where(&self, group: &str, query: &str) -> Vec<Value> {
        let mut frames = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/groups/{group}/frames?limit=1000{query}{cursor}");
            let page = self.get(&path).expect(200);
            frames.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={}", encode(next)),
                None => return frames,
            }
        }
    }

    #[track_caller]
    pub fn frames(&self, group: &str) -> Vec<Value> {
        self.frames_where(group, "")
    }

    #[track_caller]
    pub fn frames_of_kind(&self, group: &str, kind: &str) -> Vec<Value> {
        self.frames_where(group, &format!("&kind={}", encode(kind)))
    }

    /// Opens the group's events; `query` is empty or begins with `?`.
    #[track_caller]
    pub fn events(&self, group: &str, query: &str) -> Events {
        self.events_with(group, query, &[])
    }

    #[track_caller]
    pub fn events_with(&self, group: &str, query: &str, headers: &[(&str, &str)]) -> Events {
        let path = format!("/v1/groups/{group}/events{query}");
        Events::open(self.address(), &path, headers, &self.log)
    }

    /// Waits for a frame of the group that `fits` accepts.
    #[track_caller]
    pub fn wait_frame(&self, group: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let events = self.events(group, "");
        let seen = events.until(what, |event| event.is_frame() && fits(&event.frame()));
        seen.last().unwrap().frame()
    }

    /// Waits until `fits` accepts the group.
    #[track_caller]
    pub fn wait_group(&self, group: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(what, &self.log, || Some(self.group(group)).filter(&fits))
    }

    /// Opens the database read-only.
    pub fn database(&self) -> Connection {
        let file = self.home.data().join("greenroom.db");
        Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
    }

    /// Opens the database for writing, as another program would.
    pub fn writable_database(&self) -> Connection {
        let file = self.home.data().join("greenroom.db");
        Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("{}", self.log.tail());
        } else {
            self.verify_data();
        }
    }
}

/// Returns the command `greenroom serve` in the directory, under the home's wrapper.
pub fn serve(home: &Home) -> Command {
    let wrapper: Vec<&str> = home.wrapper.iter().map(String::as_str).collect();
    under(&wrapper, home, &["serve", "--config", home.config().to_str().unwrap()])
}

/// Runs `greenroom` with these arguments and the home's configuration. Returns its exit code, -1
/// after a signal, and its stdout and stderr.
#[track_caller]
pub fn run(home: &Home, arguments: &[&str]) -> (i32, String) {
    let config = home.config();
    let arguments = [arguments, &["--config", config.to_str().unwrap()]].concat();
    let Output { status, stdout, stderr } = greenroom(home, &arguments).output().unwrap();
    let output = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    (status.code().unwrap_or(-1), output)
}

/// Returns the command `greenroom` with these arguments, in the directory; its stdout is a pipe.
pub fn greenroom(home: &Home, arguments: &[&str]) -> Command {
    let mut command = under(&[], home, arguments);
    command.stdout(Stdio::piped());
    command
}

/// Runs `greenroom verify` with these arguments; returns its exit code and its output.
#[track_caller]
pub fn verify(home: &Home, arguments: &[&str]) -> (i32, String) {
    run(home, &[&["verify"], arguments].concat())
}

/// Returns the command `greenroom` with these arguments, in the directory, under another program
/// and its arguments; its stderr is a pipe.
pub fn under(wrapper: &[&str], home: &Home, arguments: &[&str]) -> Command {
    let mut words = wrapper.iter().map(OsStr::new).chain([home.program.as_os_str()]);
    let mut command = Command::new(words.next().unwrap());
    clean(&mut command);
    command
        .args(words)
        .args(arguments)
        .envs(home.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

#[track_caller]
pub fn id(entity: &Value) -> &str {
    entity["id"].as_str().unwrap_or_else(|| panic!("no id in {entity}"))
}

/// Percent-encodes every byte that is special in a query.
pub fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") })
        .collect()
}
