//! One run of one agent: spawned through the shim, lines in and out, and how it ended.
//!
//! The actor reports to its group and knows no queue. It decides nothing but what is a line, what
//! is a message, and when a process that was told to end has had long enough.

pub mod acp;
mod batch;
mod bounds;
pub mod cgroup;
pub mod child;
mod conversation;
pub mod detector;
pub mod hermes;
mod opening;
mod pipe;
pub mod sessions;
pub mod shim;
mod stderr;
mod stdin;
mod tools;
pub mod tree;

use std::{
    ffi::OsString, fs::DirBuilder, os::unix::fs::DirBuilderExt as _, path::PathBuf, rc::Rc,
    sync::Arc,
};

use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, AsyncContext as _, Context, Handler, Message,
    Recipient, WrapFuture as _,
};
use greenroom_core::{Event, Exit, ExitReason, GroupId, RunId, SessionId, Stop};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, oneshot};

use self::{
    child::{Heartbeat, Launch},
    conversation::Conversation,
    stdin::Stdin,
    tree::Marker,
};
use crate::{
    profile::{Profile, look_apart},
    residents::{Residency, Residents, Wish},
};

/// Variables that every agent gets from the server's environment, beside `LC_*`.
const BASICS: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR"];

/// What all agents of a server share.
#[derive(Clone, Debug)]
pub struct Nursery {
    /// This very program, which is the shim too.
    pub shim: PathBuf,
    /// The arguments that make it the shim.
    pub shim_args: Vec<String>,
    /// The thread that tells all shims that the server lives.
    pub heartbeat: Heartbeat,
    /// The mark of all processes that belong to this data directory.
    pub data: Marker,
    /// One line from an agent, bytes.
    pub line_bytes_max: usize,
    /// Open files that an agent gets which its profile says nothing of: the server's own limit from
    /// before it was raised, as programs that use select(2) break above 1024. `None`: unlimited.
    pub open_files: Option<u64>,
    /// The places for their processes.
    pub residents: Residents,
    /// Counts what outlived its keeper and was killed.
    pub reaped: Counter,
}

/// One run to start.
#[derive(Debug)]
pub struct Start {
    /// Its name.
    pub run: RunId,
    /// The group it is for.
    pub group: GroupId,
    /// How it is launched.
    pub profile: Arc<Profile>,
    /// Its working directory, if somebody named one.
    pub cwd: Option<PathBuf>,
    /// The directory that is the group's own, made when it is needed.
    pub own_dir: PathBuf,
    /// The session to take up again.
    pub session: Option<SessionId>,
    /// Dropped with the run's actor: also by a panic, which actix says nothing of.
    pub lives: oneshot::Sender<()>,
}

/// What happened in a run, in order. Answered once it is durable: that is the back-pressure that
/// reaches the agent's pipe.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AgentReport {
    /// What happened.
    pub events: Vec<Event>,
    /// The session that was in force, as far as the run knew, when the first of it was read.
    pub under: Option<SessionId>,
}

impl AgentReport {
    /// Something that is about no session.
    pub fn of(event: Event) -> Self {
        Self { events: vec![event], under: None }
    }
}

/// An order from the group.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub enum Order {
    /// Write a line to the agent.
    Send(String),
    /// Write a prompt to the agent, for this session.
    Prompt(String, SessionId),
    /// Have it open another session, by a request with this id.
    OpenSession(u64),
    /// End its process tree.
    Stop(Stop),
    /// Kill its process tree at once.
    Kill,
}

type Heeds = mpsc::UnboundedReceiver<Heed>;

/// What the conversation with an agent heeds.
#[derive(Debug)]
enum Heed {
    Prompted(SessionId),
    OpenSession(u64),
    Stop(Stop),
    Kill,
}

/// One run of one agent.
pub struct Agent {
    start: Start,
    nursery: Nursery,
    wish: Option<Wish>,
    group: Recipient<AgentReport>,
    stdin: Rc<Stdin>,
    orders: mpsc::UnboundedSender<Heed>,
    heeds: Option<Heeds>,
}

impl Agent {
    /// A run that asks for its place when the actor starts, and is spawned when it has it.
    pub fn new(start: Start, nursery: Nursery, wish: Wish, group: Recipient<AgentReport>) -> Self {
        let (orders, heeds) = mpsc::unbounded_channel();
        let (stdin, wish, heeds) = (Rc::default(), Some(wish), Some(heeds));
        Self { start, nursery, wish, group, stdin, orders, heeds }
    }

    /// `greenroom` is this very binary; another name is looked up at the spawn.
    fn command(&self) -> PathBuf {
        match &self.start.profile.command {
            own if own.as_os_str() == "greenroom" => self.nursery.shim.clone(),
            command => command.clone(),
        }
    }

