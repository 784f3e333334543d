//! Retries of failed attempts, the backoff of a crash loop, and the limit of open permissions: I7,
//! I11, F7, F8.

use greenroom_core::{
    Answer, Effect, ErrorKind, Event, Exit, ExitReason, Fact, Json, PermissionState, PromptReply,
    RetryPolicy, Settings, SignalKind, Source, Status, Stop, StopReason, Strategy, TaskId,
    TaskState as T, Timer,
};
use greenroom_testing::driver::{Driver, LIMITS, Step, acquired, kinds};

/// How an attempt fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Failure {
    NotStarted,
    Exit(ExitReason),
    Error(i64),
}

impl Failure {
    fn apply(self, driver: &mut Driver) {
        if self != Self::NotStarted {
            driver.ready("s", None);
        }
        let exits = |driver: &mut Driver, reason| {
            driver.apply(Event::AgentExited { run: driver.run(), exit: Exit::unseen(reason, "") })
        };
        match self {
            Self::NotStarted => drop(exits(driver, ExitReason::StartFailed)),
            Self::Exit(reason) => drop(exits(driver, reason)),
            Self::Error(code) => drop(driver.fail(code)),
        }
    }
}

/// the kind of failure and the retry policy decide whether the task is retried.
#[test]
fn failure_kind_and_policy_decide_a_retry() {
    use RetryPolicy::{Never, NoOutput, Undelivered};
    let sent = [false, false, true];
    #[rustfmt::skip]
    let cases = [
        (Failure::NotStarted,                      [false, true, true]),
        (Failure::Exit(ExitReason::Exited),        sent),
        (Failure::Exit(ExitReason::Protocol),      [false; 3]),
        (Failure::Exit(ExitReason::Storage),       [false; 3]),
        (Failure::Exit(ExitReason::ServerRestart), [false; 3]),
        (Failure::Error(-32603),                   sent),
        (Failure::Error(-32700),                   sent),
        (Failure::Error(1),                        sent),
        (Failure::Error(-32000),                   [false; 3]),
        (Failure::Error(-32600),                   [false; 3]),
        (Failure::Error(-32601),                   [false; 3]),
        (Failure::Error(-32602),                   [false; 3]),
    ];
    for (failure, retried) in cases {
        for (policy, retried) in [Never, Undelivered, NoOutput].into_iter().zip(retried) {
            let mut driver = Driver::default();
            driver.settings.retry = policy;
            let task = driver.turn();
            failure.apply(&mut driver);
            let state = driver.group.task(task).map(|task| (task.state(), task.attempt));
            assert_eq!(state, retried.then_some((T::Retrying, 1)), "{failure:?} {policy:?}");
            let over = driver.ended(task).map(|(state, _)| state.is_terminal());
            assert_eq!(over, (!retried).then_some(true), "{failure:?} {policy:?}");
            let counts = |fact: &Fact| match fact {
                Fact::TaskEnded { error: Some(error), .. } => error.message.contains("attempts"),
                _ => false,
            };
            assert!(!driver.facts.iter().any(counts), "one attempt is not counted: {failure:?}");
        }
    }
}

