//! Digests of hand-written facts: which findings they make, sums over counters that restart, and
//! the limits of names and sums.

use greenroom_core::{
    AgentOutput, Compaction, CompactionId, CompactionStatus, Cost, Digest, Digests, Event, Exit,
    ExitReason, Fact, Kinds, Lines, OutputSummary, PermissionId, PermissionState, Place, Recorded,
    RunId, SessionId, StopReason, TaskId, TaskState, Timestamp, Tokens, TokensSpent, ToolProgress,
    ToolResult, ToolUpdate, Usage,
    digest::{Finding, FindingKind, Outcome, SCHEMA_VERSION, Sealed},
};
use greenroom_testing::driver::Driver;
use serde_json::json;
use uuid::Uuid;

const RUN: RunId = RunId(Uuid::from_u128(1));
const OTHER: RunId = RunId(Uuid::from_u128(2));
const TASK: TaskId = TaskId(Uuid::from_u128(3));
const PERMISSION: PermissionId = PermissionId(Uuid::from_u128(4));
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
    Fact::AgentOutput(AgentOutput { lines, summary, late: None })
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

fn tools(tools: &[ToolUpdate]) -> OutputSummary {
    OutputSummary { tools: tools.to_vec(), ..OutputSummary::default() }
}

fn started(run: RunId) -> Fact {
    Fact::RunStarted { run, agent: "one".into(), has_detectors: false }
}

fn session(name: &str) -> Fact {
    let session = SessionId(name.into());
    Fact::SegmentStarted { segment: 1, parent: None, session, provenance: None }
}

fn exited(run: RunId, reason: ExitReason, code: i32) -> Fact {
    Fact::RunExited { run, exit: Exit { code: Some(code), ..Exit::unseen(reason, "as said") } }
}

fn settled(stop_reason: StopReason, tokens: Option<TokensSpent>) -> Fact {
    Fact::TurnSettled { task: TASK, stop_reason, tokens: tokens.map(Box::new), early_bytes: 0 }
}

fn task_ended(findings: &[&str]) -> Option<Fact> {
    let ended = json!({
        "task": TASK, "state": TaskState::Completed, "stop_reason": "end_turn", "error": null,
        "interrupted": null, "findings": findings,
    });
    Fact::read("greenroom/task_ended", &ended.to_string()).unwrap().ok()
}

fn compaction_ended(id: u128, status: CompactionStatus, tokens: u64) -> Compaction {
    let mut compaction: Compaction = serde_json::from_value(json!({
        "compaction": CompactionId(Uuid::from_u128(id)), "status": status, "source": "acp",
        "sources": ["acp"], "from_segment": 1,
    }))
    .unwrap();
    compaction.details.tokens_before = Some(tokens);
    compaction.details.tokens_after = Some(tokens);
    compaction
}

