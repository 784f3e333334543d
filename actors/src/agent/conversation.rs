//! The loop of one run: reads what the agent says, reports it, and sees the process to its end.

use std::{future::pending, io, path::PathBuf, pin::Pin, rc::Rc, sync::Arc, time::Duration};

use actix::{MailboxError, Recipient};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use greenroom_core::{Event, Exit, ExitReason, Fold, GroupId, Provenance, RunId, SessionId, Stop};
use tokio::{sync::mpsc, task::yield_now};

use super::{
    AgentReport, Heed, Start,
    acp::{self, Notice},
    batch::{Batch, single},
    child::{Child, Keeper, TreeEvent},
    detector::{Detector, Seen},
    opening::{Next, Opening},
    pipe::{Pipe, READ_BYTES},
    sessions::{About, Sessions},
    stderr::Stderr,
    stdin::{Stdin, Unwritable},
    tools::Tools,
};
use crate::{
    awake::{self, Awake},
    profile::Profile,
};

/// From closing stdin to TERM.
const TERM_AFTER: Duration = Duration::from_secs(2);
/// From TERM to KILL.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// Lines in a row that are no message before the agent is taken for broken (RELIABILITY F13).
const REJECTED_MAX: u32 = 10;
/// Of a rejected line, no more than this is kept.
const REJECTED_BYTES_MAX: usize = 64 << 10;
/// How often stderr is read before a turn is settled: one that floods it is not waited for.
const STDERR_READS_MAX: usize = 64;

type Report = Pin<Box<dyn Future<Output = Result<(), MailboxError>>>>;

/// One run's loop.
pub struct Conversation {
    run: RunId,
    group_id: GroupId,
    profile: Arc<Profile>,
    stdin: Rc<Stdin>,
    keeper: Keeper,
    stdout: Pipe,
    stderr_pipe: Pipe,
    stderr: Stderr,
    orders: mpsc::UnboundedReceiver<Heed>,
    group: Recipient<AgentReport>,
    line_bytes_max: usize,
    batch: Batch,
    /// Lines that the group is making durable.
    report: Option<Report>,
    opening: Option<Opening>,
    /// What tells of compactions.
    detector: Detector,
    sessions: Sessions,
    /// The session in force when the batch was begun.
    under: Option<SessionId>,
    tools: Tools,
    /// Where the agent works.
    cwd: PathBuf,
    first_line: Option<String>,
    start_by: Awake,
    pid: Option<u32>,
    rejected: u32,
    ladder: Ladder,
    verdict: Option<(ExitReason, String)>,
    exited: Option<(Option<i32>, Option<i32>)>,
    /// Whether the agent closed its stdin.
    hung_up: bool,
    /// Why something of the process tree may be left.
    left: Option<String>,
    /// Whether nothing else of the process tree is left; until then the pipes are read on.
    gone: bool,
}

/// The stop ladder (ARCHITECTURE 7).
#[derive(Clone, Copy, Debug)]
enum Ladder {
    Unused,
    TermAt(Awake),
    KillAt(Awake),
    Killed,
}

enum Wake {
    Stdout(io::Result<usize>),
    Stderr(io::Result<usize>),
    Tree(TreeEvent),
    Order(Heed),
    Reported(Result<(), MailboxError>),
    Climb,
    Unwritable(Unwritable),
    TooLate,
}

impl Wake {
    /// Whether it takes its time, and there may be more of it.
    fn is_long(&self) -> bool {
        let (Self::Stdout(read) | Self::Stderr(read)) = self else { return false };
        read.as_ref().is_ok_and(|bytes| *bytes >= READ_BYTES / 4)
    }
}

