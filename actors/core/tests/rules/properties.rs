//! Random histories: the invariants hold at every step, whatever callers, agents and crashes do to
//! a group. `testing/src/invariants.rs` names the invariants.

use std::collections::BTreeSet;

use greenroom_core::{Continuity, ExitReason, Fact, SignalKind, Source, StopReason};
use greenroom_testing::world::{
    Action, AgentMessage, DetectorSignal, Drain, LockReply, World, actions, situations::situations,
};
use proptest::{
    prelude::*,
    sample::select,
    strategy::ValueTree,
    test_runner::{FileFailurePersistence, TestCaseError, TestRunner},
};

const ACTIONS_MAX: usize = 200;
/// The file with the seeds of failures, relative to the package.
const REGRESSIONS: &str = "proptest-regressions/properties.txt";

fn checked<T>(result: Result<T, String>) -> Result<T, TestCaseError> {
    result.map_err(TestCaseError::fail)
}

fn played(history: &[Action]) -> Result<World, TestCaseError> {
    let mut world = World::default();
    for next in history {
        checked(world.play(*next))?;
    }
    Ok(world)
}

/// Up to `most` actions after one of the situations.
fn histories(most: usize) -> impl Strategy<Value = Vec<Action>> {
    let given = select(situations()).prop_map(|(_, given)| given);
    (given, actions(most)).prop_map(|(given, actions)| [given, actions].concat())
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(1_200))]

    /// All invariants of the checker, and: I13 replay = live = restore, I2 each accepted task
    /// reaches its end, I12 nothing waits for ever while agents answer.
    #[test]
    fn invariants_hold_over_random_histories(history in histories(ACTIONS_MAX)) {
        checked(played(&history)?.drain(Drain::Answers))?;
    }
}

proptest! {
    #![proptest_config(config(400))]

    /// I12: likewise if the agent never answers again, and ignores a cancel.
    #[test]
    fn a_silent_agent_blocks_nothing_for_ever(history in histories(60)) {
        checked(played(&history)?.drain(Drain::Silent))?;
    }

    /// I12: an agent that always fails is started a bounded number of times; then no task waits.
    #[test]
    fn an_always_failing_agent_is_started_a_bounded_number_of_times(
        history in histories(60),
        starts in any::<bool>(),
    ) {
        let agent = if starts { Drain::DiesOfPrompts } else { Drain::NeverStarts };
        checked(played(&history)?.drain(agent))?;
    }
}

/// Returns the fact's kind, with the details that show which rule made it.
fn reached(fact: &Fact) -> String {
    let kind = fact.kind().trim_start_matches("greenroom/");
    match fact {
        Fact::GroupHeld { reason } => format!("{kind} {reason:?}"),
        Fact::PermissionResolved { state, resolved_by, .. } => {
            format!("{kind} {state:?} {resolved_by}")
        }
        Fact::TaskStarted { attempt, .. } => format!("{kind} {attempt}"),
        Fact::TaskRetrying { attempt, error, .. } => format!("{kind} {} {attempt}", error.code),
        Fact::TaskEnded { state, error, .. } => {
            format!("{kind} {state:?} {}", error.as_ref().map_or("", |error| &error.code))
        }
        Fact::RunReady { continuity, .. } => format!("{kind} {continuity:?}"),
        Fact::RunExited { exit, .. } => format!("{kind} {:?}", exit.reason),
        _ => kind.to_owned(),
    }
}

