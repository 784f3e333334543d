//! The loop of one run: reads the agent's output, reports it to the group, until the tree is gone.

// How a run reads the lines of its agent, and what it does with each message.
mod lines;
mod messages;
// How long a run waits for its agent to be ready.
mod start;

use std::{future::pending, io, path::PathBuf, pin::Pin, rc::Rc, sync::Arc, time::Duration};

use actix::{MailboxError, Recipient};
use greenroom_core::{
    Event, Exit, ExitReason, FailedStart, GroupId, Provenance, RunId, TokenMeter,
};
use tokio::{sync::mpsc, task::yield_now};

use super::{
    AgentReport, Command, Start,
    batch::Batch,
    check::Answered,
    compaction_detector::CompactionDetector,
    handshake::Handshake,
    hermes,
    noise::Noise,
    stderr::Stderr,
    stdin::{Stdin, Unwritable},
    termination::Termination,
    tool_kinds::ToolKinds,
};
use crate::{
    acp::{self, session::Sessions},
    awake::{self, Awake},
    process::{
        Pipe, READ_BYTES,
        child::{Child, TreeEvent},
    },
    profile::{Detector, Profile},
    secrets,
};

/// How many times `start_timeout` a session may take to load, while the agent replays it.
const LOAD_TIMEOUTS: u32 = 10;
/// How often stderr is read before a turn is settled: a flood does not delay the turn further.
const STDERR_READS_MAX: usize = 64;

/// How often what the agent writes between turns is reported: each report of late words writes the
/// whole text of their task again.
const BETWEEN_TURNS: Duration = Duration::from_millis(100);

type Report = Pin<Box<dyn Future<Output = Result<(), MailboxError>>>>;

/// One run's loop.
pub struct RunLoop {
    run: RunId,
    group_id: GroupId,
    profile: Arc<Profile>,
    stdin: Rc<Stdin>,
    /// Before the pipes: the shim hangs up first if the loop is dropped.
    termination: Termination,
    stdout: Pipe,
    stderr_pipe: Pipe,
    stderr: Stderr,
    commands: mpsc::UnboundedReceiver<Command>,
    group: Recipient<AgentReport>,
    line_bytes_max: usize,
    batch: Batch,
    /// The batch that the group commits now.
    report: Option<Report>,
    /// When the next report of plain output between turns is due; `None`: at once.
    report_at: Option<Awake>,
    handshake: Option<Handshake>,
    /// What an answer showed of the next start.
    failed_start: Option<FailedStart>,
    /// Receives each response of the handshake.
    observer: Option<mpsc::UnboundedSender<Answered>>,
    /// Which of the agent's own sessions the last response of the handshake named.
    provenance: Option<Provenance>,
    /// When the agent was quiet for long enough after it restored its session, and when greenroom
    /// waits no longer for that.
    quiet: Option<(Awake, Awake)>,
    /// What the agent sent meanwhile that is no replay, for once it is ready.
    held: Vec<String>,
    held_bytes: usize,
    detector: CompactionDetector,
    /// The answer to the last prompt so far, read for hermes' words: no other agent writes them.
    answer: hermes::Answer,
    /// The open prompt's id, and the number of its line among those that were sent.
    prompt: Option<(u64, u64)>,
    /// The number of the last line that is known to be answered, if the agent answers it.
    answered: u64,
    tokens: TokenMeter,
    sessions: Sessions,
    tools: ToolKinds,
    /// The agent's working directory.
    cwd: PathBuf,
    /// The first line of the handshake, until the process runs.
    first_line: Option<String>,
    ready_by: Awake,
    /// How long `ready_by` may be put off while the agent replays its session.
    loaded_by: Awake,
    pid: Option<u32>,
    /// The lines that are no message.
    noise: Noise,
}

enum LoopEvent {
    Stdout(io::Result<usize>),
    Stderr(io::Result<usize>),
    Tree(TreeEvent),
    Command(Command),
    Reported(Result<(), MailboxError>),
    Escalate,
    Unwritable(Unwritable),
    StartTimedOut,
    /// The agent was quiet for long enough.
    Quiet,
    /// What the agent wrote between turns is to be reported.
    ReportDue,
}

impl LoopEvent {
    /// Whether it takes long to handle, and more may follow.
    fn is_long(&self) -> bool {
        let (Self::Stdout(read) | Self::Stderr(read)) = self else { return false };
        read.as_ref().is_ok_and(|bytes| *bytes >= READ_BYTES / 4)
    }
}