/// I7: any sign that the agent read the prompt forbids a retry.
#[test]
fn output_or_a_cancel_forbids_a_retry() {
    type Action = fn(&mut Driver);
    let nothing: Action = |driver| drop(driver.usage(5));
    let speaks: Action = |driver| drop(driver.say("so"));
    let asks: Action = |driver| drop(driver.ask(1));
    let logs: Action = |driver| drop(driver.reject("eHsi")); // x{"
    let garbles: Action = |driver| drop(driver.reject("eyJp")); // {"i
    let cancelled: Action = |driver| {
        let task = driver.group.current().unwrap().id;
        driver.apply(Event::CancelRequested(task));
    };
    let late: Action = |driver| drop(driver.expire(|timer| matches!(timer, Timer::Attempt(_))));
    let cases = [
        ("usage only", nothing, T::Retrying, T::Retrying),
        ("speaks", speaks, T::Interrupted, T::Failed),
        ("asks", asks, T::Interrupted, T::Failed),
        ("a log line", logs, T::Retrying, T::Retrying),
        ("half a message", garbles, T::Interrupted, T::Failed),
        ("cancelled", cancelled, T::Cancelled, T::Cancelled),
        ("after its deadline", late, T::Interrupted, T::Interrupted),
    ];
    for (name, act, died, failed) in cases {
        for (failure, state) in
            [(Failure::Exit(ExitReason::Exited), died), (Failure::Error(1), failed)]
        {
            let mut driver = Driver::in_turn();
            driver.settings.retry = RetryPolicy::NoOutput;
            let task = driver.group.current().unwrap().id;
            act(&mut driver);
            match failure {
                Failure::Error(code) => drop(driver.fail(code)),
                _ => {
                    let exit = Exit::unseen(ExitReason::Exited, "");
                    driver.apply(Event::AgentExited { run: driver.run(), exit });
                }
            }
            let found = driver.group.task(task).map(|task| task.state());
            let found = found.or_else(|| driver.ended(task).map(|(state, _)| state));
            assert_eq!(found, Some(state), "{name}, {failure:?}");
        }
    }
}

/// I7: an answer that greenroom does not understand ends the turn, and is never followed by another
/// attempt: the agent may have acted. Output makes a result of it.
#[test]
fn an_unclear_answer_ends_the_turn() {
    let own = StopReason::from_agent("_vendor_pause");
    let stopped = |stop_reason| PromptReply::Stopped { stop_reason, tokens: None };
    let error = PromptReply::Unclear { message: "boom".into() };
    #[rustfmt::skip]
    let cases = [
        ("its own word",      false, stopped(own),                 T::Failed,    Some("agent_answer_unclear")),
        ("none",              false, stopped(StopReason::Unclear), T::Failed,    Some("agent_answer_unclear")),
        ("an error",          false, error.clone(),                T::Failed,    Some("agent_error")),
        ("its own, output",   true,  stopped(own),                 T::Completed, None),
        ("none, output",      true,  stopped(StopReason::Unclear), T::Completed, None),
        ("an error, output",  true,  error,                        T::Failed,    Some("agent_error")),
    ];
    for (name, speaks, reply, state, code) in cases {
        let mut driver = Driver::in_turn();
        driver.settings.retry = RetryPolicy::NoOutput;
        let task = driver.group.current().unwrap().id;
        if speaks {
            driver.say("so");
        }
        driver.reply(reply);
        assert_eq!(driver.ended(task), Some((state, code.map(str::to_owned))), "{name}");
    }
}

/// The group retries a task five times, each wait twice the last; then the task fails, and its
/// error says so. It is not interrupted, as no attempt began.
#[test]
fn a_task_is_retried_five_times() {
    for failure in [Failure::NotStarted, Failure::Exit(ExitReason::Exited), Failure::Error(1)] {
        let mut driver = Driver::default();
        driver.settings.retry = RetryPolicy::NoOutput;
        let task = driver.turn();
        let mut waits = Vec::new();
        for _ in 0..9 {
            match failure {
                // Its agent still runs, and gets the next attempt at once.
                Failure::Error(code) if driver.group.attempt().is_some() => drop(driver.fail(code)),
                _ => failure.apply(&mut driver),
            }
            let now = driver.moment();
            let wait = driver.group.timers(&LIMITS, now).find_map(|(timer, ms)| match timer {
                Timer::Backoff(waiting, _) if waiting == task => Some(ms),
                _ => None,
            });
            let Some(wait) = wait else { break };
            waits.push(wait);
            assert!(
                !driver.group.wants_slot() && driver.group.current().is_none(),
                "a task in backoff holds no slot"
            );
            driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
            driver.grant();
        }
        assert_eq!(waits, [5_000, 10_000, 20_000, 40_000, 80_000], "{failure:?}");
        assert_eq!(driver.ended(task).map(|(state, _)| state), Some(T::Failed), "{failure:?}");
        let last = driver.facts.iter().find_map(|fact| match fact {
            Fact::TaskEnded { record, .. } => {
                let ending = record.ending();
                let message = ending.error.as_ref().map_or("", |error| &error.message);
                let says_so = message.ends_with("; given up after 6 attempts");
                Some((record.attempt, ending.interrupted.clone(), says_so))
            }
            _ => None,
        });
        assert_eq!(last, Some((6, None, true)), "{failure:?}");
    }
}