/// Applies a fact after those that the digests include.
fn apply(digests: &mut Digests, fact: &Fact) -> Option<Sealed> {
    let seq = digests.group.watermark_seq + 1;
    let place = Place { seq, segment: 1, run: Some(RUN), task: Some(TASK) };
    digests.apply(&Recorded { place, fact: fact.clone() }, Timestamp(5_000))
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
    use {ExitReason as E, PermissionState as P, StopReason as S};
    let well = exited(RUN, E::Exited, 0);
    let (open, done) = (None, Some(ToolResult::Completed));
    let end = |result| ToolUpdate { call: "a".into(), step: ToolProgress::Ended(result) };
    let (too_long, just_fits) = ("a".repeat(129), "a".repeat(128));
    let left = |call: &str, tool: &str| {
        Some(FindingKind::ToolWithoutResult { tool_call: call.into(), tool: tool.into() })
    };
    #[rustfmt::skip]
    let calls = [
        ("with an end",                 vec![called("a", "ls", open), end(ToolResult::Completed)], None),
        ("that failed",                 vec![called("a", "ls", open), end(ToolResult::Failed)],    None),
        ("at once",                     vec![called("a", "ls", done)],                             None),
        ("an end of no tool",           vec![end(ToolResult::Completed)],                          None),
        ("without an end",              vec![called("a", "ls", open)],                             left("a", "ls")),
        ("the same, reported twice",    vec![called("a", "ls", open), called("a", "rm", open)],    left("a", "ls")),
        ("started again after its end", vec![called("a", "ls", done), called("a", "rm", open)],    left("a", "rm")),
        ("a name that is too long",     vec![called(&too_long, "ls", open)],                       None),
        ("one that is just not",        vec![called(&just_fits, "ls", open)],                      left(&just_fits, "ls")),
    ];
    let mut cases: Vec<(String, Vec<Fact>, Option<FindingKind>)> = Vec::new();
    for (name, updates, finding) in calls {
        // Each update is a line of its own; nothing is missing before the run's end.
        let lines: Vec<Fact> = updates.into_iter().map(|one| output(tools(&[one]))).collect();
        cases.push((format!("{name}, not yet"), lines.clone(), None));
        cases.push((name.to_owned(), [lines, vec![well.clone()]].concat(), finding));
    }
    let answers = [S::EndTurn, S::MaxTokens, S::MaxTurnRequests, S::Refusal, S::Cancelled];
    let answers = answers.into_iter().chain([S::Error, S::Deadline]).map(|why| (why, None));
    let incomplete = || Some(FindingKind::IncompleteTurn { task: TASK });
    let cut = [S::ProcessExited, S::ServerRestart, S::Protocol, S::Storage];
    for (why, finding) in answers.chain(cut.map(|why| (why, incomplete()))) {
        cases.push((format!("{why:?}"), vec![settled(why, None)], finding));
    }
    let void = || Some(FindingKind::UnansweredPermission { permission: PERMISSION });
    for (state, finding) in
        [(P::Selected, None), (P::Cancelled, None), (P::Expired, None), (P::Void, void())]
    {
        let resolved = json!({
            "permission": PERMISSION, "request": 1, "state": state, "selected": null,
            "resolved_by": "someone",
        });
        cases.push((format!("{state:?}"), vec![fact("permission_resolved", resolved)], finding));
    }
    for (reason, code, outcome) in [
        (E::Exited, 0, None),
        (E::Stopped, 143, None),
        (E::Exited, 1, Some(Outcome::Crashed)),
        (E::StartFailed, 1, Some(Outcome::StartFailed)),
        (E::Protocol, 0, Some(Outcome::Protocol)),
        (E::ServerRestart, 0, Some(Outcome::ServerRestart)),
        (E::Storage, 0, Some(Outcome::Storage)),
    ] {
        let detail = "as said".to_owned();
        let finding = outcome.map(|outcome| FindingKind::AbnormalStop { outcome, detail });
        cases.push((format!("{reason:?} {code}"), vec![exited(RUN, reason, code)], finding));
    }
    let empty = Some(FindingKind::EmptyAnswer { task: TASK });
    cases.push(("empty".into(), vec![task_ended(&["empty_answer"]).unwrap()], empty));
    cases.push(("not empty".into(), vec![task_ended(&[]).unwrap()], None));
    cases.push(("deleted".into(), vec![Fact::GroupArchived {}, well], None));
    assert!(task_ended(&["unseen"]).is_none(), "the only finding of a task is an empty answer");
    for (name, facts, finding) in cases {
        let seq = facts.len() as u64 + 1;
        let expected: Vec<_> = finding.into_iter().map(|kind| Finding { seq, kind }).collect();
        let digests = projected(&[vec![started(RUN)], facts].concat());
        for digest in [&digests.group, &digests.run.as_ref().unwrap().digest] {
            assert_eq!(digest.findings.newest, expected, "{name}");
            assert_eq!(digest.findings.count, expected.len() as u64, "{name}");
        }
    }
}

