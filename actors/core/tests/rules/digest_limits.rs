//! Digests of hand-written facts: which findings they make, the limit of an agent's names, and sums
//! at their limits.

use greenroom_core::{
    AgentOutput, Compaction, CompactionStatus, Cost, Digest, Digests, Exit, ExitReason, Fact,
    Kinds, Lines, OutputSummary, PermissionId, PermissionState, Place, Recorded, RunId, SessionId,
    StopReason, TaskId, TaskState, Timestamp, Tokens, TokensSpent, ToolProgress, ToolResult,
    ToolUpdate, Usage,
    digest::{Finding, FindingKind, Outcome, Sealed},
};
use serde_json::json;
use uuid::Uuid;

const RUN: RunId = RunId(Uuid::from_u128(1));
const OTHER: RunId = RunId(Uuid::from_u128(2));
const TASK: TaskId = TaskId(Uuid::from_u128(3));
const AT: Timestamp = Timestamp(5_000);
/// The most bytes of a stored digest of a group, of its run and of the open state, whatever its
/// agent writes: every commit writes them.
const BYTES_MAX: usize = 64 << 10;
/// The most bytes if the agent's names are of a common length.
const PLAIN_BYTES_MAX: usize = 24 << 10;

fn fact(kind: &str, payload: serde_json::Value) -> Fact {
    Fact::read(&format!("greenroom/{kind}"), &payload.to_string()).unwrap().unwrap()
}

fn output(summary: OutputSummary) -> Fact {
    let kinds = Kinds::All("session/update".into());
    let lines = Lines { count: 1, kinds, text: "{}".to_owned().into() };
    Fact::AgentOutput(AgentOutput { lines, summary })
}

fn costs(costs: &[(&str, u64)]) -> OutputSummary {
    let cost = |(currency, billionths): &(&str, u64)| Cost {
        currency: (*currency).to_owned(),
        billionths: *billionths,
    };
    OutputSummary { costs: costs.iter().map(cost).collect(), ..OutputSummary::default() }
}

fn called(call: &str, tool: &str, ended: Option<ToolResult>) -> ToolUpdate {
    ToolUpdate { call: call.into(), step: ToolProgress::Called { tool: tool.into(), ended } }
}

fn ended(call: &str, result: ToolResult) -> ToolUpdate {
    ToolUpdate { call: call.into(), step: ToolProgress::Ended(result) }
}

fn tools(tools: Vec<ToolUpdate>) -> OutputSummary {
    OutputSummary { tools, ..OutputSummary::default() }
}

fn started(run: RunId) -> Fact {
    Fact::RunStarted { run, agent: "one".into(), has_detectors: false }
}

fn session(name: &str) -> Fact {
    let session = SessionId(name.into());
    Fact::SegmentStarted { segment: 1, parent: None, session, provenance: None }
}

fn ready(name: &str) -> Fact {
    fact("run_ready", json!({ "run": RUN, "pid": 1, "session": name, "continuity": "resumed" }))
}

fn exited(run: RunId, reason: ExitReason, code: i32) -> Fact {
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
    Fact::RunExited { run, exit }
}

fn settled(stop_reason: StopReason) -> Fact {
    Fact::TurnSettled { task: TASK, stop_reason, tokens: None }
}

fn task_ended(findings: &[&str]) -> Fact {
    fact(
        "task_ended",
        json!({
            "task": TASK, "state": TaskState::Completed, "stop_reason": "end_turn", "error": null,
            "interrupted": null, "findings": findings,
        }),
    )
}

fn resolved(state: PermissionState) -> Fact {
    fact(
        "permission_resolved",
        json!({
            "permission": PermissionId(Uuid::from_u128(4)), "request": 1, "state": state,
            "selected": null, "resolved_by": "someone",
        }),
    )
}

/// Applies a fact after those that the digests include.
fn apply(digests: &mut Digests, fact: &Fact) -> Option<Sealed> {
    let seq = digests.group.watermark_seq + 1;
    let place = Place { seq, segment: 1, run: Some(RUN), task: Some(TASK) };
    digests.apply(&Recorded { place, fact: fact.clone() }, AT)
}