    /// The process has the run's place until nothing of its tree is left.
    fn spawn(&self, cwd: PathBuf, residency: Residency) -> std::io::Result<child::Child> {
        let profile = &self.start.profile;
        child::spawn(
            Launch {
                shim: self.nursery.shim.clone(),
                shim_args: self.nursery.shim_args.clone(),
                command: self.command(),
                args: profile.args.clone(),
                env: environment(profile, std::env::vars_os()),
                cwd,
                umask: profile.umask,
                no_new_privs: profile.no_new_privs,
                rlimits: profile.rlimits.clone(),
                open_files: self.nursery.open_files,
                run: Marker::run(self.start.run),
                data: self.nursery.data.clone(),
                reaped: self.nursery.reaped.clone(),
            },
            &self.nursery.heartbeat,
            residency,
        )
    }

    /// Starts the process and holds the conversation with it.
    fn begin(
        &mut self,
        cwd: std::io::Result<PathBuf>,
        residency: Residency,
        heeds: Heeds,
        ctx: &mut Context<Self>,
    ) {
        let spawned = cwd.and_then(|cwd| Ok((self.spawn(cwd.clone(), residency)?, cwd)));
        match spawned {
            Ok((child, cwd)) => {
                let conversation = Conversation::new(
                    &self.start,
                    cwd,
                    child,
                    self.stdin.clone(),
                    heeds,
                    self.group.clone(),
                    self.nursery.line_bytes_max,
                );
                ctx.spawn(conversation.hold().into_actor(self).map(|(), _, ctx| ctx.stop()));
            }
            Err(err) => self.end(Exit::unseen(ExitReason::StartFailed, err.to_string()), ctx),
        }
    }

    /// Reports a run that came to no process.
    fn end(&self, exit: Exit, ctx: &mut Context<Self>) {
        let exited = Event::AgentExited { run: self.start.run, exit };
        self.group.do_send(AgentReport::of(exited));
        ctx.stop();
    }
}

/// Waits for the run's place; `Err` if it is told to end before. No process's time runs meanwhile.
async fn place(granted: oneshot::Receiver<()>, mut heeds: Heeds) -> Result<Heeds, Exit> {
    let told_to_end = async {
        while let Some(heed) = heeds.recv().await {
            if matches!(heed, Heed::Stop(_) | Heed::Kill) {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = told_to_end => {
            let why = "stopped by greenroom while it waited for a place among resident_agents";
            return Err(Exit::unseen(ExitReason::Stopped, why));
        }
        granted = granted => granted.map_err(|_| {
            let why = "nobody gives out the places for agents any more";
            Exit::unseen(ExitReason::StartFailed, why)
        })?,
    }
    Ok(heeds)
}

impl Start {
    /// The working directory, checked again at the spawn: it may have been moved since somebody
    /// named it (RELIABILITY C12).
    fn working_dir(&self) -> impl Future<Output = std::io::Result<PathBuf>> + use<> {
        let (profile, cwd, own_dir) =
            (self.profile.clone(), self.cwd.clone(), self.own_dir.clone());
        look_apart(move || {
            if let Some(cwd) = &cwd {
                return profile.check_cwd(cwd);
            }
            DirBuilder::new().recursive(true).mode(0o700).create(&own_dir)?;
            own_dir.canonicalize()
        })
    }
}

impl Actor for Agent {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (Some(heeds), Some(wish)) = (self.heeds.take(), self.wish.take()) else { return };
        let (residency, granted) = self.nursery.residents.enter(self.start.run, wish);
        let working_dir = self.start.working_dir();
        let placed = async move {
            let heeds = place(granted, heeds).await?;
            Ok((heeds, working_dir.await))
        };
        ctx.spawn(placed.into_actor(self).map(|placed, agent, ctx| match placed {
            Ok((heeds, cwd)) => agent.begin(cwd, residency, heeds, ctx),
            Err(exit) => agent.end(exit, ctx),
        }));
    }
}

impl Handler<Order> for Agent {
    type Result = ();

    fn handle(&mut self, order: Order, _: &mut Self::Context) {
        // Nobody heeds the orders of a run that is over.
        match order {
            Order::Send(line) => self.stdin.send(line),
            Order::Prompt(line, session) => {
                _ = self.orders.send(Heed::Prompted(session));
                self.stdin.send(line);
            }
            Order::OpenSession(id) => _ = self.orders.send(Heed::OpenSession(id)),
            Order::Stop(how) => _ = self.orders.send(Heed::Stop(how)),
            Order::Kill => _ = self.orders.send(Heed::Kill),
        }
    }
}

/// The agent's whole environment: the basics, then what its profile sets (RELIABILITY C11).
fn environment(
    profile: &Profile,
    own: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<(String, String)> {
    let basics = own.filter_map(|(key, value)| {
        let (key, value) = (key.into_string().ok()?, value.into_string().ok()?);
        let basic = BASICS.contains(&&*key) || key.starts_with("LC_");
        (basic && !profile.env.iter().any(|(set, _)| *set == key)).then_some((key, value))
    });
    basics.chain(profile.env.iter().cloned()).collect()
}
