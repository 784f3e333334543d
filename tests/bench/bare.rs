//! The machine's limit: an agent, its pipe, the parse of each line's envelope, and SQLite with full
//! sync. No actors, no HTTP.

use std::{
    borrow::Cow,
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::Instant,
};

use greenroom_test_support::programs::built;
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tempfile::TempDir;

use crate::{Result, database::Database};

const READ_BYTES: usize = 256 << 10;
const PIPE_BYTES: usize = 1 << 20;

/// The layout of frames in the database.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A row for each frame.
    Rows,
    /// A row for as many frames as fit into 64 KiB, as in greenroom.
    Packed,
}

/// An agent on bare pipes.
pub struct Agent {
    child: Child,
    stdin: File,
    /// Its stdout.
    pub stdout: BufReader<File>,
}

impl Agent {
    /// Starts the benchmark's agent, and opens a session.
    pub fn start() -> Result<Self> {
        let mut child = Command::new(built("examples/bench-agent")?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin: OwnedFd = child.stdin.take().ok_or("no stdin")?.into();
        let stdout: OwnedFd = child.stdout.take().ok_or("no stdout")?.into();
        // Without the larger pipe it also works, only slower.
        _ = rustix::pipe::fcntl_setpipe_size(&stdout, PIPE_BYTES);
        let stdout = BufReader::with_capacity(READ_BYTES, File::from(stdout));
        let mut agent = Self { child, stdin: stdin.into(), stdout };
        for method in ["initialize", "session/new"] {
            agent.send(&json!({ "jsonrpc": "2.0", "id": 0, "method": method }).to_string())?;
            agent.hear()?;
        }
        Ok(agent)
    }

    /// Sends a prompt.
    pub fn prompt(&mut self, text: &str) -> Result<()> {
        let params = json!({ "sessionId": "bench", "prompt": [{ "type": "text", "text": text }] });
        let request =
            json!({ "jsonrpc": "2.0", "id": 1, "method": "session/prompt", "params": params });
        self.send(&request.to_string())
    }

    fn send(&mut self, line: &str) -> Result<()> {
        Ok(self.stdin.write_all(format!("{line}\n").as_bytes())?)
    }

    /// Reads one line.
    pub fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line)
    }

    /// Moves the reading end to another thread.
    pub fn split(mut self) -> Result<(Self, BufReader<File>)> {
        let stdout = std::mem::replace(&mut self.stdout, BufReader::new(File::open("/dev/null")?));
        Ok((self, stdout))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The agent is discarded; a failure here changes nothing.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "params")]
    _params: Option<&'a RawValue>,
}

/// Parsed lines of the agent that may be stored.
struct Lines {
    text: String,
    count: usize,
}

/// One agent and a database, kept over all runs: a write-ahead log that was filled once is
/// overwritten, which is faster than growing it, and greenroom's log is also such.
pub struct Pipeline {
    agent: Agent,
    database: Database,
    _directory: TempDir,
    /// The number of the last row.
    last: u64,
}

impl Pipeline {
    /// Starts the agent with an empty database.
    pub fn start() -> Result<Self> {
        let (database, directory) = Database::make()?;
        Ok(Self { agent: Agent::start()?, database, _directory: directory, last: 0 })
    }

    /// Has the agent write `count` lines of `bytes` bytes. Returns the seconds until the last one
    /// was durable. The agent's answer is stored, too.
    pub fn stream(&mut self, count: usize, bytes: usize, layout: Layout) -> Result<f64> {
        let (batches, waiting) = sync_channel::<Lines>(4);
        let Self { agent, database, last, .. } = self;
        let start = Instant::now();
        agent.prompt(&format!("stream {count} {bytes}"))?;
        thread::scope(|scope| {
            let writer = scope.spawn(move || -> Result<Instant> {
                store(database, last, &waiting, layout)?;
                Ok(Instant::now())
            });
            let mut buffer = vec![0; READ_BYTES];
            let mut filled = 0;
            let mut answered = false;
            while !answered {
                filled += agent.stdout.get_mut().read(&mut buffer[filled..])?;
                let whole = memchr::memrchr(b'\n', &buffer[..filled]).map_or(0, |at| at + 1);
                let text = std::str::from_utf8(&buffer[..whole])?.trim_end();
                let mut count = 0;
                for line in text.lines() {
                    let envelope: Envelope = serde_json::from_str(line)?;
                    count += 1;
                    answered |= envelope.method.is_none();
                }
                // The answer is a row like the others: one more among many makes no difference.
                if count > 0 {
                    batches.send(Lines { text: text.to_owned(), count })?;
                }
                buffer.copy_within(whole..filled, 0);
                filled -= whole;
            }
            drop(batches);
            let end = writer.join().map_err(|_| "the writer panicked")??;
            Ok((end - start).as_secs_f64())
        })
    }

