//! Checks that the agent of a profile can be used: starts it as a group would, opens a session, and
//! stops it. Uses the run's own actor, so the check sees what a group would see.
//!
//! Changes no group and no database. The process tree is gone when the check ends; a check that is
//! killed leaves that to the shim.

use std::{ffi::OsStr, path::PathBuf, sync::Arc, time::Instant};

use actix::{Actor, Context, Handler, Recipient};
use greenroom_core::{Event, Exit, ExitReason, GroupId, RunId, Stop};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::{
    Agent, AgentCommand, AgentLauncher, AgentReport, NOT_READY, Start, termination::BEFORE_READY,
};
use crate::{
    acp::{self, AgentCard, Modes, RpcError},
    clock,
    pool::{Evict, PoolRequest, UsageCell},
    profile::Profile,
    secrets,
    working_dir::Place,
};

/// How many of the last lines on stderr are shown.
const STDERR_LINES: usize = 5;

/// A response of the handshake, as a [`Start::observer`] gets it.
#[derive(Debug)]
pub struct Answered {
    /// The method of the request.
    pub method: &'static str,
    /// The result as the agent wrote it, or its error.
    pub outcome: Result<String, RpcError>,
}

/// What a check found.
#[derive(Debug, Default, Serialize)]
pub struct Findings {
    /// What the agent says about itself, if it answered `initialize`.
    pub agent: Option<AgentCard>,
    /// The modes of the session, if it was opened.
    pub modes: Option<Modes>,
    /// Why the agent cannot be used.
    pub problem: Option<Problem>,
    /// The last lines on stderr, if there is a problem.
    pub stderr: Vec<String>,
    /// The time until the session was open, or until the problem showed. Milliseconds.
    pub took_ms: u64,
}

/// Why an agent cannot be used.
#[derive(Debug, PartialEq, Serialize)]
pub struct Problem {
    /// Its kind.
    pub kind: ProblemKind,
    /// What happened.
    pub message: String,
}

/// The kind of a problem, which decides what mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// The program does not exist, or is not executable.
    CommandNotFound,
    /// The system could not start the program.
    CannotStart,
    /// The process ended before a session was open.
    Exited,
    /// No session was open within `start_timeout`.
    Timeout,
    /// The agent wants a login.
    AuthRequired,
    /// The agent answered a request of the handshake with another error.
    Refused,
    /// What it wrote is not the ACP that greenroom speaks.
    Protocol,
}

/// Starts the agent of `profile` in `dir`, which is created, and opens a session. `inherited` is
/// the `PATH` of this process. Must run in an actix system.
pub async fn check(
    profile: Arc<Profile>,
    launcher: AgentLauncher,
    dir: PathBuf,
    inherited: Option<&OsStr>,
) -> Findings {
    if let Err(message) = profile.find_program(inherited) {
        let problem = Some(Problem { kind: ProblemKind::CommandNotFound, message });
        return Findings { problem, ..Findings::default() };
    }
    let started = Instant::now();
    let (observer, mut answers) = mpsc::unbounded_channel();
    let (to_check, mut events) = mpsc::unbounded_channel();
    let (alive, died) = oneshot::channel();
    let run = clock::run_id();
    // A profile's name is shorter than a group's, and of the same characters.
    let group = format!("check:{}", profile.name).parse::<GroupId>();
    let start = Start {
        run,
        group: group.unwrap_or_else(|_| unreachable!("a valid name")),
        profile,
        temporary: dir.with_extension("tmp"),
        kept: None,
        place: Place::Own(dir),
        session: None,
        may_replace: false,
        alive,
        observer: Some(observer),
    };
    let host = Host { events: to_check }.start();
    let request = PoolRequest { usage: UsageCell::default(), group: host.clone().recipient() };
    let agent = Agent::new(start, launcher, request, host.recipient()).start().recipient();
    let mut findings = Findings::default();
    let mut took = None;
    let exit = follow(run, &agent, &mut events, died, || {
        took.get_or_insert(started.elapsed());
    })
    .await;
    let elapsed = took.unwrap_or_else(|| started.elapsed());
    findings.took_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let mut is_refused = false;
    while let Ok(Answered { method, outcome }) = answers.try_recv() {
        match outcome.as_deref().map(secrets::redacted) {
            Ok(result) if method == "initialize" => findings.agent = Some(acp::agent_card(&result)),
            Ok(result) if method == "session/new" => findings.modes = Some(acp::modes(&result)),
            Ok(_) => {}
            Err(_) => is_refused = true,
        }
    }
    if took.is_none() {
        findings.problem = Some(problem(&exit, is_refused));
        let lines: Vec<&str> = exit.stderr_tail.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(STDERR_LINES)..];
        findings.stderr = last.iter().map(|line| (*line).to_owned()).collect();
    }
    findings
}

/// Follows the run to its exit; stops it once it is ready, after a call of `on_ready`.
async fn follow(
    run: RunId,
    agent: &Recipient<AgentCommand>,
    events: &mut mpsc::UnboundedReceiver<Event>,
    died: oneshot::Receiver<()>,
    mut on_ready: impl FnMut(),
) -> Exit {
    let follow = async {
        while let Some(event) = events.recv().await {
            match event {
                Event::AgentReady { .. } => {
                    on_ready();
                    agent.do_send(AgentCommand::Stop(Stop::Firmly));
                }
                Event::AgentExited { exit, .. } => return Some(exit),
                _ => {}
            }
        }
        None
    };
    tokio::select! {
        biased;
        exit = follow => exit,
        _ = died => None,
    }
    .unwrap_or_else(|| Exit::unseen(ExitReason::StartFailed, format!("run {run} panicked")))
}

/// Returns why a run that ended before it was ready did so. `is_refused`: its agent answered a
/// request with an error.
fn problem(exit: &Exit, is_refused: bool) -> Problem {
    let kind = match exit.reason {
        ExitReason::AgentAuth => ProblemKind::AuthRequired,
        _ if is_refused => ProblemKind::Refused,
        _ if exit.detail.starts_with(NOT_READY) => ProblemKind::Timeout,
        _ if exit.pid.is_none() => ProblemKind::CannotStart,
        _ if exit.detail.ends_with(BEFORE_READY) => ProblemKind::Exited,
        _ => ProblemKind::Protocol,
    };
    Problem { kind, message: exit.detail.clone() }
}

/// Stands for the group of the run.
struct Host {
    events: mpsc::UnboundedSender<Event>,
}

impl Actor for Host {
    type Context = Context<Self>;
}

impl Handler<AgentReport> for Host {
    type Result = ();

    fn handle(&mut self, report: AgentReport, _: &mut Self::Context) {
        for event in report.events {
            // The check may have ended.
            _ = self.events.send(event);
        }
    }
}

impl Handler<Evict> for Host {
    type Result = bool;

    fn handle(&mut self, _: Evict, _: &mut Self::Context) -> bool {
        false
    }
}
