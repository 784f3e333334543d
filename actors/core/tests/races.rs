//! The races of RELIABILITY section 2, as far as the rules alone decide them: each in every order.
//! In each order every statement of the checker holds, each task has exactly one outcome, and the
//! one wins that has to.

mod orders;
mod world;

use greenroom_core::{
    Held, PermissionState as P, Sign, Source, StopReason, TaskKind, TaskState as T, Write,
};
use orders::{Race, Told, race};
use world::{Bound, Drain, Move, Seen, situations::*};

const GRANT: Move = Move::Grant;
const EXPIRES: Move = Move::SubmitWithin { ms: 1 };
const TIME_PASSES: Move = Move::Wait(1);
const BEGUN: Move = Move::Signal(acp(Sign::Started));
const DONE: Move = Move::Signal(acp(Sign::Completed));
const LATE_DONE: Move = Move::LateSignal(acp(Sign::Completed));
const COMPACTING: &[Move] = &[SUBMIT, GRANT, READY, SAY, ANSWER, Move::Compact, LOCKED, GRANT];

const fn acp(sign: Sign) -> Seen {
    Seen { source: Source::Acp, sign, key: 0, lineage: (0, 0) }
}

const fn expire(bound: Bound) -> Move {
    Move::ExpireA(bound)
}

// ---- the rows

fn claim_cancel() -> Race {
    race(&[&[SUBMIT]], &[("claim", &[GRANT]), ("ready", &[READY]), ("cancel", &[CANCEL])])
}

fn cancel_response(response: Move) -> Race {
    race(&[IN_TURN, &[SAY]], &[("cancel", &[CANCEL]), ("response", &[response])])
}

fn cancel_silence() -> Race {
    let ladder = [expire(Bound::Cancel)];
    let deadline = [expire(Bound::Turn)];
    race(&[IN_TURN, &[SAY]], &[("cancel", &[CANCEL]), ("deadline", &deadline), ("ladder", &ladder)])
}

fn cancel_start() -> Race {
    race(&[&[SUBMIT, GRANT]], &[("cancel", &[CANCEL]), ("start", &[READY])])
}

fn response_exit(said: &[Move]) -> Race {
    let response = [ANSWER, Move::LateAnswer];
    race(&[&[AUTO], IN_TURN, said], &[("response", &response), ("exit", &[DIES])])
}

fn response_deadline() -> Race {
    let deadline = [expire(Bound::Turn), expire(Bound::Cancel), ENDS];
    let response = [ANSWER, Move::LateAnswer];
    race(&[IN_TURN, &[SAY]], &[("response", &response), ("deadline", &deadline)])
}

fn old_lines_new_run() -> Race {
    race(
        &[&[CONTINUES], IN_TURN, &[SAY, DIES, SUBMIT]],
        &[
            ("new", &[GRANT, READY, ANSWER]),
            ("old says", &[Move::LateSay, Move::LateAsk]),
            ("old ends", &[Move::LateAnswer, Move::LateExit]),
        ],
    )
}

fn done_deadline() -> Race {
    let deadline = [expire(Bound::Compaction)];
    race(&[IN_TURN, &[SAY, BEGUN]], &[("done", &[DONE]), ("deadline", &deadline)])
}

fn done_death() -> Race {
    let done = [DONE, LATE_DONE];
    race(&[&[CONTINUES], IN_TURN, &[SAY, BEGUN]], &[("done", &done), ("death", &[DIES])])
}

fn compaction_compaction() -> Race {
    race(
        &[IDLE],
        &[
            ("one", &[Move::Compact]),
            ("other", &[Move::CompactByRotation]),
            ("turn", &[SUBMIT]),
            ("lock", &[LOCKED]),
        ],
    )
}

fn lost_publication() -> Race {
    race(&[COMPACTING], &[("lost", &[Move::LoseLock]), ("done", &[DONE]), ("answer", &[ANSWER])])
}

fn permission() -> Race {
    let deadline = [expire(Bound::Permission)];
    race(
        &[&[CONTINUES], IN_TURN, &[ASK]],
        &[("allow", &[ALLOW]), ("refuse", &[REFUSE]), ("deadline", &deadline), ("death", &[DIES])],
    )
}

