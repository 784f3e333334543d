//! Effects: what core orders once, performed after the commit of the facts beside it.
//!
//! Of the compaction lock, only its request and the release of one that came too late are effects.
//! While core has it, the actor renews it (`lease`). Its release is a fact, which the store
//! executes in the same commit: so a compaction is published under its lock or not at all (HL-11).

use std::sync::Arc;

use actix::{
    Actor as _, ActorContext as _, ActorFutureExt as _, AsyncContext as _, Context, Handler,
    Message, WrapFuture as _,
};
use greenroom_core::{Effect, Event, Exit, ExitReason, RunId, SessionId};
use tokio::sync::oneshot;

use super::{AgentHandle, Group, self_message::SelfMessage};
use crate::{
    acp,
    agent::{Agent, AgentCommand, AgentReport, Start},
    pool::{PoolRequest, UsageCell},
    transcript::frame::{self, Block},
    working_dir::Place,
};

impl Group {
    /// Performs the effects of a step, whose frames are in `blocks`.
    pub(super) fn perform(
        &mut self,
        effects: Vec<Effect>,
        blocks: &[Block],
        ctx: &mut Context<Self>,
    ) {
        for effect in effects {
            self.perform_one(effect, blocks, ctx);
        }
    }

    fn perform_one(&mut self, effect: Effect, blocks: &[Block], ctx: &mut Context<Self>) {
        let (run, command) = match effect {
            Effect::Launch { run, session, may_replace } => {
                return self.launch(run, session, may_replace, ctx);
            }
            Effect::Prompt { run, id, .. } if self.shared.is_draining() => {
                let withheld = Event::PromptWithheld { run, id };
                return ctx.address().do_send(SelfMessage::Event(withheld.into()));
            }
            Effect::Prompt { run, id, session } => {
                // The agent gets what readers see, byte for byte: a prompt's id is its frame's
                // number.
                let line = frame::payload(blocks, id)
                    .unwrap_or_else(|| unreachable!("a prompt is a frame of the same commit"));
                (run, AgentCommand::Prompt(line.to_owned(), id, session))
            }
            Effect::Cancel { run, session } => {
                (run, AgentCommand::Cancel(acp::cancel_line(&session)))
            }
            Effect::FollowSession { run, session } => (run, AgentCommand::FollowSession(session)),
            Effect::OpenSession { run, id } => (run, AgentCommand::OpenSession(id)),
            Effect::AcquireLock { task, key } => return self.acquire_lock(task, &key, ctx),
            Effect::ReleaseLock { key, holder, token } => {
                return self.release_lock(&key, &holder, token);
            }
            Effect::Answer { run, answer } => (run, AgentCommand::Send(acp::answer_line(&answer))),
            Effect::Stop { run, how } => (run, AgentCommand::Stop(how)),
            Effect::Purge => return self.purge(ctx),
        };
        if let Some((current, handle)) = &self.agent
            && *current == run
        {
            handle.agent.do_send(command);
        }
    }

    fn launch(
        &mut self,
        run: RunId,
        session: Option<SessionId>,
        may_replace: bool,
        ctx: &mut Context<Self>,
    ) {
        let settings = &self.log.core.state().settings;
        let Some(profile) = self.shared.profiles.get(&settings.agent).cloned() else {
            let detail = format!("the configuration has no agent {:?}", settings.agent);
            let exit = Exit::unseen(ExitReason::StartFailed, detail);
            let exited = Event::AgentExited { run, exit };
            return ctx.address().do_send(AgentReport::single(exited));
        };
        let work_dir = &self.shared.work_dir;
        let place = match &settings.cwd {
            Some(cwd) => {
                Place::Named { cwd: cwd.into(), reserved: work_dir.reserved(Some(self.no)) }
            }
            None => Place::Own(work_dir.of(self.no)),
        };
        let temporary = work_dir.temporary(run);
        let (alive, died) = oneshot::channel();
        let start = Start {
            run,
            group: self.id.clone(),
            profile,
            place,
            temporary: temporary.path().to_owned(),
            kept: Some(Arc::new(temporary)),
            session,
            may_replace,
            alive,
            observer: None,
        };
        let group = ctx.address();
        ctx.spawn(died.into_actor(self).map(move |_, _, _| group.do_send(AgentDied(run))));
        let usage = UsageCell::default();
        let request = PoolRequest { usage: usage.clone(), group: ctx.address().recipient() };
        let launcher = self.shared.launcher.clone();
        let agent = Agent::new(start, launcher, request, ctx.address().recipient()).start();
        self.agent = Some((run, AgentHandle { agent, usage }));
    }
}

/// A run's actor stopped. Sent as a message, so that it arrives after the run's last report.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct AgentDied(RunId);

impl Handler<AgentDied> for Group {
    type Result = ();

    /// Rebuilds the group from the database if the run's end was not reported: recovery searches
    /// for leftover processes of the run (I15).
    fn handle(&mut self, AgentDied(run): AgentDied, ctx: &mut Context<Self>) {
        if self.agent.as_ref().is_some_and(|(current, _)| *current == run) {
            log::error!(
                target: "greenroom::run", group:% = self.id, run:%;
                "the run's actor panicked; its group is rebuilt from the database"
            );
            ctx.stop();
        }
    }
}