/// TD-10: a call counts as failed once, by its result.
#[test]
fn a_failed_call_counts_for_its_tool() {
    use ToolResult::{Completed, Failed};
    let end =
        |call: &str, result| ToolUpdate { call: call.into(), step: ToolProgress::Ended(result) };
    let updates = [
        called("a", "ls", None),
        called("b", "ls", None),
        end("a", Failed),
        end("a", Failed),
        end("b", Completed),
        called("c", "rm", Some(Completed)),
        called("d", "rm", Some(Failed)),
        called("e", "rm", Some(Failed)),
        end("unknown", Failed),
    ];
    let digest = projected(&[started(RUN), output(tools(&updates))]).group;
    let tools: Vec<_> =
        digest.tools.iter().map(|(name, tool)| (name, tool.calls, tool.failed)).collect();
    assert_eq!(tools, [("ls", 2, 1), ("rm", 3, 2)]);
}

/// I11: 64 open calls are remembered; what exceeds them makes no finding.
#[test]
fn a_limited_number_of_open_calls_is_remembered() {
    let calls: Vec<_> = (0..65).map(|id| called(&id.to_string(), "ls", None)).collect();
    for (count, findings) in [(63, 63), (64, 64), (65, 64)] {
        let open = output(tools(&calls[..count]));
        let digest = projected(&[started(RUN), open, exited(RUN, ExitReason::Stopped, 0)]).group;
        assert_eq!(digest.findings.count, findings, "{count}");
    }
}

/// TD-6: digests that begin after a truncated stretch know what was alive at its end, and no field
/// that is at its default is stored.
#[test]
fn after_a_truncation_what_was_alive_is_known() {
    let idle = Driver::idle();
    let mut archived = Driver::idle();
    archived.apply(Event::Archived);
    let seqs = [&idle, &archived].map(|driver| driver.group.state().last_seq);
    assert!(seqs.iter().all(|seq| *seq > 0));
    let (run, task, deleted) = (Some((RUN, "one")), Some(TASK), Some(Outcome::Deleted));
    let session = json!({ "session": "s" });
    #[rustfmt::skip]
    let cases = [
        ("nothing",                &idle,     None, None, None,          session.clone()),
        ("a run",                  &idle,     run,  None, Some(None),    session),
        ("a waiting compaction",   &idle,     None, task, None,          json!({ "session": "s", "compaction": TASK })),
        ("archived",               &archived, None, None, Some(deleted), json!({ "session": "s", "archived": true })),
        ("archived, a run stops",  &archived, run,  None, Some(None),    json!({ "session": "s", "archived": true })),
    ];
    for (name, driver, run, compaction, outcome, open) in cases {
        let state = driver.group.state();
        let digests = Digests::after_truncation(state, run, compaction);
        let empty = Digest { watermark_seq: state.last_seq, ..Digest::default() };
        assert_eq!(json!(digests.open), open, "{name}");
        assert_eq!(digests.group, Digest { outcome, ..empty.clone() }, "{name}");
        let known = digests.run.map(|run| (run.run, run.agent, run.schema_version, run.digest));
        let expected = run.map(|(run, agent)| (run, agent.to_owned(), SCHEMA_VERSION, empty));
        assert_eq!(known, expected, "{name}");
    }
}

