//! A session that an agent does not restore: I16, DQ-8, R-1.

use greenroom_core::{
    Continuity, Effect, Event, Exit, ExitReason, Fact, FailedStart, HoldReason, Loss, OnInterrupt,
    Recovery, RetryPolicy, SessionId, StopReason, TaskState, Timer,
};
use greenroom_testing::driver::{Driver, Step, kinds};

/// Ends the run before it is ready.
fn fail(driver: &mut Driver, failed_start: FailedStart) -> Step {
    let exit = Exit { failed_start, ..Exit::unseen(ExitReason::StartFailed, "it died") };
    driver.apply(Event::AgentExited { run: driver.run(), exit })
}

/// Returns a group with a session whose agent is gone, and whose task is claimed after five runs in
/// a row that died as they restored the session.
fn at_the_last_attempt(policy: RetryPolicy, on_interrupt: OnInterrupt) -> Driver {
    let mut driver = Driver::idle();
    (driver.settings.retry, driver.settings.on_interrupt) = (policy, on_interrupt);
    driver.exit(ExitReason::Exited);
    driver.turn();
    for _ in 0..5 {
        let step = fail(&mut driver, FailedStart::InRestore);
        assert!(!kinds(&step.facts).contains(&"context_lost"), "{:?}", kinds(&step.facts));
        if policy == RetryPolicy::Never {
            driver.queue_turn();
        } else {
            driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
        }
        driver.grant();
    }
    driver.clear();
    driver
}

/// Returns the session of each launch.
fn launched(driver: &Driver) -> Vec<Option<SessionId>> {
    let launches = driver.effects.iter().filter_map(|effect| match effect {
        Effect::Launch { session, .. } => Some(session.clone()),
        _ => None,
    });
    launches.collect()
}

fn causes(driver: &Driver) -> Vec<Option<&str>> {
    let lost = driver.facts.iter().filter_map(|fact| match fact {
        Fact::ContextLost { cause, .. } => Some(cause.as_deref()),
        _ => None,
    });
    lost.collect()
}

/// I16, R-1: a session on which the agent dies each time is given up at the last attempt, with the
/// cause. By `on_interrupt` the group is held, under any policy, or the task continues with a new
/// session.
#[test]
fn a_session_on_which_the_agent_dies_is_given_up() {
    for policy in [RetryPolicy::NoOutput, RetryPolicy::Undelivered, RetryPolicy::Never] {
        for on_interrupt in [OnInterrupt::Hold, OnInterrupt::Auto, OnInterrupt::Continue] {
            let name = format!("{policy:?} {on_interrupt:?}");
            let mut driver = at_the_last_attempt(policy, on_interrupt);
            let task = driver.group.current().unwrap().id;
            let facts = fail(&mut driver, FailedStart::InRestore).facts;
            assert_eq!(causes(&driver), [Some("it died")], "{name}");
            let holds = on_interrupt != OnInterrupt::Continue;
            let reason = driver.group.state().hold.reason;
            assert_eq!(reason, holds.then_some(HoldReason::ContextLost), "{name}");
            if holds {
                assert_eq!(launched(&driver), [], "{name}: {:?}", kinds(&facts));
                driver.apply(Event::Resumed);
                driver.grant();
            } else if policy == RetryPolicy::Never {
                driver.expire(|timer| matches!(timer, Timer::Launch(_)));
                driver.grant();
            }
            assert_eq!(launched(&driver), [None], "{name}");
            driver.ready_as("new", Continuity::New, None, false);
            assert_eq!(driver.group.current().map(|task| task.id), Some(task), "{name}");
            assert_eq!(causes(&driver).len(), 1, "{name}");
            driver.say("done");
            driver.answer(StopReason::EndTurn);
            assert_eq!(driver.group.state().session_id(), Some(&SessionId("new".into())));
        }
    }
}

/// I16: an agent that does not start at all says nothing about its session, which is kept.
#[test]
fn a_session_is_kept_if_the_agent_never_got_to_it() {
    let mut driver = at_the_last_attempt(RetryPolicy::NoOutput, OnInterrupt::Auto);
    fail(&mut driver, FailedStart::Passing);
    assert_eq!(causes(&driver), [] as [Option<&str>; 0]);
    assert_eq!(driver.group.state().session_id(), Some(&SessionId("s".into())));
    assert!(driver.group.current().is_none(), "the task failed");
}