/// I16, DQ-8: a session may be given up at the last attempt of a task; without retries, after as
/// many failed runs in a row.
#[test]
fn a_session_is_given_up_at_the_last_attempt() {
    for policy in [RetryPolicy::NoOutput, RetryPolicy::Undelivered, RetryPolicy::Never] {
        let mut driver = Driver::idle();
        driver.settings.retry = policy;
        driver.exit(ExitReason::Exited);
        driver.clear();
        for run in 0..6 {
            if run == 0 || policy == RetryPolicy::Never {
                driver.turn();
            } else {
                driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
                driver.grant();
            }
            Failure::NotStarted.apply(&mut driver);
        }
        let given_up = driver.effects.iter().filter_map(|effect| match effect {
            Effect::Launch { may_replace, .. } => Some(*may_replace),
            _ => None,
        });
        let expected = [false, false, false, false, false, true];
        assert_eq!(given_up.collect::<Vec<_>>(), expected, "{policy:?}");
    }
}

/// F7: the error of a task whose agent did not start quotes the last line of its stderr.
#[test]
fn the_error_of_a_failed_start_quotes_stderr() {
    let start = "the agent could not be started: no such file";
    for (stderr_tail, quoted) in
        [("", ""), ("a warning\nno key\n}\n", "; the last line of its stderr: no key")]
    {
        let mut driver = Driver::default();
        driver.turn();
        let exit = Exit {
            stderr_tail: stderr_tail.into(),
            ..Exit::unseen(ExitReason::StartFailed, "no such file")
        };
        driver.apply(Event::AgentExited { run: driver.run(), exit });
        let error = driver.facts.iter().find_map(|fact| match fact {
            Fact::TaskEnded { error, .. } => error.as_ref().map(|error| error.message.clone()),
            _ => None,
        });
        assert_eq!(error, Some(format!("{start}{quoted}")));
    }
}

/// Several timers may fire at once, and the effect of one can make another void.
#[test]
fn a_backoff_is_ended_only_by_its_own_timer() {
    let mut driver = Driver::default();
    driver.settings.retry = RetryPolicy::NoOutput;
    let task = driver.turn();
    Failure::NotStarted.apply(&mut driver);
    driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
    driver.grant();
    Failure::NotStarted.apply(&mut driver);
    let queued = driver.queue_turn();
    for stale in [Timer::Backoff(task, 1), Timer::Backoff(queued, 2), Timer::Backoff(queued, 0)] {
        let step = driver.apply(Event::TimerFired(stale));
        assert!(step.facts.is_empty(), "{stale:?}: {step:?}");
    }
    assert_eq!(
        kinds(&driver.apply(Event::TimerFired(Timer::Backoff(task, 2))).facts),
        ["backoff_ended"]
    );
}