/// TD-9: a session's cost is a counter that may restart, the context is the last reported one, and
/// token sums come from settlements.
#[test]
fn costs_are_summed_over_restarting_counters() {
    let usd = |amount| output(costs(&[("USD", amount)]));
    let both = |usd, eur| output(costs(&[("USD", usd), ("EUR", eur)]));
    let (same, other, begin) = (session("a"), session("b"), started(RUN));
    let stop = exited(RUN, ExitReason::Stopped, 0);
    let renamed = json!({ "run": RUN, "pid": 1, "session": "c", "continuity": "resumed" });
    let renamed = fact("run_ready", renamed);
    let too_many = costs(&[("USD", u64::MAX), ("USD", 0), ("USD", u64::MAX)]);
    #[rustfmt::skip]
    let cases = [
        ("it grows",                    vec![usd(5), usd(7)],                                    7, 0),
        ("it is the same",              vec![usd(5), usd(5)],                                    5, 0),
        ("it restarts",                 vec![usd(5), usd(2), usd(3)],                            8, 0),
        ("another session",             vec![usd(5), other.clone(), usd(7)],                     12, 0),
        ("another run of the session",  vec![usd(5), stop.clone(), begin.clone(), same, usd(6)], 6, 0),
        ("restored under another name", vec![usd(5), stop, begin, renamed, usd(6)],              6, 0),
        ("two currencies in turn",      vec![both(5, 1), both(6, 2), usd(7)],                    7, 2),
        ("more than there is",          vec![output(too_many), both(0, 1)],                      u64::MAX, 1),
    ];
    let projected = |facts| projected(&[vec![started(RUN), session("a")], facts].concat()).group;
    for (name, facts, dollars, euros) in cases {
        let digest = projected(facts);
        let costs = digest.costs.iter().map(|(name, sum)| (name, *sum));
        let expected = [("EUR", euros), ("USD", dollars)];
        assert!(costs.eq(expected.into_iter().filter(|(_, sum)| 0 < *sum)), "{name}: {digest:?}");
    }

    let usage = |used| {
        let usage = Some(Usage { used, size: 100, cost: None });
        output(OutputSummary { usage, ..OutputSummary::default() })
    };
    let spent = |input| {
        let total = Tokens { input, output: 1, cached: 0 };
        settled(StopReason::EndTurn, Some(TokensSpent { total, ..TokensSpent::default() }))
    };
    let digest = projected(vec![usage(90), spent(7), usage(20), spent(8)]);
    assert_eq!(digest.tokens, Tokens { input: 15, output: 2, cached: 0 });
    let context = digest.context.flatten().map(|context| (context.used, context.size));
    assert_eq!(context, Some((20, 100)));
    let context = projected(vec![usage(90), other]).context;
    assert_eq!(context, Some(None), "the usage was the other session's");
}

/// A turn's tokens are those of its answer; a rotation's, those of its summary too.
#[test]
fn tokens_are_counted_at_both_answers_of_a_rotation() {
    let spent = |output| {
        let total = Tokens { output, ..Tokens::default() };
        TokensSpent { total, ..TokensSpent::default() }
    };
    let summary = Fact::SummaryGiven { task: TASK, tokens: Some(Box::new(spent(3))) };
    let digests = projected(&[started(RUN), summary, settled(StopReason::EndTurn, Some(spent(4)))]);
    assert_eq!(digests.group.tokens.output, 7);
}

/// I11: sums of an agent's numbers are bounded and do not overflow.
#[test]
fn token_sums_of_compactions_are_bounded() {
    use CompactionStatus::{Completed, Failed};
    let mut digests = Digests::default();
    let most = 1 << 40;
    for (id, tokens) in [(0, u64::MAX), (1, u64::MAX), (2, most + 1), (3, most - 1)] {
        let ended = compaction_ended(id, Completed, tokens);
        apply(&mut digests, &Fact::CompactionEnded(Box::new(ended)));
    }
    let failed = compaction_ended(0, Failed, u64::MAX);
    apply(&mut digests, &Fact::CompactionUpdated(Box::new(failed)));
    let sums = digests.group.compactions;
    assert_eq!((sums.completed, sums.failed), (3, 1));
    assert_eq!((sums.tokens_before, sums.tokens_after), (3 * most as i64 - 1, 3 * most as i64 - 1));
}