impl RunLoop {
    /// Creates the loop for a `child` that was spawned in `cwd`.
    pub fn new(
        start: &Start,
        cwd: PathBuf,
        child: Child,
        stdin: Rc<Stdin>,
        commands: mpsc::UnboundedReceiver<Command>,
        group: Recipient<AgentReport>,
        line_bytes_max: usize,
    ) -> Self {
        let auth_method = start.profile.auth_method.clone();
        let (handshake, first_line) =
            Handshake::new(cwd.clone(), auth_method, start.session.clone(), start.may_replace);
        let start_timeout = start.profile.start_timeout;
        stdin.open(child.stdin);
        let termination = Termination::new(child.tree, stdin.clone());
        Self {
            run: start.run,
            group_id: start.group.clone(),
            profile: start.profile.clone(),
            stdin,
            termination,
            stdout: Pipe::new(child.stdout),
            stderr_pipe: Pipe::new(child.stderr),
            stderr: Stderr::new(start.group.clone(), start.run),
            commands,
            group,
            line_bytes_max,
            batch: Batch::new(start.run),
            report: None,
            report_at: None,
            handshake: Some(handshake),
            failed_start: None,
            observer: start.observer.clone(),
            provenance: None,
            quiet: None,
            held: Vec::new(),
            held_bytes: 0,
            detector: CompactionDetector::new(&start.profile.signals),
            answer: hermes::Answer::default(),
            prompt: None,
            answered: 0,
            // Only hermes has detectors that a profile names.
            tokens: TokenMeter::new(!start.profile.signals.is_empty()),
            sessions: Sessions::default(),
            tools: ToolKinds::default(),
            cwd,
            first_line: Some(first_line),
            ready_by: awake::now() + start_timeout,
            loaded_by: awake::now() + start_timeout * LOAD_TIMEOUTS,
            pid: None,
            noise: Noise::new(),
        }
    }

    /// Runs until the process tree is gone and its output is reported; then reports the exit.
    ///
    /// Yields after each long read: a flood would keep the thread from other groups (I15).
    pub async fn run(mut self) {
        while !self.is_over() {
            if self.report.is_none() && !self.batch.is_empty() && !self.is_held_back() {
                // The first words are reported at once: they may end a retry.
                // Those of the batch that ends the turn are not late.
                let has_output = self.batch.has_output() && !self.batch.is_urgent();
                let has_late_words = has_output && self.is_between_turns();
                self.report_at = has_late_words.then(|| awake::now() + BETWEEN_TURNS);
                let events = self.batch.take();
                self.report = Some(Box::pin(self.group.send(AgentReport { events })));
            }
            let event = self.next_event().await;
            let is_long = event.is_long();
            match event {
                LoopEvent::Stdout(read) => self.on_stdout(read),
                LoopEvent::Stderr(read) => self.on_stderr(read),
                LoopEvent::Tree(event) => self.on_tree_event(event),
                LoopEvent::Command(command) => self.on_command(command),
                LoopEvent::Reported(Ok(())) => self.report = None,
                LoopEvent::Reported(Err(_)) => {
                    // The group's actor is gone; no reader saw what it did not store.
                    self.report = None;
                    self.batch.take();
                    self.termination.kill(ExitReason::Stopped, "its group's actor ended");
                }
                LoopEvent::Escalate => self.termination.escalate(),
                LoopEvent::Unwritable(Unwritable::Stalled) => {
                    let why = "the agent did not read its stdin for 10 s";
                    self.termination.kill(ExitReason::Protocol, why);
                }
                LoopEvent::Unwritable(Unwritable::HungUp) => self.termination.on_hung_up(),
                LoopEvent::StartTimedOut => self.on_start_timed_out(),
                LoopEvent::Quiet => self.on_quiet(),
                LoopEvent::ReportDue => self.report_at = None,
            }
            if is_long {
                yield_now().await;
            }
        }
        let exit = self.exit();
        let exited = Event::AgentExited { run: self.run, exit };
        // If the group's actor is gone, its successor finds the run in the database.
        _ = self.group.send(AgentReport::single(exited)).await;
    }

    /// Whether the agent takes prompts, and has answered the last one.
    fn is_between_turns(&self) -> bool {
        self.handshake.is_none() && self.prompt.is_none()
    }