/// The random histories reach every rule, or the properties prove nothing.
#[test]
fn random_histories_reach_every_rule() {
    let (mut runner, mut all) = (TestRunner::deterministic(), BTreeSet::new());
    for _ in 0..800 {
        let history = histories(ACTIONS_MAX).new_tree(&mut runner).unwrap().current();
        let mut world = World::default();
        let mut play = |next| world.play(next).unwrap().map(|(_, facts)| facts);
        let facts = history.into_iter().filter_map(&mut play).flatten();
        all.extend(facts.map(|recorded| reached(&recorded.fact)));
    }
    #[rustfmt::skip]
    let wanted = [
        "agent_auth_required", "agent_degraded", "agent_wedged", "backoff_ended", "cancel_requested", "cancel_sent",
        "compaction_rests", "context_lost",
        "group_held ContextLost", "group_held Interrupted", "group_held InterruptedTwice",
        "group_resumed", "launch_allowed", "lock_asked", "lock_bypassed", "lock_lost",
        "permission_opened", "permission_resolved Cancelled cancel",
        "permission_resolved Cancelled policy", "permission_resolved Cancelled someone",
        "permission_resolved Expired deadline", "permission_resolved Selected policy",
        "permission_resolved Selected someone", "permission_resolved Void run_ended",
        "permission_resolved Void settlement", "run_exited AgentAuth", "run_exited Exited", "run_exited Protocol",
        "run_exited ServerRestart", "run_exited StartFailed", "run_exited Stopped",
        "run_exited Storage", "run_ready Lost", "task_ended Cancelled ", "task_ended Completed ",
        "task_ended Failed agent_error", "task_ended Failed agent_exited",
        "task_ended Failed agent_start_failed", "task_ended Failed expired",
        "task_ended Interrupted agent_exited", "task_ended Interrupted deadline",
        "task_ended Interrupted protocol_violation", "task_ended Interrupted server_restarted",
        "task_ended Interrupted storage_failed", "task_ended Skipped ",
        "task_ended Skipped compaction_unsupported", "task_ended Skipped lock_failed",
        "task_released",
        "task_retrying agent_error 1", "task_retrying agent_exited 1",
        "task_retrying agent_start_failed 1", "task_retrying agent_start_failed 5",
        "task_retrying agent_wedged 1", "task_retrying server_stopped 1", "task_started 1", "task_started 2", "task_started 5",
        "task_started 6", "turn_cut",
    ];
    let missed: Vec<_> = wanted.iter().filter(|wanted| !all.contains(**wanted)).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}\nreached: {all:#?}");
}

/// Each situation leads to the state that its name says.
#[test]
fn situations_lead_to_the_state_they_name() {
    use greenroom_core::Status as S;
    let statuses: Vec<_> = situations()
        .into_iter()
        .map(|(name, given)| {
            let mut world = World::default();
            for next in given {
                world.play(next).unwrap_or_else(|why| panic!("{name}: {next:?}: {why}"));
            }
            (name, world.group.status(), world.group.blocked_by())
        })
        .collect();
    use greenroom_core::Blocked as B;
    #[rustfmt::skip]
    let expected = [
        ("nothing yet",                     S::Idle,       None),
        ("idle",                            S::Idle,       None),
        ("in a turn",                       S::Running,    Some(B::Turn)),
        ("in a turn with open permissions", S::Running,    Some(B::Turn)),
        ("the sixth failing run in a row",  S::Starting,   Some(B::Agent)),
        ("degraded",                        S::Degraded,   Some(B::Backoff)),
        ("the agent wants a login",         S::Waiting,    Some(B::AgentAuth)),
        ("an attempt backs off",            S::Waiting,    Some(B::Backoff)),
        ("a second attempt starts",         S::Starting,   Some(B::Agent)),
        ("the fifth attempt",               S::Waiting,    Some(B::Slot)),
        ("the last attempt",                S::Running,    None),
        ("the last attempt to restore a session", S::Starting, Some(B::Agent)),
        ("after a cancel",                  S::Running,    None),
        ("wedged by a cancel",              S::Waiting,    Some(B::Backoff)),
        ("held",                            S::Held,       Some(B::Held)),
        ("interrupted once",                S::Waiting,    Some(B::Slot)),
        ("compacting",                      S::Compacting, Some(B::Turn)),
        ("outdated as it starts",           S::Starting,   Some(B::Agent)),
        ("outdated in a turn",              S::Running,    Some(B::Turn)),
        ("without a way to compact",        S::Waiting,    Some(B::Lock)),
        ("resting after a compaction",      S::Waiting,    Some(B::Slot)),
        ("deleted while being interrupted", S::Running,    None),
        ("expires soon",                    S::Running,    Some(B::Turn)),
    ];
    assert_eq!(statuses, expected);
}

