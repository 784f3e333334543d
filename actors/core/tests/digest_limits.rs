//! Digests of facts made by hand: what is found and what is not, what agents may say without an
//! end, and what a sum does at its limits.

#![allow(clippy::unwrap_used)]

use greenroom_core::{
    Compaction, CompactionStatus, Cost, Digest, Digests, Exit, ExitReason, Finding, Fold, Kinds,
    Lines, PermissionId, PermissionState, RunId, Said, SessionId, Spent, StopReason, TaskId,
    TaskState, Timestamp, Tokens, ToolNews, ToolResult, ToolStep, Usage, Write,
    digest::{Closed, Flaw, FlawKind, Outcome},
};
use serde_json::json;
use uuid::Uuid;

const RUN: RunId = RunId(Uuid::from_u128(1));
const OTHER: RunId = RunId(Uuid::from_u128(2));
const TASK: TaskId = TaskId(Uuid::from_u128(3));
const AT: Timestamp = Timestamp(5_000);
/// What a group, its run and what is carried are stored as must not be longer, whatever its agent
/// says: they are written with every commit.
const BYTES_MAX: usize = 64 << 10;
/// Nor must they be, of an agent whose names are such as agents use.
const PLAIN_BYTES_MAX: usize = 24 << 10;

fn fact(kind: &str, payload: serde_json::Value) -> Write {
    Write::read(&format!("greenroom/{kind}"), &payload.to_string()).unwrap().unwrap()
}

fn said(run: RunId, fold: Fold) -> Write {
    let kinds = Kinds::All("session/update".into());
    let lines = Lines { count: 1, kinds, text: "{}".to_owned().into() };
    Write::Said(Said { run, task: Some(TASK), lines, fold })
}

fn costs(costs: &[(&str, u64)]) -> Fold {
    let cost = |(currency, billionths): &(&str, u64)| Cost {
        currency: (*currency).to_owned(),
        billionths: *billionths,
    };
    Fold { costs: costs.iter().map(cost).collect(), ..Fold::default() }
}

fn called(call: &str, tool: &str, ended: Option<ToolResult>) -> ToolNews {
    ToolNews { call: call.into(), step: ToolStep::Called { tool: tool.into(), ended } }
}

fn ended(call: &str, result: ToolResult) -> ToolNews {
    ToolNews { call: call.into(), step: ToolStep::Ended(result) }
}

fn tools(tools: Vec<ToolNews>) -> Fold {
    Fold { tools, ..Fold::default() }
}

fn started(run: RunId) -> Write {
    Write::RunStarted { run, agent: "one".into(), listens: false }
}

fn session(name: &str) -> Write {
    let session = SessionId(name.into());
    Write::SegmentStarted { segment: 1, parent: None, session, provenance: None }
}

fn ready(name: &str) -> Write {
    fact("run_ready", json!({ "run": RUN, "pid": 1, "session": name, "continuity": "resumed" }))
}

fn exited(run: RunId, reason: ExitReason, code: i32) -> Write {
    let (detail, stderr_tail) = ("as said".to_owned(), String::new());
    let exit = Exit {
        pid: None,
        code: Some(code),
        signal: None,
        reason,
        detail,
        stderr_tail,
        stderr_dropped: 0,
    };
    Write::RunExited { run, exit }
}

fn settled(stop_reason: StopReason) -> Write {
    Write::TurnSettled { task: TASK, stop_reason, tokens: None }
}

fn task_ended(findings: &[&str]) -> Write {
    fact(
        "task_ended",
        json!({
            "task": TASK, "state": TaskState::Completed, "stop_reason": "end_turn", "error": null,
            "interrupted": null, "findings": findings,
        }),
    )
}

fn resolved(state: PermissionState) -> Write {
    fact(
        "permission_resolved",
        json!({
            "permission": PermissionId(Uuid::from_u128(4)), "request": 1, "state": state,
            "selected": null, "resolved_by": "somebody",
        }),
    )
}

fn folded(writes: &[Write]) -> Digests {
    let mut digests = Digests::default();
    writes.iter().for_each(|write| _ = digests.take(write, AT));
    digests
}

