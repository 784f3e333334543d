//! One run of one agent: spawned through the shim, lines in and out, and how it ended.
//!
//! The actor reports to its group and knows no queue. It decides nothing but what is a line, what
//! is a message, and when a process that was told to end has had long enough.

pub mod acp;
mod batch;
mod bounds;
pub mod child;
mod conversation;
pub mod detector;
pub mod hermes;
mod opening;
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
use tokio::sync::{mpsc, oneshot};

use self::{
    child::{Heartbeat, Launch},
    conversation::Conversation,
    stdin::Stdin,
    tree::Marker,
};
use crate::profile::Profile;

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
pub struct AgentReport(pub Vec<Event>);

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
    group: Recipient<AgentReport>,
    stdin: Rc<Stdin>,
    orders: mpsc::UnboundedSender<Heed>,
    heeds: Option<mpsc::UnboundedReceiver<Heed>>,
}

impl Agent {
    /// A run that is spawned when the actor starts.
    pub fn new(start: Start, nursery: Nursery, group: Recipient<AgentReport>) -> Self {
        let (orders, heeds) = mpsc::unbounded_channel();
        Self { start, nursery, group, stdin: Rc::default(), orders, heeds: Some(heeds) }
    }

    /// `greenroom` is this very binary; another name is looked up at the spawn.
    fn command(&self) -> PathBuf {
        match &self.start.profile.command {
            own if own.as_os_str() == "greenroom" => self.nursery.shim.clone(),
            command => command.clone(),
        }
    }

    fn spawn(&self, cwd: PathBuf) -> std::io::Result<child::Child> {
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
                run: Marker::run(self.start.run),
                data: self.nursery.data.clone(),
            },
            &self.nursery.heartbeat,
        )
    }
}

impl Start {
    /// The working directory, checked again at the spawn: it may have been moved since somebody
    /// named it (RELIABILITY C12).
    fn working_dir(&self) -> std::io::Result<PathBuf> {
        if let Some(cwd) = &self.cwd {
            return self.profile.check_cwd(cwd);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.own_dir)?;
        self.own_dir.canonicalize()
    }
}

impl Actor for Agent {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(heeds) = self.heeds.take() else { return };
        let spawned = self.start.working_dir().and_then(|cwd| Ok((self.spawn(cwd.clone())?, cwd)));
        match spawned {
            Ok((child, cwd)) => {
                let line_bytes_max = self.nursery.line_bytes_max;
                let conversation = Conversation::new(
                    &self.start,
                    cwd,
                    child,
                    self.stdin.clone(),
                    heeds,
                    self.group.clone(),
                    line_bytes_max,
                );
                ctx.spawn(conversation.hold().into_actor(self).map(|(), _, ctx| ctx.stop()));
            }
            Err(err) => {
                let exit = Exit::unseen(ExitReason::StartFailed, err.to_string());
                let exited = Event::AgentExited { run: self.start.run, exit };
                self.group.do_send(AgentReport(vec![exited]));
                ctx.stop();
            }
        }
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