    /// Runs `turns` empty turns with two commits each: START before the prompt is written, and the
    /// settlement after its answer. Returns the seconds.
    pub fn turns(&mut self, turns: u64) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..turns {
            self.last += 1;
            self.database.commit(|rows| rows.start(0, self.last))?;
            self.agent.prompt("empty")?;
            self.agent.hear()?;
            self.database.commit(|rows| rows.settle(0, self.last))?;
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

fn store(
    database: &mut Database,
    last: &mut u64,
    waiting: &Receiver<Lines>,
    layout: Layout,
) -> Result<()> {
    while let Ok(first) = waiting.recv() {
        let batch: Vec<Lines> = std::iter::once(first).chain(waiting.try_iter()).collect();
        database.commit(|rows| {
            for Lines { text, count } in &batch {
                match layout {
                    Layout::Rows => {
                        for line in text.lines() {
                            *last += 1;
                            rows.frame(*last, line)?;
                        }
                    }
                    Layout::Packed => {
                        rows.block(0, *last + 1, *count, text)?;
                        *last += *count as u64;
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Many agents and one database, kept over all runs.
pub struct Crowd {
    agents: Vec<Agent>,
    /// Receives the number of each agent that answered.
    answers: Receiver<usize>,
    database: Database,
    _directory: TempDir,
    /// The last turn of each group.
    last: u64,
}

impl Crowd {
    /// Starts this number of agents, each for a group of its own.
    pub fn start(groups: usize) -> Result<Self> {
        let (database, directory) = Database::make()?;
        let (answered, answers) = sync_channel::<usize>(groups);
        let mut agents = Vec::new();
        for group in 0..groups {
            let (agent, mut stdout) = Agent::start()?.split()?;
            let answered = answered.clone();
            agents.push(agent);
            thread::spawn(move || {
                let mut line = String::new();
                while matches!(stdout.read_line(&mut line), Ok(bytes) if bytes > 0)
                    && answered.send(group).is_ok()
                {
                    line.clear();
                }
            });
        }
        Ok(Self { agents, answers, database, _directory: directory, last: 0 })
    }

    /// Runs `turns` empty turns in each group, all groups at once; everything that is ready at one
    /// time, of all groups, is one commit. Returns the seconds.
    pub fn turns(&mut self, turns: u64) -> Result<f64> {
        let groups = self.agents.len();
        let begun = Instant::now();
        let mut turn = vec![self.last + 1; groups];
        let mut left = groups;
        let (mut starting, mut settling): (Vec<usize>, Vec<usize>) =
            ((0..groups).collect(), vec![]);
        loop {
            self.database.commit(|rows| {
                settling.iter().try_for_each(|group| rows.settle(*group as u64, turn[*group]))?;
                starting.iter().try_for_each(|group| rows.start(*group as u64, turn[*group]))
            })?;
            for group in starting.drain(..) {
                self.agents[group].prompt("empty")?;
            }
            for group in settling.drain(..) {
                turn[group] += 1;
                if turn[group] > self.last + turns {
                    left -= 1;
                } else {
                    starting.push(group);
                }
            }
            if left == 0 {
                self.last += turns;
                return Ok(begun.elapsed().as_secs_f64());
            }
            if starting.is_empty() {
                settling.push(self.answers.recv()?);
            }
            settling.extend(self.answers.try_iter());
        }
    }
}