impl Conversation {
    /// The loop for a `child` that was spawned in `cwd`.
    pub fn new(
        start: &Start,
        cwd: PathBuf,
        child: Child,
        stdin: Rc<Stdin>,
        orders: mpsc::UnboundedReceiver<Heed>,
        group: Recipient<AgentReport>,
        line_bytes_max: usize,
    ) -> Self {
        let auth_method = start.profile.auth_method.clone();
        let (opening, first_line) = Opening::new(cwd.clone(), auth_method, start.session.clone());
        stdin.open(child.stdin);
        Self {
            run: start.run,
            group_id: start.group.clone(),
            profile: start.profile.clone(),
            stdin,
            keeper: child.keeper,
            stdout: Pipe::new(child.stdout),
            stderr_pipe: Pipe::new(child.stderr),
            stderr: Stderr::new(start.group.clone(), start.run),
            orders,
            group,
            line_bytes_max,
            batch: Batch::new(start.run),
            report: None,
            opening: Some(opening),
            detector: Detector::new(start.profile.signals),
            sessions: Sessions::default(),
            under: None,
            tools: Tools::default(),
            cwd,
            first_line: Some(first_line),
            start_by: awake::now() + start.profile.start_timeout,
            pid: None,
            rejected: 0,
            ladder: Ladder::Unused,
            verdict: None,
            exited: None,
            hung_up: false,
            left: None,
            gone: false,
        }
    }

    /// Holds the conversation until nothing of the process tree is left, and reports that last.
    ///
    /// Gives way after each long read: a flood would keep the thread from other groups (I15).
    pub async fn hold(mut self) {
        while !self.is_over() {
            if self.report.is_none() && !self.batch.is_empty() {
                let events = self.batch.take();
                let known = self.sessions.in_force().cloned();
                let under = std::mem::replace(&mut self.under, known);
                self.report = Some(Box::pin(self.group.send(AgentReport { events, under })));
            }
            let wake = self.wake().await;
            let long = wake.is_long();
            match wake {
                Wake::Stdout(read) => self.hear(read),
                Wake::Stderr(read) => self.note(read),
                Wake::Tree(event) => self.watch(event),
                Wake::Order(order) => self.obey(order),
                Wake::Reported(Ok(())) => self.report = None,
                Wake::Reported(Err(_)) => {
                    // The group's actor is gone; what it did not store was never seen.
                    self.report = None;
                    self.batch.take();
                    self.end(ExitReason::Stopped, "its group's actor ended");
                }
                Wake::Climb => self.climb(),
                Wake::Unwritable(Unwritable::Stalled) => {
                    self.end(ExitReason::Protocol, "the agent did not read its stdin for 10 s");
                }
                Wake::Unwritable(Unwritable::HungUp) => {
                    self.hung_up = true;
                    self.ladder = Ladder::TermAt(awake::now() + TERM_AFTER);
                }
                Wake::TooLate => {
                    let waited = self.profile.start_timeout.as_millis();
                    let why = format!("it was not ready within {waited} ms");
                    self.end(ExitReason::StartFailed, &why);
                }
            }
            if long {
                yield_now().await;
            }
        }
        let exit = self.exit();
        let exited = Event::AgentExited { run: self.run, exit };
        // If the group's actor is gone, its successor finds the run in the database.
        _ = self.group.send(AgentReport::of(exited)).await;
    }

    fn is_over(&self) -> bool {
        let is_quiet = self.report.is_none() && self.batch.is_empty();
        self.gone && self.stdout.ended && self.stderr_pipe.ended && is_quiet
    }

    async fn wake(&mut self) -> Wake {
        let hears = !self.stdout.ended && self.batch.has_room();
        let climb = match self.ladder {
            Ladder::TermAt(at) | Ladder::KillAt(at) => Some(at),
            Ladder::Unused | Ladder::Killed => None,
        };
        let start_by = self.opening.is_some().then_some(self.start_by);
        let start_by = start_by.filter(|_| self.verdict.is_none());
        let gone = self.gone;
        let writes = self.verdict.is_none() && matches!(self.ladder, Ladder::Unused);
        let report = async {
            match &mut self.report {
                Some(report) => report.await,
                None => pending().await,
            }
        };
        tokio::select! {
            reported = report => Wake::Reported(reported),
            read = self.stdout.read(), if hears => Wake::Stdout(read),
            read = self.stderr_pipe.read(), if !self.stderr_pipe.ended => Wake::Stderr(read),
            event = self.keeper.next(), if !gone => Wake::Tree(event),
            Some(order) = self.orders.recv() => Wake::Order(order),
            () = until(climb), if !gone => Wake::Climb,
            () = until(start_by), if !gone => Wake::TooLate,
            why = self.stdin.unwritable(), if writes => Wake::Unwritable(why),
        }
    }