/// F8: from the sixth failure in a row the group waits, at most five minutes; an answer or a
/// caller's action ends the wait.
#[test]
fn a_crash_loop_backs_off_up_to_five_minutes() {
    let mut driver = Driver::default();
    let mut waits = Vec::new();
    for number in 1..=16 {
        let task = driver.turn();
        assert!(number < 7 || driver.group.current().is_none(), "{number} has to wait");
        if number > 6 {
            let now = driver.moment();
            let timers = driver.group.timers(&LIMITS, now);
            let wait = timers.filter(|(timer, _)| matches!(timer, Timer::Launch(_)));
            waits.extend(wait.map(|(_, ms)| ms / 1_000));
            assert_eq!(driver.group.status(), Status::Degraded);
            driver.expire(|timer| matches!(timer, Timer::Launch(_)));
            driver.grant();
        }
        Failure::NotStarted.apply(&mut driver);
        assert_eq!(driver.ended(task).map(|(state, _)| state), Some(T::Failed), "{number}");
        // Neither the timer of an earlier wait counts, nor any while no run waits.
        let (stale, crashes) = (number - 1, driver.group.state().crash_loop.crashes);
        for timer in [stale].into_iter().chain((number < 6).then_some(crashes)) {
            assert_eq!(driver.apply(Event::TimerFired(Timer::Launch(timer))), Step::default());
        }
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
    let looping = driver.group.clone();
    let changed = Settings { agent: "other".into(), ..Settings::default() };
    for end in [Event::Resumed, Event::Configured(changed)] {
        driver.group = looping.clone();
        driver.apply(end);
        let ended = (driver.group.state().crash_loop.crashes, driver.group.status());
        assert_eq!(ended, (0, Status::Idle));
        driver.turn();
        assert!(driver.group.current().is_some(), "the next run starts at once");
    }
}

/// I11: requests beyond the limit are refused, so an agent cannot fill the memory.
#[test]
fn at_most_a_hundred_permissions_are_open() {
    let mut driver = Driver::in_turn();
    for request in 1..=103 {
        let answers = driver.ask(request).effects;
        let refused: Vec<_> = answers
            .iter()
            .map(|effect| match effect {
                Effect::Answer { answer, .. } => answer.selected.as_deref(),
                other => panic!("{other:?}"),
            })
            .collect();
        let expected: &[_] = if request > 100 { &[Some("reject_once")] } else { &[] };
        assert_eq!(refused, expected, "{request}");
    }
    assert_eq!(driver.group.permissions().len(), 100);
    assert!(driver.ask(7).effects.is_empty(), "F14: the request is open already");
    driver.clear();
    let step =
        driver.reply(PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None });
    let void = |fact: &&Fact| {
        matches!(fact, Fact::PermissionResolved { state: PermissionState::Void, .. })
    };
    assert_eq!(step.facts.iter().filter(void).count(), 100);
    assert_eq!(
        kinds(&step.facts)[100..],
        ["turn_settled", "task_ended"],
        "permissions are void before the settlement"
    );
    assert_eq!(step.effects.len(), 100, "the agent gets each answer");
}

/// DQ-7: a permission requested within a turn keeps the agent's place in the pool; one requested
/// outside of a turn does not. It becomes void with the run.
#[test]
fn an_agent_with_a_permission_outside_of_a_turn_may_be_evicted() {
    let mut driver = Driver::in_turn();
    driver.ask(1);
    assert!(driver.group.needs_run(), "its turn needs the run");
    driver.say("so");
    driver.answer(StopReason::EndTurn);
    driver.ask(2);
    assert_eq!((driver.group.permissions().len(), driver.group.needs_run()), (1, false));
    let now = driver.moment();
    let idle = |(timer, _): &(Timer, u64)| matches!(timer, Timer::Idle(..));
    assert!(!driver.group.timers(&LIMITS, now).any(|timer| idle(&timer)), "no idle timer runs");
    let run = driver.run();
    let step = driver.apply(Event::Evicted { run });
    let void =
        |fact: &Fact| matches!(fact, Fact::PermissionResolved { state: PermissionState::Void, .. });
    assert!(step.facts.iter().any(void), "it is void before an answer is lost: {step:?}");
    let answer = Answer { request: Json::write(&2).unwrap(), selected: None };
    let expected = [Effect::Answer { run, answer }, Effect::Stop { run, how: Stop::Gently }];
    assert_eq!(step.effects, expected, "the agent gets the answer before its stdin is closed");
}

