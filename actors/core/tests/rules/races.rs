//! The races of R-2 that the rules alone decide, each in all interleavings. In each of them the
//! invariants of the checker hold, each task has exactly one outcome, and the right lane wins.

use greenroom_core::{
    Fact, HoldReason, PermissionState as P, SignalKind, Source, StopReason, TaskKind,
    TaskState as T,
};
use greenroom_testing::world::{Action, DetectorSignal, Drain, TimerKind, situations::*};

use crate::interleavings::{Outcome, Race, race};

const GRANT: Action = Action::GrantSlot;
const SUBMIT_EXPIRING: Action = Action::SubmitWithin { ms: 1 };
const TIME_PASSES: Action = Action::Wait(1);
const STARTED: Action = Action::CompactionSignal(acp(SignalKind::Started));
const COMPLETED: Action = Action::CompactionSignal(acp(SignalKind::Completed));
const LATE_COMPLETION: Action = Action::LateSignal(acp(SignalKind::Completed));
const COMPACTING: &[Action] =
    &[SUBMIT, GRANT, READY, OUTPUT, ANSWER, Action::Compact, LOCK_ACQUIRED, GRANT];

const fn acp(kind: SignalKind) -> DetectorSignal {
    DetectorSignal { source: Source::Acp, kind, key: 0, lineage: (0, 0) }
}

const fn fire(timer: TimerKind) -> Action {
    Action::FireTimerOf(timer)
}

// ---- the rows

fn claim_cancel() -> Race {
    race(&[&[SUBMIT]], &[("claim", &[GRANT]), ("ready", &[READY]), ("cancel", &[CANCEL])])
}

fn cancel_response(response: Action) -> Race {
    race(&[IN_TURN, &[OUTPUT]], &[("cancel", &[CANCEL]), ("response", &[response])])
}

fn cancel_silence() -> Race {
    let escalation = [fire(TimerKind::Cancel)];
    let deadline = [fire(TimerKind::Attempt)];
    race(
        &[IN_TURN, &[OUTPUT]],
        &[("cancel", &[CANCEL]), ("deadline", &deadline), ("escalation", &escalation)],
    )
}

fn cancel_start() -> Race {
    race(&[&[SUBMIT, GRANT]], &[("cancel", &[CANCEL]), ("start", &[READY])])
}

fn response_exit(before: &[Action]) -> Race {
    let response = [ANSWER, Action::LateAnswer];
    race(&[&[AUTO_HOLD], IN_TURN, before], &[("response", &response), ("exit", &[EXITS])])
}

fn response_deadline() -> Race {
    let deadline = [fire(TimerKind::Attempt), fire(TimerKind::Cancel), STOPPED];
    let response = [ANSWER, Action::LateAnswer];
    race(&[IN_TURN, &[OUTPUT]], &[("response", &response), ("deadline", &deadline)])
}

fn old_lines_new_run() -> Race {
    race(
        &[&[CONTINUE], IN_TURN, &[OUTPUT, EXITS, SUBMIT]],
        &[
            ("new", &[GRANT, READY, ANSWER]),
            ("old says", &[Action::LateOutput, Action::LatePermissionRequest]),
            ("old ends", &[Action::LateAnswer, Action::LateExit]),
        ],
    )
}

fn done_deadline() -> Race {
    let deadline = [fire(TimerKind::Compaction)];
    race(&[IN_TURN, &[OUTPUT, STARTED]], &[("done", &[COMPLETED]), ("deadline", &deadline)])
}

fn done_death() -> Race {
    let done = [COMPLETED, LATE_COMPLETION];
    race(&[&[CONTINUE], IN_TURN, &[OUTPUT, STARTED]], &[("done", &done), ("death", &[EXITS])])
}

fn compaction_compaction() -> Race {
    race(
        &[IDLE],
        &[
            ("one", &[Action::Compact]),
            ("other", &[Action::CompactByRotation]),
            ("turn", &[SUBMIT]),
            ("lock", &[LOCK_ACQUIRED]),
        ],
    )
}

fn lost_publication() -> Race {
    race(
        &[COMPACTING],
        &[("lost", &[Action::LoseLock]), ("done", &[COMPLETED]), ("answer", &[ANSWER])],
    )
}

fn permission() -> Race {
    let deadline = [fire(TimerKind::Permission)];
    race(
        &[&[CONTINUE], IN_TURN, &[REQUEST_PERMISSION]],
        &[("allow", &[ALLOW]), ("refuse", &[REFUSE]), ("deadline", &deadline), ("death", &[EXITS])],
    )
}

fn permission_settlement() -> Race {
    race(
        &[IN_TURN, &[REQUEST_PERMISSION]],
        &[("allow", &[ALLOW]), ("cancel", &[CANCEL]), ("settled", &[ANSWER])],
    )
}