    /// Takes in what was read from stdout: whole lines, and at the end what is left.
    fn hear(&mut self, read: io::Result<usize>) {
        // What was ordered before it was read says what it is about.
        while let Ok(order) = self.orders.try_recv() {
            self.obey(order);
        }
        let Ok(count @ 1..) = read else { return self.hear_the_end() };
        self.stdout.took(count);
        let mut buffer = std::mem::take(&mut self.stdout.buffer);
        let mut from = 0;
        let mut search = self.stdout.searched;
        while let Some(at) = memchr::memchr(b'\n', &buffer[search..]) {
            let end = search + at;
            self.line(&buffer[from..end]);
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
            self.end(ExitReason::Protocol, &format!("the agent wrote a line over {max} bytes"));
        }
        if self.stdout.is_drained() {
            self.hear_the_end();
        }
    }

    /// Takes in a last line without a line feed: no more comes from stdout.
    fn hear_the_end(&mut self) {
        let rest = self.stdout.buffer.split();
        if !rest.is_empty() {
            self.line(&rest);
        }
        self.close();
    }

    /// The agent closed its stdout. One that does not end by itself then is ended.
    fn close(&mut self) {
        if self.stdout.ended {
            return;
        }
        self.stdout.ended = true;
        self.batch.push(Event::AgentClosed(self.run));
        if matches!(self.ladder, Ladder::Unused) {
            self.stdin.close();
            self.ladder = Ladder::TermAt(awake::now() + TERM_AFTER);
        }
    }

