//! Random play: whatever callers, agents and crashes do to a group, the invariants hold at every
//! step. The statements, by name, are in `world/checker.rs`.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeSet;

use greenroom_core::{Continuity, ExitReason, Sign, Source, StopReason, Write};
use proptest::{
    prelude::*,
    sample::select,
    strategy::ValueTree,
    test_runner::{FileFailurePersistence, TestCaseError, TestRunner},
};
use world::{Drain, LockSaid, Move, Seen, Spoken, World, moves, situations::situations};

const MOVES_MAX: usize = 200;
/// Where the seeds of failures are kept, within the package.
const REGRESSIONS: &str = "proptest-regressions/properties.txt";

fn told<T>(held: Result<T, String>) -> Result<T, TestCaseError> {
    held.map_err(TestCaseError::fail)
}

fn played(history: &[Move]) -> Result<World, TestCaseError> {
    let mut world = World::default();
    for next in history {
        told(world.play(*next))?;
    }
    Ok(world)
}

/// Up to so many moves from one of the situations on.
fn histories(most: usize) -> impl Strategy<Value = Vec<Move>> {
    let given = select(situations()).prop_map(|(_, given)| given);
    (given, moves(most)).prop_map(|(given, moves)| [given, moves].concat())
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

    /// Every statement of the checker, and: I13 replay = live = restore, I2 each accepted task
    /// reaches its end, I12 nothing waits for ever while agents answer.
    #[test]
    fn whatever_happens_the_invariants_hold(history in histories(MOVES_MAX)) {
        told(played(&history)?.drain(Drain::Answers))?;
    }
}

proptest! {
    #![proptest_config(config(400))]

    /// I12: likewise if the agent never answers again, nor heeds a cancel.
    #[test]
    fn a_silent_agent_holds_up_nothing_for_ever(history in histories(60)) {
        told(played(&history)?.drain(Drain::Silent))?;
    }

    /// I12: an agent that always fails is started a bounded number of times; then nothing waits.
    #[test]
    fn an_agent_that_always_fails_has_an_end(history in histories(60), starts in any::<bool>()) {
        let agent = if starts { Drain::DiesOfPrompts } else { Drain::NeverStarts };
        told(played(&history)?.drain(agent))?;
    }
}

/// What one fact shows of the rules, beside its kind.
fn reached(fact: &Write) -> String {
    let kind = fact.kind().trim_start_matches("greenroom/");
    match fact {
        Write::GroupHeld { reason } => format!("{kind} {reason:?}"),
        Write::PermissionResolved { state, resolved_by, .. } => {
            format!("{kind} {state:?} {resolved_by}")
        }
        Write::TaskStarted { attempt, .. } => format!("{kind} {attempt}"),
        Write::TaskRetrying { attempt, error, .. } => format!("{kind} {} {attempt}", error.code),
        Write::TaskEnded { state, error, .. } => {
            format!("{kind} {state:?} {}", error.as_ref().map_or("", |error| &error.code))
        }
        Write::RunReady { continuity, .. } => format!("{kind} {continuity:?}"),
        Write::RunExited { exit, .. } => format!("{kind} {:?}", exit.reason),
        _ => kind.to_owned(),
    }
}

/// The statements are worth what the histories reach.
#[test]
fn random_histories_reach_everything() {
    let (mut runner, mut all) = (TestRunner::deterministic(), BTreeSet::new());
    for _ in 0..400 {
        let history = histories(MOVES_MAX).new_tree(&mut runner).unwrap().current();
        let mut world = World::default();
        let mut play = |next| world.play(next).unwrap().map(|(_, writes)| writes);
        let facts = history.into_iter().filter_map(&mut play).flatten();
        all.extend(facts.map(|fact| reached(&fact)));
    }
    #[rustfmt::skip]
    let wanted = [
        "agent_degraded", "agent_wedged", "backoff_ended", "cancel_requested", "cancel_sent",
        "compaction_rests", "context_lost",
        "group_held ContextLost", "group_held Interrupted", "group_held InterruptedTwice",
        "group_resumed", "launch_allowed", "lock_asked", "lock_bypassed", "lock_lost",
        "permission_opened", "permission_resolved Cancelled cancel",
        "permission_resolved Cancelled policy", "permission_resolved Cancelled somebody",
        "permission_resolved Expired deadline", "permission_resolved Selected policy",
        "permission_resolved Selected somebody", "permission_resolved Void run_ended",
        "permission_resolved Void settlement", "run_exited Exited", "run_exited Protocol",
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
        "task_retrying agent_wedged 1", "task_started 1", "task_started 2", "task_started 5",
        "task_started 6", "turn_cut",
    ];
    let missed: Vec<_> = wanted.iter().filter(|wanted| !all.contains(**wanted)).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}\nreached: {all:#?}");
}