fn exit_retry_cancel_resume() -> Race {
    let retry = [fire(TimerKind::Backoff), GRANT, READY];
    race(
        &[&[AUTO_HOLD], IN_TURN],
        &[
            ("exit", &[EXITS]),
            ("retry", &retry),
            ("cancel", &[CANCEL]),
            ("resume", &[Action::Resume]),
        ],
    )
}

fn expiry_claim_start(expiry: Action) -> Race {
    race(&[&[SUBMIT_EXPIRING]], &[("expiry", &[expiry]), ("claim", &[GRANT]), ("start", &[READY])])
}

fn held_submit_resume() -> Race {
    race(
        &[&[HOLD], IN_TURN, &[OUTPUT]],
        &[
            ("exit", &[EXITS]),
            ("submit", &[SUBMIT]),
            ("grant", &[GRANT]),
            ("resume", &[Action::Resume]),
        ],
    )
}

fn rows() -> Vec<(&'static str, Race)> {
    vec![
        ("claim × cancel", claim_cancel()),
        ("cancel × response", cancel_response(ANSWER)),
        ("cancel × silence", cancel_silence()),
        ("cancel × START", cancel_start()),
        ("response × exit", response_exit(&[])),
        ("response × deadline", response_deadline()),
        ("old run's lines × new run", old_lines_new_run()),
        ("done × deadline", done_deadline()),
        ("done × agent death", done_death()),
        ("compaction × compaction", compaction_compaction()),
        ("lock lost × publication", lost_publication()),
        ("answer × answer × deadline × death", permission()),
        ("answer × cancel × settlement", permission_settlement()),
        ("exit × retry × cancel × resume", exit_retry_cancel_resume()),
        ("expiry × claim × START", expiry_claim_start(fire(TimerKind::Queued))),
        ("held × submit × resume", held_submit_resume()),
    ]
}

// ---- the winners

fn check_cancel(outcome: &Outcome, was_sent: bool) {
    let task = &outcome.tasks[0];
    if was_sent {
        assert_eq!(
            (task.state(), task.cancel_requested),
            (T::Completed, true),
            "the task was asked to end"
        );
    } else {
        assert_eq!((task.state(), task.cancel_requested), (T::Cancelled, false));
        assert_eq!(outcome.count("session/prompt"), 0, "nothing was sent");
    }
}

#[test]
fn claim_races_cancel() {
    let orders = claim_cancel().in_every_order(Drain::Answers, |outcome| {
        // An agent can be ready only after the claim.
        let claimed = outcome.before(("claim", 0), ("ready", 0));
        check_cancel(outcome, claimed && outcome.before(("ready", 0), ("cancel", 0)));
    });
    assert_eq!(orders, 6);
}

#[test]
fn cancel_races_response() {
    let cases = [
        (ANSWER, T::Completed, T::Completed),
        (CONFIRM_CANCEL, T::Cancelled, T::Cancelled),
        (Action::AnswerPromptWithError(-32603), T::Failed, T::Cancelled),
    ];
    for (response, response_first, cancel_first) in cases {
        cancel_response(response).in_every_order(Drain::Answers, |outcome| {
            let asked = outcome.is_first("cancel");
            let state = if asked { cancel_first } else { response_first };
            let task = &outcome.tasks[0];
            assert_eq!(
                (task.state(), task.cancel_requested),
                (state, asked),
                "409 if the task is over"
            );
        });
    }
}

#[test]
fn cancel_races_deadline_of_a_silent_agent() {
    for drain in [Drain::Silent, Drain::DiesOfPrompts] {
        cancel_silence().in_every_order(drain, |outcome| {
            let by_caller = outcome.before(("cancel", 0), ("deadline", 0));
            let expected =
                if by_caller { (T::Cancelled, None) } else { (T::Interrupted, Some("deadline")) };
            let (state, error, attempts) = outcome.end(1);
            assert_eq!(((state, error), attempts), (expected, 1), "the first reason stays");
        });
    }
}

#[test]
fn cancel_races_start() {
    cancel_start().in_every_order(Drain::Answers, |outcome| {
        check_cancel(outcome, outcome.is_first("start"));
    });
}

#[test]
fn response_races_exit() {
    // I7: without output, and with output.
    let retried = (T::Completed, None, 2);
    let over = (T::Interrupted, Some("agent_exited"), 1);
    for (before, died_first) in [(&[][..], retried), (&[OUTPUT], over)] {
        response_exit(before).in_every_order(Drain::Answers, |outcome| {
            let answered = (T::Completed, None, 1);
            assert_eq!(
                outcome.end(1),
                if outcome.is_first("exit") { died_first } else { answered }
            );
        });
    }
}