fn projected(facts: &[Fact]) -> Digests {
    let mut digests = Digests::default();
    facts.iter().for_each(|fact| _ = apply(&mut digests, fact));
    digests
}

/// TD-10: facts that make a finding and facts that make none, in the digests of the run and of the
/// group.
#[test]
fn each_finding_has_its_cause() {
    use ExitReason as E;
    use StopReason as S;
    let t = |tools_: Vec<ToolUpdate>| output(tools(tools_));
    let (open, done) = (None, Some(ToolResult::Completed));
    let incomplete = vec![FindingKind::IncompleteTurn { task: TASK }];
    let left = |call: &str, tool: &str| FindingKind::ToolWithoutResult {
        tool_call: call.into(),
        tool: tool.into(),
    };
    let stop = |outcome| vec![FindingKind::AbnormalStop { outcome, detail: "as said".into() }];
    let exit = |reason, code| exited(RUN, reason, code);
    let well = || exit(E::Exited, 0);
    #[rustfmt::skip]
    let cases: Vec<(&str, Vec<Fact>, Vec<FindingKind>)> = vec![
        ("an answer",                   vec![settled(S::EndTurn)],                                            vec![]),
        ("cut short by the model",      vec![settled(S::MaxTokens)],                                          vec![]),
        ("too many requests",           vec![settled(S::MaxTurnRequests)],                                    vec![]),
        ("a refusal",                   vec![settled(S::Refusal)],                                            vec![]),
        ("cancelled",                   vec![settled(S::Cancelled)],                                          vec![]),
        ("an error for an answer",      vec![settled(S::Error)],                                              vec![]),
        ("out of time, and answered",   vec![settled(S::Deadline)],                                           vec![]),
        ("no answer: the agent died",   vec![settled(S::ProcessExited)],                                      incomplete.clone()),
        ("no answer: the server died",  vec![settled(S::ServerRestart)],                                      incomplete.clone()),
        ("no answer: it was nonsense",  vec![settled(S::Protocol)],                                           incomplete.clone()),
        ("no answer: not stored",       vec![settled(S::Storage)],                                            incomplete),
        ("an empty answer",             vec![task_ended(&["empty_answer"])],                                  vec![FindingKind::EmptyAnswer { task: TASK }]),
        ("an answer with something",    vec![task_ended(&[])],                                                vec![]),
        ("a tool, and its end",         vec![t(vec![called("a", "ls", open)]), t(vec![ended("a", ToolResult::Completed)]), well()], vec![]),
        ("a tool that failed",          vec![t(vec![called("a", "ls", open), ended("a", ToolResult::Failed)]), well()], vec![]),
        ("a tool at once",              vec![t(vec![called("a", "ls", done)]), well()],                       vec![]),
        ("an end of no tool",           vec![t(vec![ended("a", ToolResult::Completed)]), well()],             vec![]),
        ("a tool without an end",       vec![t(vec![called("a", "ls", open)]), well()],                       vec![left("a", "ls")]),
        ("the same, reported twice",    vec![t(vec![called("a", "ls", open), called("a", "rm", open)]), well()], vec![left("a", "ls")]),
        ("a tool without one, not yet", vec![t(vec![called("a", "ls", open)])],                               vec![]),
        ("started again after its end", vec![t(vec![called("a", "ls", done), called("a", "rm", open)]), well()], vec![left("a", "rm")]),
        ("a name that is far too long", vec![t(vec![called(&"a".repeat(129), "ls", open)]), well()],          vec![]),
        ("one that is just not",        vec![t(vec![called(&"a".repeat(128), "ls", open)]), well()],          vec![left(&"a".repeat(128), "ls")]),
        ("a permission: chosen",        vec![resolved(PermissionState::Selected)],                            vec![]),
        ("a permission: refused",       vec![resolved(PermissionState::Cancelled)],                           vec![]),
        ("a permission: expired",       vec![resolved(PermissionState::Expired)],                             vec![]),
        ("a permission: void",          vec![resolved(PermissionState::Void)],                                vec![FindingKind::UnansweredPermission { permission: PermissionId(Uuid::from_u128(4)) }]),
        ("an end by itself",            vec![well()],                                                         vec![]),
        ("a requested end",             vec![exit(E::Stopped, 143)],                                          vec![]),
        ("a crash",                     vec![exit(E::Exited, 1)],                                             stop(Outcome::Crashed)),
        ("a start that failed",         vec![exit(E::StartFailed, 1)],                                        stop(Outcome::StartFailed)),
        ("a protocol broken",           vec![exit(E::Protocol, 0)],                                           stop(Outcome::Protocol)),
        ("the server's death",          vec![exit(E::ServerRestart, 0)],                                      stop(Outcome::ServerRestart)),
        ("not stored",                  vec![exit(E::Storage, 0)],                                            stop(Outcome::Storage)),
        ("deleted",                     vec![well(), Fact::GroupArchived {}],                                vec![]),
    ];
    for (name, facts, expected) in cases {
        let seq = facts.len() as u64 + 1;
        let seq = if matches!(facts.last(), Some(Fact::GroupArchived {})) { seq - 1 } else { seq };
        let expected: Vec<_> = expected.into_iter().map(|kind| Finding { seq, kind }).collect();
        let digests = projected(&[vec![started(RUN)], facts].concat());
        for digest in [&digests.group, &digests.run.as_ref().unwrap().digest] {
            assert_eq!(digest.findings.newest, expected, "{name}");
            assert_eq!(digest.findings.count, expected.len() as u64, "{name}");
        }
    }
    assert!(matches!(task_ended(&[]), Fact::TaskEnded { has_empty_answer: false, .. }));
    let unknown = json!({
        "task": TASK, "state": TaskState::Completed, "stop_reason": null, "error": null,
        "interrupted": null, "findings": ["unseen"],
    });
    let read = Fact::read("greenroom/task_ended", &unknown.to_string());
    assert!(read.unwrap().is_err(), "the only finding of a task is an empty answer");
}

