//! The actor of one run of one agent: acquires a place, spawns the process, runs its loop.
//!
//! It reports to its group and knows no queue. It decides only what is a line, what is a message,
//! and when a stopping process is killed.

mod batch;
pub mod check;
pub mod compaction_detector;
pub mod confine;
mod handshake;
pub mod hermes;
mod noise;
mod run_loop;
mod stderr;
mod stdin;
mod termination;
mod tool_kinds;

use std::{any::Any, path::PathBuf, rc::Rc, sync::Arc};

use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, AsyncContext as _, Context, Handler, Message,
    Recipient, WrapFuture as _,
};
use greenroom_core::{Event, Exit, ExitReason, GroupId, RunId, SessionId, Stop};
use tokio::sync::{mpsc, oneshot};

use self::{check::Answered, confine::Sandboxes, run_loop::RunLoop, stdin::Stdin};
use crate::{
    pool::{AgentPool, PoolPermit, PoolRequest},
    process::{
        child::{self, Counters, Heartbeat, Launch},
        environment::Environment,
        proc::Marker,
    },
    profile::Profile,
    working_dir::{Place, WorkingDir},
};

/// Variables that every agent inherits from the server's environment, besides `LC_*`.
const BASICS: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR"];

/// How the detail of a run's exit begins, if it was not ready within `start_timeout`.
const NOT_READY: &str = "it was not ready within";

/// Everything that all agents of a server share.
#[derive(Clone, Debug)]
pub struct AgentLauncher {
    /// This very program, which is also the shim.
    pub shim: PathBuf,
    /// The arguments that make it the shim.
    pub shim_args: Vec<String>,
    /// The thread that sends heartbeats to all shims.
    pub heartbeat: Heartbeat,
    /// The marker of all processes that belong to this data directory.
    pub data: Marker,
    /// The longest line from an agent, bytes.
    pub line_bytes_max: usize,
    /// The environment of which agents inherit a part.
    pub environment: Environment,
    /// The soft limit of open files for an agent whose profile sets none: the server's own limit
    /// before it was raised, as programs that use select(2) break above 1024. `None`: unlimited.
    pub open_files: Option<u64>,
    /// The pool of places for their processes.
    pub pool: AgentPool,
    pub counters: Counters,
    /// What all sandboxes have in common.
    pub sandboxes: Arc<Sandboxes>,
}

/// One run to start.
#[derive(Debug)]
pub struct Start {
    /// Its id.
    pub run: RunId,
    /// Its group.
    pub group: GroupId,
    /// How it is launched.
    pub profile: Arc<Profile>,
    /// Where it works.
    pub place: Place,
    /// Its own directory for temporary files, if it has a sandbox.
    pub temporary: PathBuf,
    /// Dropped when its processes are gone.
    pub kept: Option<Arc<dyn Any + Send + Sync>>,
    /// The session to restore.
    pub session: Option<SessionId>,
    /// Whether a new session may replace it if the agent does not restore it.
    pub may_replace: bool,
    /// Dropped with the run's actor: also by a panic, which actix does not report.
    pub alive: oneshot::Sender<()>,
    /// Receives each response of the handshake.
    pub observer: Option<mpsc::UnboundedSender<Answered>>,
}

/// Events of a run, in order. The answer comes once they are durable: this is the back-pressure
/// that reaches the agent's pipe.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AgentReport {
    /// The events.
    pub events: Vec<Event>,
}

impl AgentReport {
    /// Creates a report of one event.
    pub fn single(event: Event) -> Self {
        Self { events: vec![event] }
    }
}

/// A command from the group.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub enum AgentCommand {
    /// Write a line to the agent.
    Send(String),
    /// Write the line of a cancel to the agent.
    Cancel(String),
    /// Write the prompt with this id to the agent, for this session.
    Prompt(String, u64, SessionId),
    /// Read what the agent reports of this session, to which it moved.
    FollowSession(SessionId),
    /// Request a new session from the agent, by a request with this id.
    OpenSession(u64),
    /// Stop its process tree.
    Stop(Stop),
}

type Commands = mpsc::UnboundedReceiver<Command>;

/// A command to the run's loop.
#[derive(Debug)]
enum Command {
    /// The prompt with this id is the line with this number, and for this session.
    Prompted {
        id: u64,
        line: u64,
        session: SessionId,
    },
    FollowSession(SessionId),
    OpenSession(u64),
    Stop(Stop),
}

/// One run of one agent.
pub struct Agent {
    start: Start,
    launcher: AgentLauncher,
    request: Option<PoolRequest>,
    group: Recipient<AgentReport>,
    stdin: Rc<Stdin>,
    to_loop: mpsc::UnboundedSender<Command>,
    commands: Option<Commands>,
}

impl Agent {
    /// Creates the actor of a run: it acquires a place when it starts, and then spawns the agent.
    pub fn new(
        start: Start,
        launcher: AgentLauncher,
        request: PoolRequest,
        group: Recipient<AgentReport>,
    ) -> Self {
        let (to_loop, commands) = mpsc::unbounded_channel();
        let (stdin, request, commands) = (Rc::default(), Some(request), Some(commands));
        Self { start, launcher, request, group, stdin, to_loop, commands }
    }

