//! An agent that wants a login: the queue waits, and no task fails of it (DQ-13).

use greenroom_core::{
    Blocked, Effect, Event, ExitReason, Recovery, RetryPolicy, Settings, Status, StopReason,
    Strategy, TaskState, Timer,
};
use greenroom_testing::driver::{Driver, LIMITS, Step, acquired, kinds};

fn is_login(timer: &Timer) -> bool {
    matches!(timer, Timer::Login(_))
}

/// Returns the whole minutes until the agent is started by itself.
fn minutes(driver: &Driver) -> Vec<u64> {
    let timers = driver.group.timers(&LIMITS, driver.moment());
    timers.filter(|(timer, _)| is_login(timer)).map(|(_, ms)| ms / 60_000).collect()
}

fn launches(step: &Step) -> bool {
    step.effects.iter().any(|effect| matches!(effect, Effect::Launch { .. }))
}

fn shown(driver: &Driver) -> (Status, Option<Blocked>) {
    (driver.group.status(), driver.group.blocked_by())
}

/// DQ-13, I12: no attempt counts under any policy, all tasks wait, and the agent is started again
/// after 1, 2, 4 and then 5 minutes, which a restart does not shorten. A run that is ready ends the
/// series.
#[test]
fn the_queue_waits_for_a_login() {
    for retry in [RetryPolicy::NoOutput, RetryPolicy::Undelivered, RetryPolicy::Never] {
        let mut driver = Driver::default();
        driver.settings.retry = retry;
        let (first, second) = (driver.turn(), driver.queue_turn());
        let mut waits = Vec::new();
        for _ in 0..6 {
            let facts = driver.exit(ExitReason::AgentAuth).facts;
            assert_eq!(kinds(&facts), ["run_exited", "agent_auth_required", "task_released"]);
            waits.extend(minutes(&driver));
            assert_eq!(shown(&driver), (Status::Waiting, Some(Blocked::AgentAuth)));
            assert!(driver.grant() == Step::default(), "nothing is claimed meanwhile");
            for task in [first, second] {
                let task = driver.group.task(task).unwrap();
                assert_eq!((task.attempt, task.state()), (0, TaskState::Queued), "{retry:?}");
            }
            driver.apply(Event::Recovered(Recovery::Restart));
            assert_eq!(minutes(&driver), waits[waits.len() - 1..], "after a restart");
            let later = driver.queue_turn();
            assert_eq!(shown(&driver), (Status::Waiting, Some(Blocked::AgentAuth)), "{retry:?}");
            driver.apply(Event::CancelRequested(later));
            let start = u32::try_from(waits.len()).unwrap();
            for other in [Timer::Login(start - 1), Timer::Login(start + 1), Timer::Launch(start)] {
                assert_eq!(driver.apply(Event::TimerFired(other)), Step::default(), "{other:?}");
            }
            driver.expire(is_login);
            assert!(launches(&driver.grant()), "{retry:?}");
        }
        assert_eq!(waits, [1, 2, 4, 5, 5, 5]);
        assert_eq!(driver.group.state().crash_loop.crashes, 0, "it is no crash");
        driver.ready("s", None);
        assert_eq!(driver.group.current().map(|task| task.id), Some(first));
        driver.say("done");
        driver.answer(StopReason::EndTurn);
        driver.apply(Event::Stopped);
        driver.exit(ExitReason::Stopped);
        driver.grant();
        driver.exit(ExitReason::AgentAuth);
        assert_eq!(minutes(&driver), [1], "the last run was ready");
    }
}

/// DQ-13, API-2: a caller who has logged in need not wait, and a changed profile is tried at once.
#[test]
fn a_caller_ends_the_wait_for_a_login() {
    let changed = Settings { agent: "other".into(), ..Settings::default() };
    for end in [Event::Resumed, Event::Configured(changed)] {
        let mut driver = Driver::default();
        driver.turn();
        driver.exit(ExitReason::AgentAuth);
        driver.apply(end);
        assert_eq!(shown(&driver), (Status::Waiting, Some(Blocked::Slot)));
        let stale = driver.apply(Event::TimerFired(Timer::Login(1)));
        assert_eq!(stale, Step::default());
        assert!(launches(&driver.grant()));
        driver.exit(ExitReason::AgentAuth);
        assert_eq!(minutes(&driver), [1], "a caller's decision begins the series again");
    }
}

/// DQ-13, HL-7, A-4: a retried task waits, too, with the attempts that it had; a compaction gives
/// its lock back; a group without work shows nothing and starts nothing.
#[test]
fn whatever_was_claimed_waits_for_the_login() {
    let mut driver = Driver::in_turn();
    driver.settings.retry = RetryPolicy::NoOutput;
    driver.exit(ExitReason::Exited);
    driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
    driver.grant();
    driver.exit(ExitReason::AgentAuth);
    let task = driver.group.waiting().next().unwrap();
    assert_eq!((task.attempt, task.state()), (1, TaskState::Retrying));
    assert_eq!(shown(&driver), (Status::Waiting, Some(Blocked::AgentAuth)));
    assert!(driver.grant() == Step::default(), "nothing is claimed meanwhile");
    driver.expire(is_login);
    assert!(launches(&driver.grant()));

    let mut driver = Driver::idle();
    driver.apply(Event::Stopped);
    driver.exit(ExitReason::Stopped);
    driver.compact(Strategy::Command);
    driver.lock(acquired());
    driver.grant();
    let facts = driver.exit(ExitReason::AgentAuth).facts;
    let expected = ["run_exited", "agent_auth_required", "lock_released", "task_released"];
    assert_eq!(kinds(&facts), expected);
    assert_eq!(driver.group.lease(), None);
    assert_eq!(shown(&driver), (Status::Waiting, Some(Blocked::AgentAuth)));

    let mut driver = Driver::default();
    let only = driver.turn();
    driver.apply(Event::CancelRequested(only));
    driver.exit(ExitReason::AgentAuth);
    assert_eq!(shown(&driver), (Status::Idle, None));
    assert_eq!(minutes(&driver), [1]);
}