#[test]
fn response_races_deadline() {
    response_deadline().in_every_order(Drain::Answers, |outcome| {
        let in_time = outcome.before(("response", 0), ("deadline", 2));
        let late = (T::Interrupted, Some("deadline"), 1);
        assert_eq!(outcome.end(1), if in_time { (T::Completed, None, 1) } else { late });
    });
}

#[test]
fn late_lines_of_the_old_run_race_the_new_run() {
    let orders = old_lines_new_run().in_every_order(Drain::Answers, |outcome| {
        assert_eq!(outcome.end(1), (T::Interrupted, Some("agent_exited"), 1));
        assert_eq!(outcome.end(2), (T::Completed, None, 1));
        assert_eq!(outcome.tasks[1].ending().text, "", "the late text belongs to the old run");
        assert_eq!((outcome.count("permission_opened"), outcome.count("run_exited")), (0, 0));
    });
    assert_eq!(orders, 210);
}

#[test]
fn compaction_completion_races_deadline() {
    done_deadline().in_every_order(Drain::Answers, |outcome| {
        assert_eq!(
            (outcome.compactions, outcome.segment),
            (1, 2),
            "AM-23: a late done counts, once"
        );
        let abandoned = usize::from(outcome.is_first("deadline"));
        assert_eq!(outcome.count("compaction_ended"), 1 + abandoned);
        assert_eq!(outcome.end(1), (T::Completed, None, 1), "AM-28: the turn continues");
    });
}

#[test]
fn compaction_completion_races_agent_death() {
    done_death().in_every_order(Drain::Answers, |outcome| {
        let done = !outcome.is_first("death");
        assert_eq!((outcome.compactions, outcome.segment), if done { (1, 2) } else { (0, 1) });
        assert_eq!(outcome.count("compaction_ended"), 1);
    });
}

#[test]
fn compaction_request_races_compaction_request() {
    compaction_compaction().in_every_order(Drain::Answers, |outcome| {
        let compactions: Vec<_> =
            outcome.tasks.iter().filter(|task| task.kind() == TaskKind::Compaction).collect();
        assert_eq!(compactions.len(), 1, "DQ-3: the second request is rejected");
        let (compaction, turn) = (
            compactions[0].start().map(|start| start.at),
            outcome.tasks.iter().find(|task| task.kind() == TaskKind::Turn && task.ordinal > 1),
        );
        let turn = turn.map(|task| task.start().map(|start| start.at));
        assert!(turn > Some(compaction), "DQ-4: {turn:?} is after {compaction:?}");
    });
}

#[test]
fn lock_loss_races_publication() {
    lost_publication().in_every_order(Drain::Answers, |outcome| {
        // Without a signal the answer publishes; a signal after it is of the agent's own
        // compaction.
        let (done, answer) = (("done", 0), ("answer", 0));
        let published = outcome.before(done, ("lost", 0)) || outcome.before(answer, ("lost", 0));
        let by_agent = u64::from(!published && outcome.before(answer, done));
        let (state, ..) = outcome.end(2);
        let expected = if published { (T::Completed, 1) } else { (T::Failed, by_agent) };
        assert_eq!((state, outcome.compactions), expected, "HL-11");
    });
}

/// Returns how the only permission was resolved, and its resolver.
fn decision(outcome: &Outcome) -> (P, Option<&str>, &str) {
    let mut all = outcome.facts.iter().filter_map(|fact| match fact {
        Fact::PermissionResolved { state, selected, resolved_by, .. } => {
            Some((*state, selected.as_deref(), &**resolved_by))
        }
        _ => None,
    });
    let first = all.next();
    assert_eq!(all.next(), None, "resolved once");
    first.unwrap_or_else(|| panic!("the permission was never resolved"))
}

#[test]
fn permission_answers_race_deadline_and_agent_death() {
    let orders = permission().in_every_order(Drain::Answers, |outcome| {
        let expected = [
            ("allow", (P::Selected, Some("o-allow_once"), "someone")),
            ("refuse", (P::Selected, Some("o-reject_once"), "someone")),
            ("deadline", (P::Expired, Some("o-reject_once"), "deadline")),
            ("death", (P::Void, None, "run_ended")),
        ];
        let winner = expected.into_iter().find(|(name, _)| outcome.is_first(name));
        assert_eq!(Some(decision(outcome)), winner.map(|(_, decided)| decided));
        assert_eq!(outcome.end(1).0, T::Interrupted, "a permission request is output: no retry");
    });
    assert_eq!(orders, 24);
}

