//! An agent that closed its stdout is asked nothing more (I7, I12).
#![allow(clippy::unwrap_used)]

use greenroom_core::{
    Continuity, Effect, Ending, Event, Exit, ExitReason, Group, Json, Origin, Patience, RunId,
    SessionId, Settings, Step, Task, TaskId, TaskState, Timestamp, Work,
};
use uuid::Uuid;

const LIMITS: Patience =
    Patience { turn_ms: 1_000, idle_ms: 1_000, queue_max: 9, queue_bytes_max: 999 };

fn apply(group: &mut Group, event: Event) -> Step {
    group.apply(event, Timestamp(1), &LIMITS).unwrap()
}

fn submitted(number: u128) -> Event {
    Event::Submitted(Box::new(Task {
        id: TaskId(Uuid::from_u128(number)),
        ordinal: 0,
        work: Work::Turn { prompt: Json::parse("[]".into()).unwrap() },
        origin: Origin::Api,
        metadata: None,
        deadline_ms: None,
        state: TaskState::Queued,
        attempt: 0,
        cancel_requested: false,
        created_at: Timestamp(0),
        claimed_at: None,
        started_at: None,
        ended_at: None,
        run: None,
        segment: None,
        seq_first: None,
        seq_last: None,
        ending: Ending::default(),
    }))
}

fn prompts(step: &Step) -> usize {
    step.effects.iter().filter(|effect| matches!(effect, Effect::Prompt { .. })).count()
}

#[test]
fn the_next_turn_waits_for_the_next_run() {
    let (first, second) = (RunId(Uuid::from_u128(1)), RunId(Uuid::from_u128(2)));
    let mut group = Group::new(Settings::default());
    apply(&mut group, submitted(10));
    apply(&mut group, Event::SlotGranted { fresh: first });
    let (session, continuity) = (SessionId("s".into()), Continuity::New);
    let ready = Event::AgentReady { run: first, pid: 1, session, continuity };
    assert_eq!(prompts(&apply(&mut group, ready)), 1, "the first turn is sent");
    apply(&mut group, Event::CancelRequested(TaskId(Uuid::from_u128(10))));
    let stopped = greenroom_core::PromptReply::Stopped {
        stop_reason: greenroom_core::StopReason::EndTurn,
        tokens: None,
    };
    let id = group.head().last_seq - 1;
    apply(&mut group, Event::PromptAnswered { run: first, id, reply: stopped });
    assert!(group.current().is_none(), "the answer settled it");

    apply(&mut group, Event::AgentClosed(first));
    apply(&mut group, submitted(11));
    let claimed = apply(&mut group, Event::SlotGranted { fresh: second });
    assert_eq!(prompts(&claimed), 0, "an agent that closed its stdout is asked nothing");
    let exit = Exit::unseen(ExitReason::Exited, "the agent exited with code 0");
    let step = apply(&mut group, Event::AgentExited { run: first, exit, fresh: second });
    let launched = |effect: &Effect| matches!(effect, Effect::Launch { run, .. } if *run == second);
    assert!(step.effects.iter().any(launched), "{step:?}");
    assert_eq!(group.current().unwrap().state, TaskState::Queued, "claimed, and not failed");
}