    /// Whether the batch waits for more: it is plain output between turns, after some other.
    fn is_held_back(&self) -> bool {
        let ends = self.stdout.ended || self.termination.has_reason();
        let is_plain = !self.batch.is_urgent() && self.batch.has_room();
        self.report_at.is_some() && is_plain && !ends && self.is_between_turns()
    }

    fn is_over(&self) -> bool {
        let is_quiet = self.report.is_none() && self.batch.is_empty();
        self.termination.is_gone() && self.stdout.ended && self.stderr_pipe.ended && is_quiet
    }

    async fn next_event(&mut self) -> LoopEvent {
        let reads_stdout = !self.stdout.ended && self.batch.has_room();
        let escalates_at = self.termination.escalates_at();
        let is_starting = self.handshake.is_some() && !self.termination.has_reason();
        let quiet_at = self.quiet.filter(|_| is_starting).map(|(at, by)| at.min(by));
        // Quiet is awaited for a short time, which is no part of the start.
        let ready_by = (is_starting && quiet_at.is_none()).then_some(self.ready_by);
        let report_at = self.report_at.filter(|_| self.is_held_back());
        let is_gone = self.termination.is_gone();
        let writes = self.termination.is_unused();
        let report = async {
            match &mut self.report {
                Some(report) => report.await,
                None => pending().await,
            }
        };
        tokio::select! {
            reported = report => LoopEvent::Reported(reported),
            read = self.stdout.read(), if reads_stdout => LoopEvent::Stdout(read),
            read = self.stderr_pipe.read(), if !self.stderr_pipe.ended => LoopEvent::Stderr(read),
            event = self.termination.next_event(), if !is_gone => LoopEvent::Tree(event),
            Some(command) = self.commands.recv() => LoopEvent::Command(command),
            () = until(escalates_at), if !is_gone => LoopEvent::Escalate,
            () = until(ready_by), if !is_gone => LoopEvent::StartTimedOut,
            () = until(quiet_at), if !is_gone => LoopEvent::Quiet,
            () = until(report_at) => LoopEvent::ReportDue,
            why = self.stdin.unwritable(), if writes => LoopEvent::Unwritable(why),
        }
    }

    /// Handles what was read from stdout: whole lines, and at the end the rest.
    fn on_stdout(&mut self, read: io::Result<usize>) {
        // Commands that were sent before the read decide which session the lines are about.
        while let Ok(command) = self.commands.try_recv() {
            self.on_command(command);
        }
        let Ok(count @ 1..) = read else { return self.on_stdout_end() };
        self.stdout.count_read(count);
        self.note_activity();
        let mut buffer = std::mem::take(&mut self.stdout.buffer);
        let mut from = 0;
        let mut search = self.stdout.searched;
        while let Some(at) = memchr::memchr(b'\n', &buffer[search..]) {
            let end = search + at;
            self.on_line(&buffer[from..end]);
            from = end + 1;
            search = from;
        }
        let rest = buffer.split_off(from);
        self.stdout.searched = rest.len();
        self.stdout.buffer = rest;
        if self.stdout.searched > self.line_bytes_max {
            self.stdout.buffer.clear();
            self.stdout.searched = 0;
            let max = self.line_bytes_max;
            self.on_protocol_error(&format!("the agent wrote a line over {max} bytes"));
        }
        if self.stdout.is_drained() {
            self.on_stdout_end();
        }
    }

    /// Handles a last line without a line feed, and the end of stdout. An agent that does not exit
    /// then is terminated.
    fn on_stdout_end(&mut self) {
        let rest = self.stdout.buffer.split();
        if !rest.is_empty() {
            self.on_line(&rest);
        }
        if !self.stdout.ended {
            self.store_held();
            self.stdout.ended = true;
            self.batch.push(Event::AgentClosed(self.run));
            self.termination.on_stdout_closed();
        }
    }

    fn on_protocol_error(&mut self, why: &str) {
        self.termination.kill(ExitReason::Protocol, why);
    }

    /// Drains stderr before a response is handled: those lines were written first, and belong to
    /// the turn that the response settles.
    fn drain_stderr(&mut self) {
        if !self.profile.signals.contains(&Detector::HermesStderr) || self.stderr_pipe.ended {
            return;
        }
        let mut bytes = [0; 16 << 10];
        for _ in 0..STDERR_READS_MAX {
            // From the pipe itself: the runtime may not know yet that it is readable.
            let Ok(count @ 1..) = rustix::io::read(&self.stderr_pipe.pipe, &mut bytes) else {
                return;
            };
            self.stderr_pipe.buffer.extend_from_slice(&bytes[..count]);
            self.on_stderr(Ok(count));
        }
    }