/// AM-23: a late completion replaces its abandoned compaction, for every compaction that the run
/// remembers; after the run's end nothing more arrives.
#[test]
fn a_late_completion_replaces_the_abandoned_count() {
    let count = 16;
    let mut digests = projected(&[started(RUN)]);
    for status in [CompactionStatus::Abandoned, CompactionStatus::Completed] {
        for id in 0..count {
            let ended = compaction_ended(id, status, 1);
            apply(&mut digests, &Fact::CompactionEnded(Box::new(ended)));
        }
    }
    let sums = digests.group.compactions;
    assert_eq!((sums.abandoned, sums.completed), (0, count as i64));
    assert!(json!(digests.open).to_string().contains("counted"));
    apply(&mut digests, &exited(RUN, ExitReason::Stopped, 0));
    assert!(!json!(digests.open).to_string().contains("counted"), "no open state stays");
    let updated = compaction_ended(0, CompactionStatus::Completed, 1);
    apply(&mut digests, &Fact::CompactionUpdated(Box::new(updated)));
    assert_eq!(digests.group.compactions, sums, "an update counts nothing");
}

/// TD-5 at the limit of names: which names are distinguished does not depend on the batches.
#[test]
fn names_are_distinguished_in_order_of_arrival() {
    let name = |number: u32| format!("{}", number.wrapping_mul(2_654_435_761) % 1_000_003);
    let tool = |number| tools(&[called("a", &name(number), Some(ToolResult::Failed))]);
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
    let late = output(tools(&[called("a", "ls", None)]));
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
    let plain = |kind: &str, number: u64| format!("{kind}_of_a_common_length_{number}");
    let odd = |kind: &str, number: u64| format!("{kind}{number}\u{1}\u{7f}").repeat(40);
    let wide = |kind: &str, number: u64| format!("{number}\u{1F469}\u{200D}\"\\{kind}").repeat(500);
    type Name<'a> = &'a dyn Fn(&str, u64) -> String;
    let names: [(Name<'_>, usize); 3] =
        [(&plain, PLAIN_BYTES_MAX), (&odd, BYTES_MAX), (&wide, BYTES_MAX)];
    let begun = fact("task_started", json!({ "task": TASK, "attempt": 1, "run": RUN }));
    for (name, bytes_max) in names {
        let mut digests = projected(&[started(RUN), begun.clone()]);
        for number in 0..1_000 {
            let most = u64::MAX / 2000;
            let total = Tokens { input: most, output: most, cached: most };
            let by_model = [(name("model", number), total)].into();
            let (code, call, tool) =
                (name("code", number), name("call", number), name("tool", number));
            let retrying = json!({
                "task": TASK, "attempt": 1, "wait_ms": 1,
                "error": { "code": code, "message": code },
            });
            let completed = compaction_ended(number.into(), CompactionStatus::Completed, 1);
            for fact in [
                output(tools(&[
                    called(&call[..call.floor_char_boundary(128)], &tool, None),
                    called(&name("longer", number), &tool, None),
                    called("at once", &tool, Some(ToolResult::Failed)),
                ])),
                output(costs(&[(&name("money", number), most)])),
                session(&format!("{number}")),
                settled(
                    StopReason::Storage,
                    Some(TokensSpent { total, by_model, ..TokensSpent::default() }),
                ),
                fact("task_retrying", retrying),
                Fact::CompactionEnded(Box::new(completed)),
                begun.clone(),
            ] {
                apply(&mut digests, &fact);
            }
        }
        let open = json!(digests.open);
        let detail = name("detail", 7).repeat(100);
        let exit = Exit { code: Some(1), ..Exit::unseen(ExitReason::Exited, detail) };
        apply(&mut digests, &Fact::RunExited { run: RUN, exit });
        let bytes =
            [json!(digests.group), json!(digests.run), open].map(|row| row.to_string().len());
        assert!(bytes.iter().all(|bytes| *bytes <= bytes_max), "{bytes:?}");
        let digest = digests.group;
        assert_eq!((digest.tools.iter().len(), digest.findings.newest.len()), (49, 5));
        assert_eq!(digest.tools.iter().map(|(_, tool)| tool.calls).sum::<u64>(), 3_000);
    }
}