#[test]
fn permission_answer_races_cancel_and_settlement() {
    permission_settlement().in_every_order(Drain::Answers, |outcome| {
        let expected = [
            ("allow", (P::Selected, Some("o-allow_once"), "someone")),
            ("cancel", (P::Cancelled, None, "cancel")),
            ("settled", (P::Void, None, "settlement")),
        ];
        let winner = expected.into_iter().find(|(name, _)| outcome.is_first(name));
        assert_eq!(Some(decision(outcome)), winner.map(|(_, decided)| decided));
    });
}

#[test]
fn exit_races_retry_cancel_and_resume() {
    let orders = exit_retry_cancel_resume().in_every_order(Drain::Answers, |outcome| {
        let died_first = outcome.before(("exit", 0), ("cancel", 0));
        let retried = died_first
            && outcome.before(("exit", 0), ("retry", 0))
            && outcome.before(("retry", 2), ("cancel", 0));
        let task = &outcome.tasks[0];
        if retried {
            assert_eq!(outcome.end(1), (T::Completed, None, 2));
            assert!(task.cancel_requested, "the second attempt was asked to end");
        } else {
            assert_eq!((task.state(), task.cancel_requested), (T::Cancelled, !died_first));
            assert_eq!(outcome.count("task_started"), 0, "I7: no attempt follows a cancel");
        }
        let retries = usize::from(died_first);
        assert_eq!(outcome.count("task_retrying"), retries, "never after a cancel");
    });
    assert_eq!(orders, 120);
}

#[test]
fn queue_expiry_races_claim_and_start() {
    for expiry in [fire(TimerKind::Queued), TIME_PASSES] {
        expiry_claim_start(expiry).in_every_order(Drain::Answers, |outcome| {
            let claimed = outcome.before(("claim", 0), ("start", 0));
            let sent = claimed && outcome.before(("start", 0), ("expiry", 0));
            let (state, error, attempts) = outcome.end(1);
            if sent {
                assert_eq!((state, error, attempts), (T::Completed, None, 1));
            } else {
                assert_eq!((state, error, attempts), (T::Failed, Some("expired"), 0));
                assert_eq!(outcome.count("session/prompt"), 0);
            }
        });
    }
}

#[test]
fn hold_races_submit_and_resume() {
    let orders = held_submit_resume().in_every_order(Drain::Answers, |outcome| {
        assert_eq!(outcome.end(1), (T::Interrupted, Some("agent_exited"), 1));
        assert_eq!(
            outcome.end(2),
            (T::Completed, None, 1),
            "the task was accepted and is never dropped"
        );
        let resumed = outcome.before(("exit", 0), ("resume", 0));
        assert_eq!(outcome.held, (!resumed).then_some(HoldReason::Interrupted));
        let place = |kind: &str| outcome.facts.iter().position(|fact| fact.kind().ends_with(kind));
        let claimed = place("task_claimed").or_else(|| place("task_started"));
        assert!(place("group_resumed") < claimed, "no task is claimed before the resumption");
    });
    assert_eq!(orders, 24);
}

/// A delete ends everything, whatever races with it: no prompt is sent after it.
#[test]
fn a_delete_races_each_of_these() {
    for (name, race) in rows() {
        race.and("archive", &[Action::Archive]).in_every_order(Drain::Answers, |outcome| {
            let place =
                |kind: &str| outcome.facts.iter().position(|fact| fact.kind().ends_with(kind));
            let archived = place("group_archived");
            assert!(archived.is_some(), "{name}");
            let last = outcome.facts.iter().rposition(|fact| {
                matches!(fact, Fact::TaskQueued { .. } | Fact::TaskStarted { .. })
            });
            assert!(last < archived, "{name}: nothing starts in a deleted group");
            assert_eq!(
                outcome.held,
                None.or(outcome.held.filter(|_| name.starts_with("held"))),
                "{name}"
            );
        });
    }
}

/// A crash of the server: sent prompts are over, and reported so; unsent ones are not lost.
#[test]
fn a_server_crash_races_each_of_these() {
    for (name, race) in rows() {
        race.and("crash", &[Action::Crash]).in_every_order(Drain::Answers, |outcome| {
            for task in &outcome.tasks {
                let restarted = task.ending().stop_reason == Some(StopReason::ServerRestart);
                let retried = outcome.facts.iter().any(|fact| {
                    matches!(fact, Fact::TaskRetrying { task: other, error, .. }
                        if *other == task.id && error.code == "server_restarted")
                });
                assert!(!retried, "{name}: I7");
                let published = task.kind() == TaskKind::Compaction && task.state() == T::Completed;
                let is_over = published || matches!(task.state(), T::Interrupted | T::Cancelled);
                assert!(!restarted || is_over, "{name}: {:?}", task.state());
            }
        });
    }
}