    fn on_stderr(&mut self, read: io::Result<usize>) {
        let bytes = self.stderr_pipe.buffer.split();
        self.stderr_pipe.count_read(*read.as_ref().unwrap_or(&0));
        let ended = !matches!(read, Ok(1..)) || self.stderr_pipe.is_drained();
        let mut matched = Vec::new();
        let mut detect = |line: &str| {
            let signal = self.detector.stderr(line);
            matched.extend(signal.map(|it| (secrets::redacted_cut(line).into_owned(), it)));
        };
        self.stderr.push(&bytes, &mut detect);
        if ended {
            self.stderr_pipe.ended = true;
            self.stderr.finish(&mut detect);
        }
        for (line, signal) in matched {
            // Stderr never waits (AM-40).
            if self.batch.has_reserve() {
                let (run, signal) = (self.run, signal.into());
                self.batch.push(Event::StderrMatched { run, line, signal });
            } else {
                self.stderr.count_dropped();
            }
        }
    }

    fn on_tree_event(&mut self, event: TreeEvent) {
        match event {
            TreeEvent::Started { pid, .. } => {
                self.pid = Some(pid);
                log::info!(
                    target: "greenroom::run", group:% = self.group_id, run:% = self.run, pid,
                    sandbox = self.profile.sandbox.level.name();
                    "run started"
                );
                if let Some(line) = self.first_line.take() {
                    self.stdin.send(line);
                }
            }
            TreeEvent::SpawnFailed { message, .. } => {
                self.termination.kill(ExitReason::StartFailed, &message);
            }
            TreeEvent::Exited { code, signal } => self.termination.on_exited(code, signal),
            TreeEvent::Left { why } => self.termination.on_left(why),
            TreeEvent::Gone => self.on_tree_gone(),
        }
    }

    /// Handles the end of the tree, which cannot write any more. What its pipes hold is read,
    /// however long a commit delays that. The loop does not wait for a foreign process that holds a
    /// pipe open.
    fn on_tree_gone(&mut self) {
        self.termination.on_gone();
        self.stdout.limit_to_written();
        self.stderr_pipe.limit_to_written();
        if self.stdout.is_drained() {
            self.on_stdout(Ok(0));
        }
        if self.stderr_pipe.is_drained() {
            self.on_stderr(Ok(0));
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Prompted { id, line, session } => {
                self.prompt = Some((id, line));
                self.batch.on_prompt(id);
                self.answer = hermes::Answer::default();
                self.tokens.on_prompt(&session);
                self.sessions.set_current(session);
            }
            Command::FollowSession(session) => self.sessions.set_current(session),
            Command::OpenSession(id) => {
                self.sessions.expect_new(id);
                self.stdin.send(acp::new_session_line(id, &self.cwd));
            }
            Command::Stop(how) => self.termination.stop(how),
        }
    }

    fn exit(&mut self) -> Exit {
        if let Some(why) = self.termination.leftovers() {
            log::error!(
                target: "greenroom::run", group:% = self.group_id, run:% = self.run, why;
                "processes of the run may be left; the next run starts beside them"
            );
        }
        let in_start = self.handshake.as_ref().map(Handshake::failed_start);
        let failed_start = self.failed_start.or(in_start).unwrap_or_default();
        Exit { failed_start, ..self.termination.exit(self.pid, &self.stderr) }
    }
}

async fn until(at: Option<Awake>) {
    match at {
        Some(at) => awake::sleep_until(at).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// I15: after a large read the run yields; small ones and all else cost no turn of the thread.
    #[test]
    fn a_large_read_is_long() {
        let cases = [
            (LoopEvent::Stdout(Ok(READ_BYTES / 4)), true),
            (LoopEvent::Stderr(Ok(READ_BYTES)), true),
            (LoopEvent::Stdout(Ok(READ_BYTES / 4 - 1)), false),
            (LoopEvent::Stderr(Ok(0)), false),
            (LoopEvent::Stdout(Err(io::ErrorKind::Other.into())), false),
            (LoopEvent::Escalate, false),
        ];
        for (number, (event, is_long)) in cases.into_iter().enumerate() {
            assert_eq!(event.is_long(), is_long, "case {number}");
        }
    }
}