/// SEEDS TD-10: each kind of finding and what is none, in the run's digest and in the group's.
#[test]
fn what_a_person_should_look_at() {
    use ExitReason as E;
    use StopReason as S;
    let t = |tools_: Vec<ToolNews>| said(RUN, tools(tools_));
    let (open, done) = (None, Some(ToolResult::Completed));
    let incomplete = vec![FlawKind::IncompleteTurn { task: TASK }];
    let left = |call: &str, tool: &str| FlawKind::ToolWithoutResult {
        tool_call: call.into(),
        tool: tool.into(),
    };
    let stop = |outcome| vec![FlawKind::AbnormalStop { outcome, detail: "as said".into() }];
    let exit = |reason, code| exited(RUN, reason, code);
    let well = || exit(E::Exited, 0);
    #[rustfmt::skip]
    let cases: Vec<(&str, Vec<Write>, Vec<FlawKind>)> = vec![
        ("an answer",                   vec![settled(S::EndTurn)],                                            vec![]),
        ("cut short by the model",      vec![settled(S::MaxTokens)],                                          vec![]),
        ("too many requests",           vec![settled(S::MaxTurnRequests)],                                    vec![]),
        ("a refusal",                   vec![settled(S::Refusal)],                                            vec![]),
        ("called off",                  vec![settled(S::Cancelled)],                                          vec![]),
        ("an error for an answer",      vec![settled(S::Error)],                                              vec![]),
        ("out of time, and answered",   vec![settled(S::Deadline)],                                           vec![]),
        ("no answer: the agent died",   vec![settled(S::ProcessExited)],                                      incomplete.clone()),
        ("no answer: the server died",  vec![settled(S::ServerRestart)],                                      incomplete.clone()),
        ("no answer: it was nonsense",  vec![settled(S::Protocol)],                                           incomplete.clone()),
        ("no answer: not stored",       vec![settled(S::Storage)],                                            incomplete),
        ("an empty answer",             vec![task_ended(&["empty_answer"])],                                  vec![FlawKind::EmptyAnswer { task: TASK }]),
        ("an answer with something",    vec![task_ended(&[])],                                                vec![]),
        ("a tool, and its end",         vec![t(vec![called("a", "ls", open)]), t(vec![ended("a", ToolResult::Completed)]), well()], vec![]),
        ("a tool that failed",          vec![t(vec![called("a", "ls", open), ended("a", ToolResult::Failed)]), well()], vec![]),
        ("a tool at once",              vec![t(vec![called("a", "ls", done)]), well()],                       vec![]),
        ("an end of no tool",           vec![t(vec![ended("a", ToolResult::Completed)]), well()],             vec![]),
        ("a tool without an end",       vec![t(vec![called("a", "ls", open)]), well()],                       vec![left("a", "ls")]),
        ("the same, told twice",        vec![t(vec![called("a", "ls", open), called("a", "rm", open)]), well()], vec![left("a", "ls")]),
        ("a tool without one, not yet", vec![t(vec![called("a", "ls", open)])],                               vec![]),
        ("begun anew after its end",    vec![t(vec![called("a", "ls", done), called("a", "rm", open)]), well()], vec![left("a", "rm")]),
        ("a name that is far too long", vec![t(vec![called(&"a".repeat(129), "ls", open)]), well()],          vec![]),
        ("one that is just not",        vec![t(vec![called(&"a".repeat(128), "ls", open)]), well()],          vec![left(&"a".repeat(128), "ls")]),
        ("a permission: chosen",        vec![resolved(PermissionState::Selected)],                            vec![]),
        ("a permission: refused",       vec![resolved(PermissionState::Cancelled)],                           vec![]),
        ("a permission: in vain",       vec![resolved(PermissionState::Expired)],                             vec![]),
        ("a permission: for nothing",   vec![resolved(PermissionState::Void)],                                vec![FlawKind::UnansweredPermission { permission: PermissionId(Uuid::from_u128(4)) }]),
        ("an end by itself",            vec![well()],                                                         vec![]),
        ("an end that was asked for",   vec![exit(E::Stopped, 143)],                                          vec![]),
        ("a crash",                     vec![exit(E::Exited, 1)],                                             stop(Outcome::Crashed)),
        ("a start that failed",         vec![exit(E::StartFailed, 1)],                                        stop(Outcome::StartFailed)),
        ("a protocol broken",           vec![exit(E::Protocol, 0)],                                           stop(Outcome::Protocol)),
        ("the server's death",          vec![exit(E::ServerRestart, 0)],                                      stop(Outcome::ServerRestart)),
        ("not stored",                  vec![exit(E::Storage, 0)],                                            stop(Outcome::Storage)),
        ("deleted",                     vec![well(), Write::GroupArchived {}],                                vec![]),
    ];
    for (name, writes, expected) in cases {
        let seq = writes.len() as u64 + 1;
        let seq =
            if matches!(writes.last(), Some(Write::GroupArchived {})) { seq - 1 } else { seq };
        let expected: Vec<_> = expected.into_iter().map(|kind| Flaw { seq, kind }).collect();
        let digests = folded(&[vec![started(RUN)], writes].concat());
        for digest in [&digests.group, &digests.run.as_ref().unwrap().digest] {
            assert_eq!(digest.findings.newest, expected, "{name}");
            assert_eq!(digest.findings.count, expected.len() as u64, "{name}");
        }
    }
    let unseen = Finding::EmptyAnswer;
    assert_eq!(json!(unseen), "empty_answer", "the only finding of a task");
}