    fn line(&mut self, bytes: &[u8]) {
        // What comes behind a broken line means nothing any more.
        if matches!(self.verdict, Some((ExitReason::Protocol, _))) {
            return;
        }
        // A carriage return is white space in JSON and a line's end in Server-Sent Events.
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        if bytes.len() > self.line_bytes_max {
            let max = self.line_bytes_max;
            return self
                .end(ExitReason::Protocol, &format!("the agent wrote a line over {max} bytes"));
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            return self.reject(bytes, "it is not UTF-8".into());
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let replaced;
        let text = if memchr::memchr(b'\r', text.as_bytes()).is_some() {
            replaced = text.replace('\r', " ");
            &replaced
        } else {
            text
        };
        match acp::hear(text) {
            Ok(heard) => {
                self.rejected = 0;
                self.message(text, heard);
            }
            Err(acp::NotHeard::NoMessage(reason)) => self.reject(bytes, reason),
            Err(err @ acp::NotHeard::TooDeep) => {
                self.reject(bytes, err.to_string());
                self.end(ExitReason::Protocol, "the agent wrote JSON that nests too deep");
            }
        }
    }

    fn message(&mut self, line: &str, heard: acp::Heard<'_>) {
        match heard {
            acp::Heard::Notice(notice) => {
                let replay = notice.kind == "session/update"
                    && self.opening.as_mut().is_some_and(Opening::is_replay);
                if !replay {
                    self.notice(line, notice);
                }
            }
            acp::Heard::Permission { mut asked, tool } => {
                let known = tool.as_deref().and_then(|tool| self.tools.kind(tool));
                asked.tool_kind = asked.tool_kind.or_else(|| known.map(str::to_owned));
                let lines = single(line, "session/request_permission".into());
                self.batch.push(Event::PermissionAsked { run: self.run, lines, asked });
            }
            acp::Heard::Request { id, kind, private } => {
                self.stdin.send(acp::refusal_line(id));
                if private {
                    let (run, method) = (self.run, kind.into_owned());
                    log::warn!(run:%, method; "agent request refused");
                    self.batch.push(Event::RequestRefused { run, method });
                } else {
                    let fold = Fold { output: true, ..Fold::default() };
                    self.batch.say(line, kind, fold);
                }
            }
            acp::Heard::Response { id, outcome } => match &mut self.opening {
                Some(opening) => {
                    let provenance =
                        outcome.as_ref().ok().and_then(|result| self.detector.answer(result));
                    if let Some(next) = opening.answered(id, outcome) {
                        self.open(next, provenance);
                    }
                }
                None if self.sessions.answered(id) => {
                    let opened = self.another_session(outcome);
                    self.batch.push(Event::SessionOpened { run: self.run, id, opened });
                }
                None => {
                    self.note_what_is_there();
                    let reply = acp::prompt_reply(outcome);
                    self.batch.push(Event::PromptAnswered { run: self.run, id, reply });
                }
            },
        }
    }

    /// A notification: kept first, and then what it tells of the context, so that the frame belongs
    /// to the segment that the boundary closes. One that is about another session is said in that.
    fn notice(&mut self, line: &str, notice: Notice<'_>) {
        let run = self.run;
        let moved = match self.sessions.about(notice.session.as_deref()) {
            About::Own => None,
            About::Other => return self.batch.say(line, notice.kind, Fold::default()),
            About::Moved(session) => Some(session),
        };
        if let Some(session) = moved {
            self.batch.push(Event::SessionNamed { run, session });
        }
        self.batch.say(line, notice.kind, notice.fold);
        if let Some((tool, kind)) = notice.tool_kind.map(|told| *told) {
            self.tools.tell(tool, kind);
        }
        let Some(clues) = notice.clues else { return };
        let Seen { signal, provenance } = self.detector.update(*clues);
        if let Some(signal) = signal {
            self.batch.push(Event::Signalled { run, signal: signal.into() });
        }
        if let Some(provenance) = provenance {
            self.batch.push(Event::ProvenanceGiven { run, provenance });
        }
    }

    fn another_session(
        &mut self,
        outcome: Result<&str, acp::RpcError>,
    ) -> Result<(SessionId, Option<Provenance>), String> {
        let result = outcome.map_err(|err| format!("the agent refused another session: {err}"))?;
        let session = acp::new_session(result)?;
        self.sessions.know(session.clone());
        Ok((session, self.detector.answer(result)))
    }

    fn open(&mut self, next: Next, provenance: Option<Provenance>) {
        match next {
            Next::Ask(line) => self.stdin.send(line),
            Next::Ready(session, continuity) => {
                self.opening = None;
                self.sessions.enter(session.clone());
                let (run, pid) = (self.run, self.pid.unwrap_or_default());
                let ready = Event::AgentReady { run, pid, session, continuity, provenance };
                self.batch.push(ready);
            }
            Next::Fail(why) => self.end(ExitReason::StartFailed, &why),
        }
    }

    fn reject(&mut self, bytes: &[u8], reason: String) {
        self.rejected += 1;
        let kept = &bytes[..bytes.len().min(REJECTED_BYTES_MAX)];
        let bytes = STANDARD.encode(kept);
        self.batch.push(Event::OutputRejected { run: self.run, reason, bytes });
        if self.rejected == REJECTED_MAX {
            let why = format!("the agent wrote {REJECTED_MAX} lines in a row that are no message");
            self.end(ExitReason::Protocol, &why);
        }
    }

    /// Takes in what is in the stderr pipe already: it was written before what comes next from
    /// stdout, and belongs to the turn that that settles.
    fn note_what_is_there(&mut self) {
        if !self.profile.signals.hermes_stderr || self.stderr_pipe.ended {
            return;
        }
        let mut bytes = [0; 16 << 10];
        for _ in 0..STDERR_READS_MAX {
            // From the pipe itself: the runtime may not have been told yet that there is something.
            let Ok(count @ 1..) = rustix::io::read(&self.stderr_pipe.pipe, &mut bytes) else {
                return;
            };
            self.stderr_pipe.buffer.extend_from_slice(&bytes[..count]);
            self.note(Ok(count));
        }
    }

    fn note(&mut self, read: io::Result<usize>) {
        let bytes = self.stderr_pipe.buffer.split();
        self.stderr_pipe.took(*read.as_ref().unwrap_or(&0));
        let ended = !matches!(read, Ok(1..)) || self.stderr_pipe.is_drained();
        let mut matched = Vec::new();
        let mut listen = |line: &str| {
            matched.extend(self.detector.stderr(line).map(|signal| (line.to_owned(), signal)));
        };
        self.stderr.take(&bytes, &mut listen);
        if ended {
            self.stderr_pipe.ended = true;
            self.stderr.finish(&mut listen);
        }
        for (line, signal) in matched {
            // Stderr never waits (SEEDS AM-40).
            if self.batch.has_room_for_few() {
                let (run, signal) = (self.run, signal.into());
                self.batch.push(Event::StderrMatched { run, line, signal });
            } else {
                self.stderr.drop_one();
            }
        }
    }

    fn watch(&mut self, event: TreeEvent) {
        match event {
            TreeEvent::Started { pid, .. } => {
                self.pid = Some(pid);
                log::info!(
                    target: "greenroom::run", group:% = self.group_id, run:% = self.run, pid;
                    "run started"
                );
                if let Some(line) = self.first_line.take() {
                    self.stdin.send(line);
                }
            }
            TreeEvent::SpawnFailed { message, .. } => self.end(ExitReason::StartFailed, &message),
            TreeEvent::Exited { code, signal } => self.exited = Some((code, signal)),
            TreeEvent::Left { why } => self.left = Some(why),
            TreeEvent::Gone => self.read_last_words(),
        }
    }

    /// The tree is gone, and cannot write any more. Whatever stands in its pipes is read, however
    /// long a commit holds the reader up. Something else that holds a pipe open is not waited for.
    fn read_last_words(&mut self) {
        self.gone = true;
        self.stdout.writers_are_gone();
        self.stderr_pipe.writers_are_gone();
        if self.stdout.is_drained() {
            self.hear(Ok(0));
        }
        if self.stderr_pipe.is_drained() {
            self.note(Ok(0));
        }
    }

    fn obey(&mut self, order: Heed) {
        match (order, self.ladder) {
            (Heed::Prompted(session), _) => self.sessions.enter(session),
            (Heed::OpenSession(id), _) => {
                self.sessions.ask(id);
                self.stdin.send(acp::new_session_line(id, &self.cwd));
            }
            (Heed::Kill, _) => self.end(ExitReason::Stopped, "stopped by greenroom"),
            (Heed::Stop(how), Ladder::Unused | Ladder::TermAt(_)) => {
                self.verdict.get_or_insert((ExitReason::Stopped, "stopped by greenroom".into()));
                self.stdin.close();
                let now = awake::now();
                self.ladder = match how {
                    Stop::Gently => Ladder::TermAt(now + TERM_AFTER),
                    Stop::Firmly => Ladder::TermAt(now),
                };
            }
            (Heed::Stop(_), Ladder::KillAt(_) | Ladder::Killed) => {}
        }
    }

    fn climb(&mut self) {
        self.ladder = match self.ladder {
            Ladder::TermAt(_) => {
                if self.hung_up && self.exited.is_none() {
                    self.judge(ExitReason::Protocol, "the agent closed its stdin");
                }
                self.keeper.terminate();
                Ladder::KillAt(awake::now() + KILL_AFTER)
            }
            Ladder::Unused | Ladder::KillAt(_) | Ladder::Killed => {
                self.keeper.kill();
                Ladder::Killed
            }
        };
    }

    /// Says why the run ends; the first reason stays.
    fn judge(&mut self, reason: ExitReason, why: &str) {
        let reason = match reason {
            ExitReason::Protocol if self.opening.is_some() => ExitReason::StartFailed,
            reason => reason,
        };
        self.verdict.get_or_insert_with(|| (reason, why.to_owned()));
    }

    /// Kills the tree, for this reason if it is the first.
    fn end(&mut self, reason: ExitReason, why: &str) {
        self.judge(reason, why);
        self.stdin.close();
        self.keeper.kill();
        self.ladder = Ladder::Killed;
    }

    fn exit(&mut self) -> Exit {
        let (code, signal) = self.exited.unwrap_or_default();
        let how = match (code, signal) {
            (Some(code), _) => format!("the agent exited with code {code}"),
            (None, Some(signal)) => format!("the agent was ended by signal {signal}"),
            (None, None) => "the agent is gone and left no exit code".into(),
        };
        let (reason, detail) = match self.verdict.take() {
            Some(verdict) => verdict,
            None if self.opening.is_some() => {
                (ExitReason::StartFailed, format!("{how} before it was ready"))
            }
            None => (ExitReason::Exited, how),
        };
        let detail = match self.left.take() {
            Some(why) => {
                log::error!(
                    target: "greenroom::run", group:% = self.group_id, run:% = self.run, why;
                    "processes of the run may be left; the next run starts beside them"
                );
                format!("{detail}; {why}")
            }
            None => detail,
        };
        let (stderr_tail, stderr_dropped) = (self.stderr.tail(), self.stderr.dropped());
        Exit { pid: self.pid, code, signal, reason, detail, stderr_tail, stderr_dropped }
    }
}

async fn until(at: Option<Awake>) {
    match at {
        Some(at) => awake::sleep_until(at).await,
        None => pending().await,
    }
}