/// TD-9: the context is the last reported one, token sums come from settlements, and a session's
/// cost is a counter that may restart.
#[test]
fn costs_are_summed_over_restarting_counters() {
    let (usd, both) = (|amount| costs(&[("USD", amount)]), |a, b| costs(&[("USD", a), ("EUR", b)]));
    let say = |summary| output(summary);
    #[rustfmt::skip]
    type Case = (&'static str, Vec<Fact>, &'static [(&'static str, u64)]);
    let cases: Vec<Case> = vec![
        ("it grows", vec![say(usd(5)), say(usd(7))], &[("USD", 7)]),
        ("it is the same", vec![say(usd(5)), say(usd(5))], &[("USD", 5)]),
        ("it restarts", vec![say(usd(5)), say(usd(2)), say(usd(3))], &[("USD", 8)]),
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
    for (name, facts, expected) in cases {
        let digests = projected(&[vec![started(RUN)], facts].concat());
        let costs = digests.group.costs.iter().map(|(name, sum)| (name, *sum));
        assert_eq!(costs.collect::<Vec<_>>(), expected, "{name}");
    }

    let usage = |used| {
        say(OutputSummary {
            usage: Some(Usage { used, size: 100, cost: None }),
            ..OutputSummary::default()
        })
    };
    let spent = |input| {
        let total = Tokens { input, output: 1, cached: 0 };
        let tokens = Some(Box::new(TokensSpent { total, ..TokensSpent::default() }));
        Fact::TurnSettled { task: TASK, stop_reason: StopReason::EndTurn, tokens }
    };
    let digest =
        projected(&[started(RUN), session("a"), usage(90), spent(7), usage(20), spent(8)]).group;
    let context = digest.context.flatten().map(|context| (context.used, context.size));
    assert_eq!(
        (context, digest.tokens),
        (Some((20, 100)), Tokens { input: 15, output: 2, cached: 0 })
    );
    let another = projected(&[started(RUN), session("a"), usage(90), session("b")]).group.context;
    assert_eq!(another, Some(None), "the usage was the other session's");
}

/// I11: sums of an agent's numbers are bounded and do not overflow.
#[test]
fn token_sums_of_compactions_are_bounded() {
    let mut digests = Digests::default();
    let most = 1 << 40;
    for (id, tokens) in [(0, u64::MAX), (1, u64::MAX), (2, most + 1), (3, most - 1)] {
        let mut compaction: Compaction = serde_json::from_value(compaction(id)).unwrap();
        compaction.details.tokens_before = Some(tokens);
        compaction.details.tokens_after = Some(tokens);
        apply(&mut digests, &Fact::CompactionEnded(Box::new(compaction.clone())));
        if id == 0 {
            compaction.status = CompactionStatus::Failed;
            apply(&mut digests, &Fact::CompactionUpdated(Box::new(compaction)));
        }
    }
    let sums = digests.group.compactions;
    assert_eq!((sums.completed, sums.failed), (3, 1));
    assert_eq!((sums.tokens_before, sums.tokens_after), (3 * most as i64 - 1, 3 * most as i64 - 1));
}

/// AM-23: a late completion replaces its abandoned compaction, for every compaction that the run
/// remembers; after the run's end nothing more arrives.
#[test]
fn a_late_completion_replaces_the_abandoned_count() {
    let ended = |id: u128, status| {
        let mut compaction: Compaction = serde_json::from_value(compaction(id)).unwrap();
        compaction.status = status;
        Fact::CompactionEnded(Box::new(compaction))
    };
    let count = 16;
    let mut digests = projected(&[started(RUN)]);
    for status in [CompactionStatus::Abandoned, CompactionStatus::Completed] {
        (0..count).for_each(|id| _ = apply(&mut digests, &ended(id, status)));
    }
    let sums = digests.group.compactions;
    assert_eq!((sums.abandoned, sums.completed), (0, count as i64));
    assert!(json!(digests.open).to_string().contains("counted"));
    apply(&mut digests, &exited(RUN, ExitReason::Stopped, 0));
    assert!(!json!(digests.open).to_string().contains("counted"), "no open state stays");
}

fn compaction(id: u128) -> serde_json::Value {
    let id = greenroom_core::CompactionId(Uuid::from_u128(id));
    json!({
        "compaction": id, "status": "completed", "source": "acp", "sources": ["acp"],
        "from_segment": 1,
    })
}

/// TD-5 at the limit of names: which names are distinguished does not depend on the batches.
#[test]
fn names_are_distinguished_in_order_of_arrival() {
    let name = |number: u32| format!("{}", number.wrapping_mul(2_654_435_761) % 1_000_003);
    let tool = |number| tools(vec![called("a", &name(number), Some(ToolResult::Failed))]);
    let cost = |number| costs(&[(&name(number), 3)]);
    let (mut one_by_one, mut at_once) = (vec![started(RUN)], vec![started(RUN)]);
    for batch in 0..10 {
        let each = (batch * 30..batch * 30 + 30).flat_map(|number| [tool(number), cost(number)]);
        let mut joined = OutputSummary::default();
        each.clone().for_each(|summary| joined.join(summary));
        one_by_one.extend(each.map(output));
        one_by_one.push(session(&format!("{batch}")));
        at_once.extend([output(joined), session(&format!("{batch}"))]);
    }
    let (one_by_one, at_once) = (projected(&one_by_one), projected(&at_once));
    let sums = |digest: &Digest| (digest.tools.clone(), digest.costs.clone());
    assert_eq!(sums(&one_by_one.group), sums(&at_once.group));
    assert_eq!(one_by_one.group.tools.iter().map(|(_, tool)| tool.calls).sum::<u64>(), 300);
    assert_eq!(json!(one_by_one.open), json!(at_once.open));
}

/// TD-7: a late frame of an ended run leaves nothing for the next run.
#[test]
fn late_frames_do_not_count_for_the_next_run() {
    let late = output(tools(vec![called("a", "ls", None)]));
    let mut digests = projected(&[
        started(RUN),
        exited(RUN, ExitReason::Stopped, 0),
        late.clone(),
        started(OTHER),
    ]);
    apply(&mut digests, &late);
    let again = apply(&mut digests, &exited(RUN, ExitReason::Exited, 1));
    assert_eq!((again, digests.group.outcome()), (None, None), "the other run continues");
    assert_eq!(digests.group.outcomes, [(Outcome::Stopped, 1)].into());
    let closed = apply(&mut digests, &exited(OTHER, ExitReason::Stopped, 0));
    let Some(Sealed::Run(other)) = closed else { panic!("{closed:?}") };
    assert_eq!((other.run, other.digest.frame_count, other.digest.findings.count), (OTHER, 2, 0));
    assert_eq!(digests.group.findings.count, 0);
    let calls = digests.group.tools.get("ls").map(|tool| tool.calls);
    assert_eq!(calls, Some(2), "the call still counts");
}

/// I11: an agent that invents a thousand names of each kind, each as long as allowed, stays within
/// the size of a row.
#[test]
fn digest_rows_have_a_size_limit() {
    let plain = |kind: &str, number: usize| format!("{kind}_of_a_common_length_{number}");
    let odd = |kind: &str, number: usize| format!("{kind}{number}\u{1}\u{7f}").repeat(40);
    let wide =
        |kind: &str, number: usize| format!("{number}\u{1F469}\u{200D}\"\\{kind}").repeat(500);
    type Name<'a> = &'a dyn Fn(&str, usize) -> String;
    let name: [(Name<'_>, usize); 3] =
        [(&plain, PLAIN_BYTES_MAX), (&odd, BYTES_MAX), (&wide, BYTES_MAX)];
    for (name, bytes_max) in name {
        let mut digests = projected(&[
            started(RUN),
            fact("task_started", json!({ "task": TASK, "attempt": 1, "run": RUN })),
        ]);
        for number in 0..1_000 {
            let code = name("code", number);
            let total =
                Tokens { input: u64::MAX / 2000, output: u64::MAX / 2000, cached: u64::MAX / 2000 };
            let by_model = [(name("model", number), total)].into();
            let spent = TokensSpent { total, by_model, given: None };
            let call = name("call", number);
            let call = &call[..call.floor_char_boundary(128)];
            let facts = [
                output(tools(vec![
                    called(call, &name("tool", number), None),
                    called(&name("longer", number), &name("tool", number), None),
                    called("at once", &name("tool", number), Some(ToolResult::Failed)),
                ])),
                output(costs(&[(&name("money", number), u64::MAX / 2000)])),
                session(&format!("{number}")),
                Fact::TurnSettled {
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
                Fact::CompactionEnded(Box::new(
                    serde_json::from_value(compaction(number as u128)).unwrap(),
                )),
                fact("task_started", json!({ "task": TASK, "attempt": 1, "run": RUN })),
            ];
            facts.iter().for_each(|fact| _ = apply(&mut digests, fact));
        }
        let bytes = |digests: &Digests| {
            [json!(digests.group), json!(digests.run), json!(digests.open)]
                .map(|row| row.to_string().len())
        };
        let open = bytes(&digests);
        let Fact::RunExited { run, mut exit } = exited(RUN, ExitReason::Exited, 1) else {
            panic!()
        };
        exit.detail = name("detail", 7).repeat(100);
        apply(&mut digests, &Fact::RunExited { run, exit });
        let [group, run, _] = bytes(&digests);
        let [.., open] = open;
        assert!([group, run, open].iter().all(|bytes| *bytes <= bytes_max), "{group} {run} {open}");
        assert_eq!(
            (digests.group.tools.iter().len(), digests.group.findings.newest.len()),
            (49, 5)
        );
        let calls = digests.group.tools.iter().map(|(_, tool)| tool.calls).sum::<u64>();
        assert_eq!(calls, 3_000);
    }
}