/// I16: the last attempt does not try a session that never got a prompt.
#[test]
fn a_session_without_a_prompt_is_replaced_in_silence() {
    let mut driver = Driver::default();
    driver.settings.retry = RetryPolicy::NoOutput;
    let first = driver.turn();
    driver.apply(Event::CancelRequested(first));
    driver.ready("s", None);
    driver.exit(ExitReason::Exited);
    driver.turn();
    driver.clear();
    for attempt in 1..=6 {
        assert_eq!(launched(&driver).is_empty(), attempt == 1);
        if attempt < 6 {
            fail(&mut driver, FailedStart::InRestore);
            driver.expire(|timer| matches!(timer, Timer::Backoff(..)));
            driver.grant();
        }
    }
    let mut expected = vec![Some(SessionId("s".into())); 4];
    expected.push(None);
    assert_eq!(launched(&driver), expected);
    driver.ready_as("new", Continuity::New, None, false);
    assert_eq!(causes(&driver), [] as [Option<&str>; 0]);
    assert!(driver.group.attempt().is_some());
}

/// without retries, a session that is given up after failed runs holds the group, too.
#[test]
fn a_session_that_is_given_up_holds_the_group_without_retries() {
    let mut driver = at_the_last_attempt(RetryPolicy::Never, OnInterrupt::Auto);
    let loss = Some(Loss { cause: "session/load: broken".into(), is_unknown: false });
    driver.ready_with("new", Continuity::Lost, loss);
    assert_eq!(causes(&driver), [Some("session/load: broken")]);
    assert_eq!(driver.group.state().hold.reason, Some(HoldReason::ContextLost));
    assert!(driver.group.attempt().is_none());
}

/// DQ-8: an error of a start that lasts fails its task at once, under any policy, and names the
/// cause.
#[test]
fn a_start_whose_error_lasts_is_not_retried() {
    for policy in [RetryPolicy::NoOutput, RetryPolicy::Undelivered, RetryPolicy::Never] {
        let mut driver = Driver::default();
        driver.settings.retry = policy;
        let (task, next) = (driver.turn(), driver.queue_turn());
        fail(&mut driver, FailedStart::Lasting);
        let ended = driver.facts.iter().find_map(|fact| match fact {
            Fact::TaskEnded { task: ended, state, error, attempt, .. } if *ended == task => {
                Some((*state, error.clone().unwrap(), *attempt))
            }
            _ => None,
        });
        let (state, error, attempt) = ended.unwrap();
        assert_eq!((state, &*error.code, attempt), (TaskState::Failed, "agent_start_failed", 1));
        assert!(error.message.contains("it died"), "{}", error.message);
        assert_eq!(driver.group.waiting().next().map(|task| task.id), Some(next), "{policy:?}");
    }
}

/// I16: some agents store a session with its first answer only. If such a session is unknown to
/// the agent, and there was neither output nor a completed turn in it, nothing was lost; else, and
/// if the agent does not say that, the loss is reported.
#[test]
fn an_unknown_session_without_an_answer_is_replaced_in_silence() {
    use StopReason::{Cancelled, EndTurn};
    #[rustfmt::skip]
    let cases = [
        ("it died in its first turn",     false, None,            true,  false),
        ("likewise, and the load failed", false, None,            false, true),
        ("it died after output",          true,  None,            true,  true),
        ("its first turn was completed",  false, Some(EndTurn),   true,  true),
        ("its first turn was cancelled",  false, Some(Cancelled), true,  true),
    ];
    for (name, speaks, stop_reason, is_unknown, is_lost) in cases {
        let mut driver = Driver::default();
        driver.settings.retry = RetryPolicy::NoOutput;
        driver.settings.on_interrupt = OnInterrupt::Auto;
        driver.turn();
        driver.ready("s", None);
        if speaks {
            driver.say("so");
        }
        if let Some(stop_reason) = stop_reason {
            driver.answer(stop_reason);
        }
        driver.exit(ExitReason::Exited);
        driver.apply(Event::Recovered(Recovery::Restart));
        match stop_reason {
            None if !speaks => drop(driver.expire(|timer| matches!(timer, Timer::Backoff(..)))),
            _ => drop(driver.queue_turn()),
        }
        driver.grant();
        let loss = Some(Loss { cause: "session/load: gone".into(), is_unknown });
        driver.ready_with("new", Continuity::Lost, loss);
        assert_eq!(!causes(&driver).is_empty(), is_lost, "{name}");
        assert_eq!(driver.group.state().session_id(), Some(&SessionId("new".into())), "{name}");
        let holds = is_lost && stop_reason.is_none();
        assert_eq!(driver.group.state().hold.reason.is_some(), holds, "{name}");
    }
}