    /// Returns the program: `greenroom` is this very binary; the spawn looks up any other name.
    fn program(&self) -> PathBuf {
        match &*self.start.profile {
            profile if profile.is_greenroom() => self.launcher.shim.clone(),
            profile => profile.command.clone(),
        }
    }

    /// Spawns the process, which holds the run's place until its tree is gone.
    fn spawn(&self, cwd: WorkingDir, permit: PoolPermit) -> std::io::Result<child::Child> {
        let profile = &self.start.profile;
        let mut env = environment(profile, &self.launcher.environment);
        let confinement = self.launcher.sandboxes.confine(profile, &self.start.temporary, &mut env);
        child::spawn(
            Launch {
                shim: self.launcher.shim.clone(),
                shim_args: self.launcher.shim_args.clone(),
                command: self.program(),
                args: profile.args.clone(),
                env,
                cwd,
                umask: profile.umask,
                no_new_privs: profile.no_new_privs,
                confinement,
                rlimits: profile.rlimits.clone(),
                open_files: self.launcher.open_files,
                run: Marker::run(self.start.run),
                data: self.launcher.data.clone(),
                counters: self.launcher.counters.clone(),
            },
            &self.launcher.heartbeat,
            (permit, self.start.kept.clone()),
        )
    }

    /// Spawns the process and runs its loop.
    fn start_loop(
        &mut self,
        cwd: std::io::Result<WorkingDir>,
        permit: PoolPermit,
        commands: Commands,
        ctx: &mut Context<Self>,
    ) {
        let spawned = cwd.and_then(|cwd| Ok((self.spawn(cwd.clone(), permit)?, cwd)));
        match spawned {
            Ok((child, cwd)) => {
                let run_loop = RunLoop::new(
                    &self.start,
                    cwd.path().to_owned(),
                    child,
                    self.stdin.clone(),
                    commands,
                    self.group.clone(),
                    self.launcher.line_bytes_max,
                );
                ctx.spawn(run_loop.run().into_actor(self).map(|(), _, ctx| ctx.stop()));
            }
            Err(err) => self.fail(Exit::unseen(ExitReason::StartFailed, err.to_string()), ctx),
        }
    }

    /// Reports the end of a run without a process.
    fn fail(&self, exit: Exit, ctx: &mut Context<Self>) {
        let exited = Event::AgentExited { run: self.start.run, exit };
        self.group.do_send(AgentReport::single(exited));
        ctx.stop();
    }
}

/// Waits for the run's place; `Err` if the run is stopped before. No timeout runs meanwhile.
async fn wait_for_place(
    granted: oneshot::Receiver<()>,
    mut commands: Commands,
) -> Result<Commands, Exit> {
    let stopped = async {
        while let Some(command) = commands.recv().await {
            if matches!(command, Command::Stop(_)) {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = stopped => {
            let why = "stopped by greenroom while it waited for a place among resident_agents";
            return Err(Exit::unseen(ExitReason::Stopped, why));
        }
        granted = granted => granted.map_err(|_| {
            let why = "the pool of places for agents is gone";
            Exit::unseen(ExitReason::StartFailed, why)
        })?,
    }
    Ok(commands)
}

impl Actor for Agent {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (Some(commands), Some(request)) = (self.commands.take(), self.request.take()) else {
            return;
        };
        let (permit, granted) = self.launcher.pool.acquire(self.start.run, request);
        // Opened again for each start: it may have been moved since the group's settings named it.
        let cwd = self.start.place.clone().open(self.start.profile.clone());
        let placed = async move {
            let commands = wait_for_place(granted, commands).await?;
            Ok((commands, cwd.await))
        };
        ctx.spawn(placed.into_actor(self).map(|placed, agent, ctx| match placed {
            Ok((commands, cwd)) => agent.start_loop(cwd, permit, commands, ctx),
            Err(exit) => agent.fail(exit, ctx),
        }));
    }
}

impl Handler<AgentCommand> for Agent {
    type Result = ();

    fn handle(&mut self, command: AgentCommand, _: &mut Self::Context) {
        // The commands to a run that is over are lost.
        match command {
            AgentCommand::Send(line) => self.stdin.send(line),
            AgentCommand::Cancel(line) => self.stdin.send_cancel(line),
            AgentCommand::Prompt(line, id, session) => {
                let number = self.stdin.sent() + 1;
                _ = self.to_loop.send(Command::Prompted { id, line: number, session });
                self.stdin.send(line);
            }
            AgentCommand::FollowSession(session) => {
                _ = self.to_loop.send(Command::FollowSession(session));
            }
            AgentCommand::OpenSession(id) => _ = self.to_loop.send(Command::OpenSession(id)),
            AgentCommand::Stop(how) => _ = self.to_loop.send(Command::Stop(how)),
        }
    }
}

/// Returns the agent's whole environment: the basics and the variables that its profile passes on,
/// then the variables that it sets (C11).
fn environment(profile: &Profile, inherited: &Environment) -> Vec<(String, String)> {
    let passed = inherited.iter().filter(|(key, _)| {
        let is_passed = BASICS.contains(key)
            || key.starts_with("LC_")
            || profile.env_pass.iter().any(|passed| passed == key);
        is_passed && !profile.env.contains_key(*key)
    });
    let passed = passed.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let own = profile.env.iter().map(|(key, value)| (key.clone(), value.clone()));
    passed.chain(own).collect()
}
