//! An agent that closed its stdout gets no further prompt (I7, I12).

use greenroom_core::{
    Continuity, Effect, EffectiveSettings, Event, Exit, ExitReason, Group, Json, Limits, Now,
    OnInterrupt, Origin, PermissionPolicy, PromptReply, RetryPolicy, RunId, SessionId, Settings,
    Step, StopReason, Task, TaskId, TaskState, Work,
};
use uuid::Uuid;

const LIMITS: Limits = Limits {
    turn_ms: 1_000,
    compaction_ms: 1_000,
    idle_ms: 1_000,
    permission_ms: 1_000,
    retry_base_ms: 1_000,
    queue_max: 9,
    queue_bytes_max: 999,
};

fn apply(group: &mut Group, fresh: RunId, event: Event) -> Step {
    let settings = EffectiveSettings {
        limits: LIMITS,
        auto_compact: 0.0,
        retry: RetryPolicy::Never,
        on_interrupt: OnInterrupt::Auto,
        permissions: PermissionPolicy::default(),
        compaction: None,
        has_detectors: false,
    };
    group.apply(event, Now::default(), &settings, &mut || fresh.0).unwrap()
}

fn submitted(number: u128) -> Event {
    let work = Work::Turn { prompt: Json::parse("[]".into()).unwrap() };
    Event::Submitted(Box::new(Task::new(TaskId(Uuid::from_u128(number)), work, Origin::Api)))
}

fn prompts(step: &Step) -> usize {
    step.effects.iter().filter(|effect| matches!(effect, Effect::Prompt { .. })).count()
}

#[test]
fn an_agent_that_closed_stdout_gets_no_prompt() {
    let (first, second) = (RunId(Uuid::from_u128(1)), RunId(Uuid::from_u128(2)));
    let mut group = Group::new(Settings::default());
    apply(&mut group, first, submitted(10));
    apply(&mut group, first, Event::SlotGranted);
    let (session, continuity) = (SessionId("s".into()), Continuity::New);
    let ready = Event::AgentReady { run: first, pid: 1, session, continuity, provenance: None };
    assert_eq!(prompts(&apply(&mut group, first, ready)), 1, "the first turn is sent");
    apply(&mut group, first, Event::CancelRequested(TaskId(Uuid::from_u128(10))));
    let reply = PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None };
    let id = group.attempt().unwrap().prompt_id;
    apply(&mut group, first, Event::PromptAnswered { run: first, id, reply });
    assert!(group.current().is_none(), "the answer settled it");

    apply(&mut group, first, Event::AgentClosed(first));
    apply(&mut group, first, submitted(11));
    let claimed = apply(&mut group, first, Event::SlotGranted);
    assert_eq!(prompts(&claimed), 0, "an agent that closed its stdout gets no prompt");
    let exit = Exit::unseen(ExitReason::Exited, "the agent exited with code 0");
    let step = apply(&mut group, second, Event::AgentExited { run: first, exit });
    let launched = |effect: &Effect| matches!(effect, Effect::Launch { run, .. } if *run == second);
    assert!(step.effects.iter().any(launched), "{step:?}");
    assert_eq!(
        group.current().unwrap().state(),
        TaskState::Queued,
        "the task is claimed and has not failed"
    );
}