/// SEEDS TD-9: the state is the last one, sums come from settlements, and what a session cost is a
/// counter, which may begin anew.
#[test]
fn what_was_spent() {
    let (usd, both) = (|own| costs(&[("USD", own)]), |a, b| costs(&[("USD", a), ("EUR", b)]));
    let say = |fold| said(RUN, fold);
    #[rustfmt::skip]
    type Case = (&'static str, Vec<Write>, &'static [(&'static str, u64)]);
    let cases: Vec<Case> = vec![
        ("it grows", vec![say(usd(5)), say(usd(7))], &[("USD", 7)]),
        ("it is the same", vec![say(usd(5)), say(usd(5))], &[("USD", 5)]),
        ("it begins anew", vec![say(usd(5)), say(usd(2)), say(usd(3))], &[("USD", 8)]),
        ("one session more", vec![say(usd(5)), session("b"), say(usd(7))], &[("USD", 12)]),
        (
            "another run of the session",
            vec![
                session("a"),
                say(usd(5)),
                exited(RUN, ExitReason::Stopped, 0),
                started(RUN),
                session("a"),
                say(usd(6)),
            ],
            &[("USD", 6)],
        ),
        (
            "restored under the agent's own name for it",
            vec![
                session("a"),
                say(usd(5)),
                exited(RUN, ExitReason::Stopped, 0),
                started(RUN),
                ready("a, as its agent knows it"),
                say(usd(6)),
            ],
            &[("USD", 6)],
        ),
        (
            "another run, from nothing",
            vec![
                session("a"),
                say(usd(5)),
                exited(RUN, ExitReason::Stopped, 0),
                started(RUN),
                session("a"),
                say(usd(1)),
            ],
            &[("USD", 6)],
        ),
        (
            "two currencies in turn",
            vec![say(both(5, 1)), say(both(6, 2)), say(usd(7))],
            &[("EUR", 2), ("USD", 7)],
        ),
        ("together", vec![say(costs(&[("USD", 5), ("USD", 7), ("USD", 1)]))], &[("USD", 8)]),
        (
            "more than there is",
            vec![say(costs(&[("USD", u64::MAX), ("USD", 0), ("USD", u64::MAX)]))],
            &[("USD", u64::MAX)],
        ),
    ];
    for (name, writes, expected) in cases {
        let digests = folded(&[vec![started(RUN)], writes].concat());
        let costs = digests.group.costs.iter().map(|(name, sum)| (name, *sum));
        assert_eq!(costs.collect::<Vec<_>>(), expected, "{name}");
    }

    let usage =
        |used| say(Fold { usage: Some(Usage { used, size: 100, cost: None }), ..Fold::default() });
    let spent = |input| {
        let total = Tokens { input, output: 1, cached: 0 };
        let tokens = Some(Box::new(Spent { total, ..Spent::default() }));
        Write::TurnSettled { task: TASK, stop_reason: StopReason::EndTurn, tokens }
    };
    let digest =
        folded(&[started(RUN), session("a"), usage(90), spent(7), usage(20), spent(8)]).group;
    let context = digest.context.flatten().map(|own| (own.used, own.size));
    assert_eq!(
        (context, digest.tokens),
        (Some((20, 100)), Tokens { input: 15, output: 2, cached: 0 })
    );
    let another = folded(&[started(RUN), session("a"), usage(90), session("b")]).group.context;
    assert_eq!(another, Some(None), "it was the other session's");
}

/// I11: sums of what an agent makes up have an end, and do not overflow.
#[test]
fn a_compaction_of_too_many_tokens() {
    let mut digests = Digests::default();
    let most = 1 << 40;
    for (id, tokens) in [(0, u64::MAX), (1, u64::MAX), (2, most + 1), (3, most - 1)] {
        let mut compaction: Compaction = serde_json::from_value(compaction(id)).unwrap();
        compaction.details.tokens_before = Some(tokens);
        compaction.details.tokens_after = Some(tokens);
        digests.take(&Write::CompactionEnded(Box::new(compaction.clone())), AT);
        if id == 0 {
            compaction.status = CompactionStatus::Failed;
            digests.take(&Write::CompactionUpdated(Box::new(compaction)), AT);
        }
    }
    let sums = digests.group.compactions;
    assert_eq!((sums.completed, sums.failed), (3, 1));
    assert_eq!((sums.tokens_before, sums.tokens_after), (3 * most as i64 - 1, 3 * most as i64 - 1));
}

/// SEEDS AM-23: a late `done` takes the abandoned one back, of all that a run's rules remember; of
/// a run that is over nothing more is heard.
#[test]
fn a_late_end_of_a_compaction_is_no_second_one() {
    let told = |id: u128, status| {
        let mut compaction: Compaction = serde_json::from_value(compaction(id)).unwrap();
        compaction.status = status;
        Write::CompactionEnded(Box::new(compaction))
    };
    let count = 16;
    let mut digests = folded(&[started(RUN)]);
    for status in [CompactionStatus::Abandoned, CompactionStatus::Completed] {
        (0..count).for_each(|id| _ = digests.take(&told(id, status), AT));
    }
    let sums = digests.group.compactions;
    assert_eq!((sums.abandoned, sums.completed), (0, count as i64));
    assert!(json!(digests.carry).to_string().contains("counted"));
    digests.take(&exited(RUN, ExitReason::Stopped, 0), AT);
    assert!(!json!(digests.carry).to_string().contains("counted"), "nothing is carried on");
}

fn compaction(id: u128) -> serde_json::Value {
    let id = greenroom_core::CompactionId(Uuid::from_u128(id));
    json!({
        "compaction": id, "status": "completed", "source": "acp", "sources": ["acp"],
        "from_segment": 1,
    })
}

/// SEEDS TD-5 at the limit of names: which ones are told apart does not depend on what came
/// together.
#[test]
fn names_are_told_apart_in_the_order_in_which_they_came() {
    let name = |number: u32| format!("{}", number.wrapping_mul(2_654_435_761) % 1_000_003);
    let news = |own| tools(vec![called("a", &name(own), Some(ToolResult::Failed))]);
    let cost = |own| costs(&[(&name(own), 3)]);
    let (mut one_by_one, mut at_once) = (vec![started(RUN)], vec![started(RUN)]);
    for batch in 0..10 {
        let each = (batch * 30..batch * 30 + 30).flat_map(|own| [news(own), cost(own)]);
        let mut joined = Fold::default();
        each.clone().for_each(|own| joined.join(own));
        one_by_one.extend(each.map(|own| said(RUN, own)));
        one_by_one.push(session(&format!("{batch}")));
        at_once.extend([said(RUN, joined), session(&format!("{batch}"))]);
    }
    let (one_by_one, at_once) = (folded(&one_by_one), folded(&at_once));
    let sums = |digest: &Digest| (digest.tools.clone(), digest.costs.clone());
    assert_eq!(sums(&one_by_one.group), sums(&at_once.group));
    assert_eq!(one_by_one.group.tools.iter().map(|(_, own)| own.calls).sum::<u64>(), 300);
    assert_eq!(json!(one_by_one.carry), json!(at_once.carry));
}

/// SEEDS TD-7: a frame of a run that is over leaves nothing behind for the next one.
#[test]
fn late_frames_are_no_part_of_the_next_run() {
    let late = said(RUN, tools(vec![called("a", "ls", None)]));
    let mut digests =
        folded(&[started(RUN), exited(RUN, ExitReason::Stopped, 0), late.clone(), started(OTHER)]);
    digests.take(&late, AT);
    let again = digests.take(&exited(RUN, ExitReason::Exited, 1), AT);
    assert_eq!((again, digests.group.outcome()), (None, None), "the other one goes on");
    assert_eq!(digests.group.outcomes, [(Outcome::Stopped, 1)].into());
    let closed = digests.take(&exited(OTHER, ExitReason::Stopped, 0), AT);
    let Some(Closed::Run(own)) = closed else { panic!("{closed:?}") };
    assert_eq!((own.run, own.digest.frame_count, own.digest.findings.count), (OTHER, 2, 0));
    assert_eq!(digests.group.findings.count, 0);
    let calls = digests.group.tools.get("ls").map(|own| own.calls);
    assert_eq!(calls, Some(2), "it was called all the same");
}

/// I11: an agent that makes up a thousand names of everything, each as long as may be, fills no
/// row.
#[test]
fn the_rows_have_a_limit() {
    let plain = |kind: &str, number: usize| format!("{kind}_of_a_common_length_{number}");
    let odd = |kind: &str, number: usize| format!("{kind}{number}\u{1}\u{7f}").repeat(40);
    let wide =
        |kind: &str, number: usize| format!("{number}\u{1F469}\u{200D}\"\\{kind}").repeat(500);
    type Name<'a> = &'a dyn Fn(&str, usize) -> String;
    let name: [(Name<'_>, usize); 3] =
        [(&plain, PLAIN_BYTES_MAX), (&odd, BYTES_MAX), (&wide, BYTES_MAX)];
    for (name, bytes_max) in name {
        let mut digests = folded(&[
            started(RUN),
            fact("task_started", json!({ "task": TASK, "attempt": 1, "run": RUN })),
        ]);
        for number in 0..1_000 {
            let code = name("code", number);
            let total =
                Tokens { input: u64::MAX / 2000, output: u64::MAX / 2000, cached: u64::MAX / 2000 };
            let by_model = [(name("model", number), total)].into();
            let spent = Spent { total, by_model, given: None };
            let call = name("call", number);
            let call = &call[..call.floor_char_boundary(128)];
            let facts = [
                said(
                    RUN,
                    tools(vec![
                        called(call, &name("tool", number), None),
                        called(&name("longer", number), &name("tool", number), None),
                        called("at once", &name("tool", number), Some(ToolResult::Failed)),
                    ]),
                ),
                said(RUN, costs(&[(&name("money", number), u64::MAX / 2000)])),
                session(&format!("{number}")),
                Write::TurnSettled {
                    task: TASK,
                    stop_reason: StopReason::Storage,
                    tokens: Some(Box::new(spent)),
                },
                fact(
                    "task_retrying",
                    json!({
                        "task": TASK, "attempt": 1, "wait_ms": 1,
                        "error": { "code": code, "message": code },
                    }),
                ),
                Write::CompactionEnded(Box::new(
                    serde_json::from_value(compaction(number as u128)).unwrap(),
                )),
                fact("task_started", json!({ "task": TASK, "attempt": 1, "run": RUN })),
            ];
            facts.iter().for_each(|own| _ = digests.take(own, AT));
        }
        let bytes = |digests: &Digests| {
            [json!(digests.group), json!(digests.run), json!(digests.carry)]
                .map(|own| own.to_string().len())
        };
        let open = bytes(&digests);
        let Write::RunExited { run, mut exit } = exited(RUN, ExitReason::Exited, 1) else {
            panic!()
        };
        exit.detail = name("detail", 7).repeat(100);
        digests.take(&Write::RunExited { run, exit }, AT);
        let [group, own, _] = bytes(&digests);
        let [.., carry] = open;
        assert!(
            [group, own, carry].iter().all(|bytes| *bytes <= bytes_max),
            "{group} {own} {carry}"
        );
        assert_eq!(
            (digests.group.tools.iter().len(), digests.group.findings.newest.len()),
            (49, 5)
        );
        let calls = digests.group.tools.iter().map(|(_, own)| own.calls).sum::<u64>();
        assert_eq!(calls, 3_000);
    }
}