fn permission_settlement() -> Race {
    race(&[IN_TURN, &[ASK]], &[("allow", &[ALLOW]), ("cancel", &[CANCEL]), ("settled", &[ANSWER])])
}

fn exit_retry_cancel_resume() -> Race {
    let retry = [expire(Bound::Backoff), GRANT, READY];
    race(
        &[&[AUTO], IN_TURN],
        &[("exit", &[DIES]), ("retry", &retry), ("cancel", &[CANCEL]), ("resume", &[Move::Resume])],
    )
}

fn expiry_claim_start(expiry: Move) -> Race {
    race(&[&[EXPIRES]], &[("expiry", &[expiry]), ("claim", &[GRANT]), ("start", &[READY])])
}

fn held_submit_resume() -> Race {
    race(
        &[&[HOLDS], IN_TURN, &[SAY]],
        &[
            ("exit", &[DIES]),
            ("submit", &[SUBMIT]),
            ("grant", &[GRANT]),
            ("resume", &[Move::Resume]),
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
        ("expiry × claim × START", expiry_claim_start(expire(Bound::Queued))),
        ("held × submit × resume", held_submit_resume()),
    ]
}

// ---- who wins

fn cancelled_or_asked(told: &Told, was_sent: bool) {
    let task = &told.tasks[0];
    if was_sent {
        assert_eq!(
            (task.state, task.cancel_requested),
            (T::Completed, true),
            "it was asked to end"
        );
    } else {
        assert_eq!((task.state, task.cancel_requested), (T::Cancelled, false));
        assert_eq!(told.count("session/prompt"), 0, "nothing was sent");
    }
}

#[test]
fn claim_x_cancel() {
    let orders = claim_cancel().in_every_order(Drain::Answers, |told| {
        // An agent is there to be ready only after the claim.
        let claimed = told.before(("claim", 0), ("ready", 0));
        cancelled_or_asked(told, claimed && told.before(("ready", 0), ("cancel", 0)));
    });
    assert_eq!(orders, 6);
}

#[test]
fn cancel_x_response() {
    let cases = [
        (ANSWER, T::Completed, T::Completed),
        (CONFIRM, T::Cancelled, T::Cancelled),
        (Move::AnswerError(-32603), T::Failed, T::Cancelled),
    ];
    for (response, response_first, cancel_first) in cases {
        cancel_response(response).in_every_order(Drain::Answers, |told| {
            let asked = told.is_first("cancel");
            let state = if asked { cancel_first } else { response_first };
            let task = &told.tasks[0];
            assert_eq!((task.state, task.cancel_requested), (state, asked), "409 if it is over");
        });
    }
}

#[test]
fn cancel_x_silence() {
    for does in [Drain::Silent, Drain::DiesOfPrompts] {
        cancel_silence().in_every_order(does, |told| {
            let by_caller = told.before(("cancel", 0), ("deadline", 0));
            let expected =
                if by_caller { (T::Cancelled, None) } else { (T::Interrupted, Some("deadline")) };
            let (state, error, attempts) = told.end(1);
            assert_eq!(((state, error), attempts), (expected, 1), "the first reason stays");
        });
    }
}

#[test]
fn cancel_x_start() {
    cancel_start().in_every_order(Drain::Answers, |told| {
        cancelled_or_asked(told, told.is_first("start"));
    });
}

#[test]
fn response_x_exit() {
    // I7: nothing was said, or something was.
    let again = (T::Completed, None, 2);
    let over = (T::Interrupted, Some("agent_exited"), 1);
    for (said, died_first) in [(&[][..], again), (&[SAY], over)] {
        response_exit(said).in_every_order(Drain::Answers, |told| {
            let answered = (T::Completed, None, 1);
            assert_eq!(told.end(1), if told.is_first("exit") { died_first } else { answered });
        });
    }
}

#[test]
fn response_x_deadline() {
    response_deadline().in_every_order(Drain::Answers, |told| {
        let in_time = told.before(("response", 0), ("deadline", 2));
        let late = (T::Interrupted, Some("deadline"), 1);
        assert_eq!(told.end(1), if in_time { (T::Completed, None, 1) } else { late });
    });
}

#[test]
fn old_runs_lines_x_new_run() {
    let orders = old_lines_new_run().in_every_order(Drain::Answers, |told| {
        assert_eq!(told.end(1), (T::Interrupted, Some("agent_exited"), 1));
        assert_eq!(told.end(2), (T::Completed, None, 1));
        assert_eq!(told.tasks[1].ending.text, "", "the other run said that");
        assert_eq!((told.count("permission_opened"), told.count("run_exited")), (0, 0));
    });
    assert_eq!(orders, 210);
}

#[test]
fn done_x_deadline() {
    done_deadline().in_every_order(Drain::Answers, |told| {
        assert_eq!((told.compactions, told.segment), (1, 2), "AM-23: a late done counts, once");
        let abandoned = usize::from(told.is_first("deadline"));
        assert_eq!(told.count("compaction_ended"), 1 + abandoned);
        assert_eq!(told.end(1), (T::Completed, None, 1), "AM-28: the turn goes on");
    });
}

#[test]
fn done_x_agent_death() {
    done_death().in_every_order(Drain::Answers, |told| {
        let done = !told.is_first("death");
        assert_eq!((told.compactions, told.segment), if done { (1, 2) } else { (0, 1) });
        assert_eq!(told.count("compaction_ended"), 1);
    });
}

#[test]
fn compaction_x_compaction() {
    compaction_compaction().in_every_order(Drain::Answers, |told| {
        let compactions: Vec<_> =
            told.tasks.iter().filter(|task| task.kind() == TaskKind::Compaction).collect();
        assert_eq!(compactions.len(), 1, "DQ-3: the first is the one to wait for");
        let (own, turn) = (
            compactions[0].started_at,
            told.tasks.iter().find(|task| task.kind() == TaskKind::Turn && task.ordinal > 1),
        );
        let turn = turn.map(|task| task.started_at);
        assert!(turn > Some(own), "DQ-4: {turn:?} is after {own:?}");
    });
}

#[test]
fn lock_lost_x_publication() {
    lost_publication().in_every_order(Drain::Answers, |told| {
        // With no sign of it, the answer publishes; and a sign behind it is of the agent's own.
        let (done, answer) = (("done", 0), ("answer", 0));
        let published = told.before(done, ("lost", 0)) || told.before(answer, ("lost", 0));
        let own = u64::from(!published && told.before(answer, done));
        let (state, ..) = told.end(2);
        let expected = if published { (T::Completed, 1) } else { (T::Failed, own) };
        assert_eq!((state, told.compactions), expected, "HL-11");
    });
}

/// How the only permission was decided on, and by whom.
fn decision(told: &Told) -> (P, Option<&str>, &str) {
    let mut all = told.facts.iter().filter_map(|fact| match fact {
        Write::PermissionResolved { state, selected, resolved_by, .. } => {
            Some((*state, selected.as_deref(), &**resolved_by))
        }
        _ => None,
    });
    let first = all.next();
    assert_eq!(all.next(), None, "decided on once");
    first.unwrap_or_else(|| panic!("nobody decided"))
}

#[test]
fn answer_x_answer_x_deadline_x_death_of_a_permission() {
    let orders = permission().in_every_order(Drain::Answers, |told| {
        let expected = [
            ("allow", (P::Selected, Some("o-allow_once"), "somebody")),
            ("refuse", (P::Selected, Some("o-reject_once"), "somebody")),
            ("deadline", (P::Expired, Some("o-reject_once"), "deadline")),
            ("death", (P::Void, None, "run_ended")),
        ];
        let winner = expected.into_iter().find(|(name, _)| told.is_first(name));
        assert_eq!(Some(decision(told)), winner.map(|(_, decided)| decided));
        assert_eq!(told.end(1).0, T::Interrupted, "to ask is output: it is not made again");
    });
    assert_eq!(orders, 24);
}

#[test]
fn answer_x_cancel_x_settlement_of_a_permission() {
    permission_settlement().in_every_order(Drain::Answers, |told| {
        let expected = [
            ("allow", (P::Selected, Some("o-allow_once"), "somebody")),
            ("cancel", (P::Cancelled, None, "cancel")),
            ("settled", (P::Void, None, "settlement")),
        ];
        let winner = expected.into_iter().find(|(name, _)| told.is_first(name));
        assert_eq!(Some(decision(told)), winner.map(|(_, decided)| decided));
    });
}

#[test]
fn exit_x_retry_x_cancel_x_resume() {
    let orders = exit_retry_cancel_resume().in_every_order(Drain::Answers, |told| {
        let died_first = told.before(("exit", 0), ("cancel", 0));
        let went_again = died_first
            && told.before(("exit", 0), ("retry", 0))
            && told.before(("retry", 2), ("cancel", 0));
        let task = &told.tasks[0];
        if went_again {
            assert_eq!(told.end(1), (T::Completed, None, 2));
            assert!(task.cancel_requested, "the second attempt was asked to end");
        } else {
            assert_eq!((task.state, task.cancel_requested), (T::Cancelled, !died_first));
            assert_eq!(told.count("task_started"), 0, "I7: a cancel is the end of it");
        }
        let retries = usize::from(died_first);
        assert_eq!(told.count("task_retrying"), retries, "never after a cancel");
    });
    assert_eq!(orders, 120);
}

#[test]
fn expiry_x_claim_x_start() {
    for expiry in [expire(Bound::Queued), TIME_PASSES] {
        expiry_claim_start(expiry).in_every_order(Drain::Answers, |told| {
            let claimed = told.before(("claim", 0), ("start", 0));
            let sent = claimed && told.before(("start", 0), ("expiry", 0));
            let (state, error, attempts) = told.end(1);
            if sent {
                assert_eq!((state, error, attempts), (T::Completed, None, 1));
            } else {
                assert_eq!((state, error, attempts), (T::Failed, Some("expired"), 0));
                assert_eq!(told.count("session/prompt"), 0);
            }
        });
    }
}

#[test]
fn held_x_submit_x_resume() {
    let orders = held_submit_resume().in_every_order(Drain::Answers, |told| {
        assert_eq!(told.end(1), (T::Interrupted, Some("agent_exited"), 1));
        assert_eq!(told.end(2), (T::Completed, None, 1), "it was accepted, and never dropped");
        let resumed = told.before(("exit", 0), ("resume", 0));
        assert_eq!(told.held, (!resumed).then_some(Held::Interrupted));
        let place = |kind: &str| told.facts.iter().position(|fact| fact.kind().ends_with(kind));
        let claimed = place("task_claimed").or_else(|| place("task_started"));
        assert!(place("group_resumed") < claimed, "nothing is claimed before somebody decided");
    });
    assert_eq!(orders, 24);
}

/// A delete ends everything, whatever races with it: what was not sent is not sent any more.
#[test]
fn archive_x_each_of_these() {
    for (name, race) in rows() {
        race.and("archive", &[Move::Archive]).in_every_order(Drain::Answers, |told| {
            let place = |kind: &str| told.facts.iter().position(|fact| fact.kind().ends_with(kind));
            let archived = place("group_archived");
            assert!(archived.is_some(), "{name}");
            let last = told.facts.iter().rposition(|fact| {
                matches!(fact, Write::TaskQueued { .. } | Write::TaskStarted { .. })
            });
            assert!(last < archived, "{name}: nothing starts in a deleted group");
            assert_eq!(
                told.held,
                None.or(told.held.filter(|_| name.starts_with("held"))),
                "{name}"
            );
        });
    }
}

/// A crash of the server: what was sent is over, and is told so; what was not is not lost.
#[test]
fn crash_x_each_of_these() {
    for (name, race) in rows() {
        race.and("crash", &[Move::Crash]).in_every_order(Drain::Answers, |told| {
            for task in &told.tasks {
                let restarted = task.ending.stop_reason == Some(StopReason::ServerRestart);
                let again = told.facts.iter().any(|fact| {
                    matches!(fact, Write::TaskRetrying { task: own, error, .. }
                        if *own == task.id && error.code == "server_restarted")
                });
                assert!(!again, "{name}: I7");
                let published = task.kind() == TaskKind::Compaction && task.state == T::Completed;
                let well = published || matches!(task.state, T::Interrupted | T::Cancelled);
                assert!(!restarted || well, "{name}: {:?}", task.state);
            }
        });
    }
}