/// DQ-13, I7: a prompt that the agent refuses for a login, without output, was not worked on: its
/// task returns to the head of the queue, which waits as after a start. It waits longer each time,
/// and an hour once the prompt was sent six times: the agent may remember it.
#[test]
fn a_prompt_that_is_refused_for_a_login_is_not_lost() {
    let mut driver = Driver::idle();
    driver.settings.retry = RetryPolicy::NoOutput;
    let (first, second) = (driver.turn(), driver.queue_turn());
    for (attempt, wait) in [(1, 1), (2, 2), (3, 4), (4, 5), (5, 5), (6, 60), (7, 60)] {
        let facts = driver.fail(-32000).facts;
        let expected = ["turn_settled", "task_retrying", "agent_auth_required", "run_stopping"];
        assert_eq!(kinds(&facts), expected, "{attempt}");
        let waiting: Vec<_> = driver.group.waiting().map(|task| task.id).collect();
        assert_eq!(waiting, [first, second]);
        let task = driver.group.task(first).unwrap();
        assert_eq!((task.attempt, task.state()), (attempt, TaskState::Retrying));
        assert_eq!(task.error().map(|error| &*error.code), Some("agent_auth"));
        driver.exit(ExitReason::Stopped);
        driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
        assert_eq!(shown(&driver), (Status::Waiting, Some(Blocked::AgentAuth)));
        assert!(driver.grant() == Step::default(), "nothing is claimed meanwhile");
        driver.apply(Event::Recovered(Recovery::Restart));
        assert_eq!(minutes(&driver), [wait], "{attempt}");
        driver.expire(is_login);
        let launched = driver.grant().effects;
        let kept = |effect: &Effect| match effect {
            Effect::Launch { session, may_replace, .. } => session.is_some() && !may_replace,
            _ => false,
        };
        assert!(launched.iter().any(kept), "{attempt}: {launched:?}");
        driver.ready("s", None);
    }
    driver.say("done");
    driver.answer(StopReason::EndTurn);
    assert_eq!(driver.ended(first).map(|(state, _)| state), Some(TaskState::Completed));
    driver.grant();
    driver.fail(-32000);
    assert_eq!(minutes(&driver), [1], "an answer ends the series");
}

/// DQ-13, I7: a prompt that may have been worked on, or whose policy allows no retry after it was
/// sent, fails; the queue waits all the same. A cancelled one shows nothing.
#[test]
fn a_refused_prompt_is_sent_again_only_if_that_is_safe() {
    use RetryPolicy::{Never, NoOutput, Undelivered};
    for (retry, speaks) in [(NoOutput, true), (Undelivered, false), (Never, false)] {
        let mut driver = Driver::in_turn();
        driver.settings.retry = retry;
        let (first, _) = (driver.group.current().unwrap().id, driver.queue_turn());
        if speaks {
            driver.say("so");
        }
        driver.fail(-32000);
        let (state, error) = driver.ended(first).unwrap();
        assert_eq!((state, error.as_deref()), (TaskState::Failed, Some("agent_error")));
        assert_eq!(shown(&driver), (Status::Waiting, Some(Blocked::AgentAuth)), "{retry:?}");
        assert_eq!(minutes(&driver), [1], "{retry:?}");
    }
    let mut driver = Driver::in_turn();
    let task = driver.group.current().unwrap().id;
    driver.apply(Event::CancelRequested(task));
    driver.fail(-32000);
    assert_eq!((shown(&driver), minutes(&driver)), ((Status::Idle, None), vec![]));
}

/// I16, DQ-13: a run that alone knows its context is not stopped for a login.
#[test]
fn a_forgetful_agent_waits_for_the_login_in_its_run() {
    let mut driver = Driver::default();
    driver.settings.retry = RetryPolicy::NoOutput;
    let task = driver.turn();
    driver.ready_forgetful("s");
    let run = driver.run();
    let facts = driver.fail(-32000).facts;
    assert_eq!(kinds(&facts), ["turn_settled", "task_retrying", "agent_auth_required"]);
    driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
    assert_eq!(shown(&driver), (Status::Waiting, Some(Blocked::AgentAuth)));
    assert!(driver.grant() == Step::default(), "nothing is claimed meanwhile");
    driver.expire(is_login);
    driver.grant();
    assert_eq!(driver.group.attempt().map(|attempt| attempt.run), Some(run));
    assert_eq!(driver.group.current().map(|task| task.id), Some(task));
}