/// What the situations are called is where they lead: `select` must not draw from another.
#[test]
fn the_situations_are_what_they_are_called() {
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
        ("nothing yet",                  S::Idle,       None),
        ("idle",                         S::Idle,       None),
        ("in a turn",                    S::Running,    Some(B::Turn)),
        ("in a turn that is asked for",  S::Running,    Some(B::Turn)),
        ("the sixth run in a row",       S::Starting,   Some(B::Agent)),
        ("degraded",                     S::Degraded,   Some(B::Backoff)),
        ("an attempt backs off",         S::Waiting,    Some(B::Backoff)),
        ("a second attempt starts",      S::Starting,   Some(B::Agent)),
        ("the fifth attempt",            S::Waiting,    Some(B::Slot)),
        ("the last attempt",             S::Running,    None),
        ("behind a cancel",              S::Running,    None),
        ("wedged by a cancel",           S::Waiting,    Some(B::Backoff)),
        ("held",                         S::Held,       Some(B::Held)),
        ("once cut off",                 S::Waiting,    Some(B::Slot)),
        ("compacting",                   S::Compacting, Some(B::Turn)),
        ("outdated as it starts",        S::Starting,   Some(B::Agent)),
        ("outdated in a turn",           S::Running,    Some(B::Turn)),
        ("without a way to compact",     S::Waiting,    Some(B::Lock)),
        ("a rest",                       S::Waiting,    Some(B::Slot)),
        ("deleted as it is cut off",     S::Running,    None),
        ("expires soon",                 S::Running,    Some(B::Turn)),
    ];
    assert_eq!(statuses, expected);
}

/// Histories that broke a statement once, and stay told from then on.
#[test]
fn what_once_failed_holds() {
    use Move::{
        Archive, Cancel, Close, Compact, CompactByRotation, Configure, Crash, Exit, Grant, LateAsk,
        LateSay, LoseLock, ReadyAs, Shutdown,
    };
    use greenroom_core::Continuity::Lost;
    let submit = Move::Submit { bytes: 1 };
    let ready = Move::Ready(Continuity::Loaded);
    let answer = Move::Answer(StopReason::EndTurn);
    let (lock, usage) = (Move::Lock(LockSaid::Taken), Move::Say(Spoken::Usage(100)));
    let (called_off, expire) = (Move::Answer(StopReason::Cancelled), Move::Expire(0));
    let acp = |sign| Move::Signal(Seen { source: Source::Acp, sign, key: 0, lineage: (0, 0) });
    let (begun, done) = (acp(Sign::Started), acp(Sign::Completed));
    let (failed, other_agent) = (Exit(ExitReason::StartFailed), Configure(2));
    #[rustfmt::skip]
    let histories: &[(&str, &[Move])] = &[
        ("a run that is over is heard",             &[submit, Grant, failed, LateSay, LateAsk]),
        ("a released turn before a compaction",     &[submit, Grant, Compact, Shutdown, Crash]),
        ("a crash with a compaction waiting",       &[submit, Grant, Compact, Crash, Crash]),
        ("a group that was never made is archived", &[Archive, submit]),
        ("a group that was never made is paused",   &[Move::Pause, submit]),
        ("a stop repeats a cancel",                 &[submit, Grant, ready, Cancel { back: 0 }, Move::Stop, Move::Stop]),
        ("an ending run becomes ready",             &[submit, Grant, Archive, ready, Configure(0), submit, Grant]),
        ("a released task's run becomes ready",     &[submit, Grant, Shutdown, ready, Grant]),
        ("a delete repeats a cancel",               &[submit, Grant, ready, Cancel { back: 0 }, Archive, Archive]),
        ("the old agent gets the next turn",        &[submit, Grant, ready, other_agent, answer, submit, Grant]),
        ("the starting old agent gets it",          &[submit, Grant, other_agent, Cancel { back: 0 }, submit, Grant, ready]),
        ("the session is another once claimed",     &[submit, Grant, Compact, ReadyAs(Lost, 1)]),
        ("likewise, by a summary and at a close",   &[submit, Grant, submit, ReadyAs(Lost, 1), Close, CompactByRotation]),
        ("a lock is lost before its use",           &[submit, Grant, ready, answer, Compact, lock, LoseLock]),
        ("done without its lock, after its time",   &[submit, Grant, ready, called_off, CompactByRotation, lock, Grant, expire, LoseLock, done]),
        ("cut off, then called off",                &[submit, Grant, ready, expire, Cancel { back: 0 }]),
        ("likewise, and begun in between",          &[submit, Grant, ready, expire, begun, Cancel { back: 0 }]),
        ("a shutdown with a lock, and no restart",  &[submit, Grant, ready, usage, Crash, lock, Shutdown, Compact]),
    ];
    let degraded: Vec<Move> = situations()
        .into_iter()
        .find_map(|(name, given)| (name == "the sixth run in a row").then_some(given))
        .unwrap_or_default();
    let closed = [Cancel { back: 0 }, ready, submit, Close, Grant, Exit(ExitReason::Exited)];
    let degraded = [&*degraded, &closed].concat();
    let more = [("a claimed task starts the sixth run", &*degraded)];
    for (name, history) in histories.iter().chain(&more) {
        let drained = played(history).and_then(|mut world| told(world.drain(Drain::Answers)));
        assert!(drained.is_ok(), "{name}: {drained:?}");
    }
}
