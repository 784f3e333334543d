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

/// DQ-13, DQ-8: a prompt that the agent refuses for a login fails under any policy, as another
/// attempt would; what follows waits as after a start, and longer each time, until the agent
/// answers a prompt.
#[test]
fn a_prompt_that_is_refused_for_a_login_fails_alone() {
    for retry in [RetryPolicy::NoOutput, RetryPolicy::Undelivered, RetryPolicy::Never] {
        let mut driver = Driver::idle();
        driver.settings.retry = retry;
        driver.turn();
        for wait in [1, 2, 4, 5, 5] {
            let (refused, next) = (driver.group.current().unwrap().id, driver.queue_turn());
            let facts = driver.fail(-32000).facts;
            let expected = ["turn_settled", "task_ended", "agent_auth_required", "run_stopping"];
            assert_eq!(kinds(&facts), expected, "{wait}");
            let (state, error) = driver.ended(refused).unwrap();
            assert_eq!((state, error.as_deref()), (TaskState::Failed, Some("agent_error")));
            driver.exit(ExitReason::Stopped);
            assert_eq!(shown(&driver), (Status::Waiting, Some(Blocked::AgentAuth)));
            assert!(driver.grant() == Step::default(), "nothing is claimed meanwhile");
            driver.apply(Event::Recovered(Recovery::Restart));
            assert_eq!(minutes(&driver), [wait]);
            driver.expire(is_login);
            assert!(launches(&driver.grant()));
            driver.ready("s", None);
            assert_eq!(driver.group.current().map(|task| task.id), Some(next));
        }
        driver.say("done");
        driver.answer(StopReason::EndTurn);
        driver.turn();
        driver.fail(-32000);
        assert_eq!(minutes(&driver), [1], "an answer ends the series");
    }
}

/// DQ-13: a cancelled prompt that is refused shows nothing about a login.
#[test]
fn a_cancelled_prompt_waits_for_no_login() {
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
    driver.turn();
    let next = driver.queue_turn();
    driver.ready_forgetful("s");
    let run = driver.run();
    let facts = driver.fail(-32000).facts;
    assert_eq!(kinds(&facts), ["turn_settled", "task_ended", "agent_auth_required"]);
    assert_eq!(shown(&driver), (Status::Waiting, Some(Blocked::AgentAuth)));
    assert!(driver.grant() == Step::default(), "nothing is claimed meanwhile");
    driver.expire(is_login);
    driver.grant();
    assert_eq!(driver.group.attempt().map(|attempt| attempt.run), Some(run));
    assert_eq!(driver.group.current().map(|task| task.id), Some(next));
}