/// I7, DQ-11: a prompt that a server withheld as it shut down was not run, so its task keeps its
/// place under every retry policy, unless its caller cancelled it meanwhile.
#[test]
fn the_task_of_a_withheld_prompt_keeps_its_place() {
    for policy in [RetryPolicy::Never, RetryPolicy::NoOutput] {
        let mut driver = Driver::in_turn();
        driver.settings.retry = policy;
        let task = driver.group.current().unwrap().id;
        let next = driver.queue_turn();
        let id = driver.group.attempt().unwrap().prompt_id;
        let stale = Event::PromptWithheld { run: driver.run(), id: id + 1 };
        assert!(driver.apply(stale).facts.is_empty());
        let step = driver.apply(Event::PromptWithheld { run: driver.run(), id });
        assert_eq!(kinds(&step.facts), ["turn_settled", "task_retrying"], "{policy:?}");
        let order: Vec<_> = driver.group.waiting().map(|task| task.id).collect();
        assert_eq!((order, driver.group.current()), (vec![task, next], None));
        driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
        driver.grant();
        assert_eq!(driver.group.current().map(|task| (task.id, task.attempt)), Some((task, 2)));
        driver.say("done");
        driver.answer(StopReason::EndTurn);
        assert_eq!(driver.ended(task), Some((T::Completed, None)));
    }
    let by_caller: fn(TaskId) -> Event = Event::CancelRequested;
    let by_deletion: fn(TaskId) -> Event = |_| Event::Archived;
    for (is_cut, cancel) in [(false, by_caller), (true, by_caller), (true, by_deletion)] {
        let mut driver = Driver::in_turn();
        let task = driver.group.current().unwrap().id;
        let id = driver.group.attempt().unwrap().prompt_id;
        if is_cut {
            driver.apply(Event::DrainTimedOut);
        }
        driver.apply(cancel(task));
        driver.apply(Event::PromptWithheld { run: driver.run(), id });
        let ended = driver.ended(task).map(|(state, _)| state);
        assert_eq!(ended, Some(T::Cancelled), "cut by the shutdown first: {is_cut}");
        assert_eq!(driver.group.state().hold.reason, None);
    }
}

/// AM-23, I7: a compaction that ends late counts; but it is not the outcome of a later attempt,
/// whose prompt the agent had not got then.
#[test]
fn a_compaction_that_completes_late_does_not_complete_the_next_attempt() {
    let mut driver = Driver::compacting(Strategy::Command);
    let task = driver.group.current().unwrap().id;
    let id = driver.group.attempt().unwrap().prompt_id;
    driver.apply(Event::PromptWithheld { run: driver.run(), id });
    driver.signal(Source::Acp, SignalKind::Completed);
    assert_eq!(driver.group.state().compacting.count, 1);
    driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
    driver.grant();
    driver.lock(acquired());
    driver.grant();
    assert_eq!(driver.group.current().map(|task| (task.id, task.attempt)), Some((task, 2)));
    driver.reply(PromptReply::Failed {
        code: -32603,
        kind: ErrorKind::Passing,
        message: "no".into(),
    });
    assert_eq!(driver.ended(task).map(|(state, _)| state), Some(T::Failed));
}

/// HL-11: nor does it release the lock that the next attempt has, and fence with it.
#[test]
fn a_compaction_that_completes_late_keeps_the_lock_of_the_next_attempt() {
    let mut driver = Driver::compacting(Strategy::Command);
    let id = driver.group.attempt().unwrap().prompt_id;
    driver.apply(Event::PromptWithheld { run: driver.run(), id });
    driver.expire(|timer| matches!(timer, Timer::Idle(..)));
    driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
    driver.lock(acquired());
    assert_eq!(kinds(&driver.grant().facts), ["task_claimed"], "the run is stopping");
    let late = driver.signal(Source::Acp, SignalKind::Completed);
    assert_eq!(kinds(&late.facts), ["compaction_ended", "segment_ended", "segment_started"]);
    assert_eq!(driver.group.state().compacting.count, 1, "AM-23");
}