/// Histories that once broke an invariant.
#[test]
fn histories_that_once_failed_pass() {
    use Action::{
        Archive, Cancel, CloseStdout, Compact, CompactByRotation, Configure, Crash, Exit,
        GrantSlot, LateOutput, LatePermissionRequest, LoseLock, ReadyAs, Shutdown,
    };
    use greenroom_core::Continuity::Lost;
    let submit = Action::Submit { bytes: 1 };
    let ready = Action::Ready(Continuity::Loaded);
    let answer = Action::AnswerPrompt(StopReason::EndTurn);
    let (lock, usage) =
        (Action::AnswerLock(LockReply::Acquired), Action::Output(AgentMessage::Usage(100)));
    let (confirm_cancel, fire_timer) =
        (Action::AnswerPrompt(StopReason::Cancelled), Action::FireTimer(0));
    let acp = |kind| {
        Action::CompactionSignal(DetectorSignal {
            source: Source::Acp,
            kind,
            key: 0,
            lineage: (0, 0),
        })
    };
    let (started, completed) = (acp(SignalKind::Started), acp(SignalKind::Completed));
    let (failed, other_agent) = (Exit(ExitReason::StartFailed), Configure(2));
    #[rustfmt::skip]
    let histories: &[(&str, &[Action])] = &[
        ("output of an ended run",                         &[submit, GrantSlot, failed, LateOutput, LatePermissionRequest]),
        ("a released turn before a compaction",            &[submit, GrantSlot, Compact, Shutdown, Crash]),
        ("a crash with a compaction waiting",              &[submit, GrantSlot, Compact, Crash, Crash]),
        ("a group without facts is archived",              &[Archive, submit]),
        ("a group without facts is paused",                &[Action::Pause, submit]),
        ("a stop repeats a cancel",                        &[submit, GrantSlot, ready, Cancel { back: 0 }, Action::Stop, Action::Stop]),
        ("a stopping run becomes ready",                   &[submit, GrantSlot, Archive, ready, Configure(0), submit, GrantSlot]),
        ("a released task's run becomes ready",            &[submit, GrantSlot, Shutdown, ready, GrantSlot]),
        ("a delete repeats a cancel",                      &[submit, GrantSlot, ready, Cancel { back: 0 }, Archive, Archive]),
        ("the old agent gets the next turn",               &[submit, GrantSlot, ready, other_agent, answer, submit, GrantSlot]),
        ("the starting old agent gets the turn",           &[submit, GrantSlot, other_agent, Cancel { back: 0 }, submit, GrantSlot, ready]),
        ("the session changes after the claim",            &[submit, GrantSlot, Compact, ReadyAs(Lost, 1)]),
        ("likewise, by a summary and a closed stdout",     &[submit, GrantSlot, submit, ReadyAs(Lost, 1), CloseStdout, CompactByRotation]),
        ("a lock is lost before its use",                  &[submit, GrantSlot, ready, answer, Compact, lock, LoseLock]),
        ("completed without its lock, after its deadline", &[submit, GrantSlot, ready, confirm_cancel, CompactByRotation, lock, GrantSlot, fire_timer, LoseLock, completed]),
        ("interrupted, then cancelled",                    &[submit, GrantSlot, ready, fire_timer, Cancel { back: 0 }]),
        ("likewise, and started in between",               &[submit, GrantSlot, ready, fire_timer, started, Cancel { back: 0 }]),
        ("a shutdown with a lock, and no restart",         &[submit, GrantSlot, ready, usage, Crash, lock, Shutdown, Compact]),
    ];
    let degraded: Vec<Action> = situations()
        .into_iter()
        .find_map(|(name, given)| (name == "the sixth failing run in a row").then_some(given))
        .unwrap_or_default();
    let closed =
        [Cancel { back: 0 }, ready, submit, CloseStdout, GrantSlot, Exit(ExitReason::Exited)];
    let degraded = [&*degraded, &closed].concat();
    let more = [("a claimed task starts the sixth run", &*degraded)];
    for (name, history) in histories.iter().chain(&more) {
        let drained = played(history).and_then(|mut world| checked(world.drain(Drain::Answers)));
        assert!(drained.is_ok(), "{name}: {drained:?}");
    }
}
