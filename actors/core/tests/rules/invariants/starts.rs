//! Starts of agents and of prompts that fail, and how their histories are broken.

use greenroom_core::{Deadline, ExitReason, Fact, FailedStart, RunId, StopReason, TaskError};
use greenroom_testing::{
    invariants::{Played, Trigger},
    world::{Action, TimerKind, situations::*},
};

use super::{
    BACKOFF_ENDS, History, Row, fact, find, other_task, output, put_before, remove, renumber,
    repeat, retried, stopped_by,
};

/// Returns each sound history with what breaks it.
pub fn broken() -> Vec<History> {
    let crashes = [SUBMIT, Action::GrantSlot, START_FAILS].repeat(6);
    let fails = [START_FAILS, BACKOFF_ENDS, Action::GrantSlot].repeat(4);
    vec![
        ([&[NEVER_RETRY], &*crashes, &[SUBMIT, LAUNCH_ALLOWED]].concat(), BROKEN_CRASHES),
        ([WITHHELD, &[BACKOFF_ENDS, Action::GrantSlot, OUTPUT, ANSWER]].concat(), BROKEN_WITHHELD),
        (LOGIN.to_vec(), BROKEN_LOGINS),
        (RETRIED.to_vec(), BROKEN_RETRIES),
        (
            [WITHHELD, &[EXITS, BACKOFF_ENDS, Action::GrantSlot], &fails, &[START_FAILS]].concat(),
            BROKEN_STARTS,
        ),
    ]
}

const LAUNCH_ALLOWED: Action = Action::FireTimerOf(TimerKind::Launch);

/// The agent wants a login, which it has at its next start.
const LOGIN: &[Action] = &[
    SUBMIT,
    Action::GrantSlot,
    WANTS_LOGIN,
    Action::FireTimerOf(TimerKind::Login),
    Action::GrantSlot,
    READY,
    OUTPUT,
    ANSWER,
];

/// The agent answers with an error without output, and its task is retried.
const RETRIED: &[Action] = &[
    CONTINUE,
    SUBMIT,
    Action::GrantSlot,
    READY,
    Action::AnswerPromptWithError(-32603),
    BACKOFF_ENDS,
    Action::GrantSlot,
    OUTPUT,
    ANSWER,
];

const BROKEN_RETRIES: &[Row] = &[
    ("I7: after its late output", true, "the task is retried after its late output", |h| {
        let mut late = output();
        if let Fact::AgentOutput(output) = &mut late {
            output.late = Some(other_task(h, 0));
        }
        put_before(h, ("backoff_ended", 0), late);
    }),
    ("I7: after its late output", true, "the task is retried after a request of its agent", |h| {
        let (run, method) = (first_run(h), "fs/read_text_file".into());
        put_before(h, ("backoff_ended", 0), Fact::RequestRefused { run, method });
    }),
];

/// A prompt is withheld, and its task is retried at once.
const WITHHELD: &[Action] = &[CONTINUE, SUBMIT, Action::GrantSlot, READY, Action::WithholdPrompt];

const BROKEN_CRASHES: &[Row] = &[
    ("F8", true, "no backoff in a crash loop", |h| remove(h, "agent_degraded")),
    ("F8", true, "a backoff of another length", |h| {
        if let Fact::AgentDegraded { wait_ms, .. } = fact(h, "agent_degraded") {
            *wait_ms += 1;
        }
    }),
    ("F8: the next run waits", false, "a wait that ended", |h| remove(h, "launch_allowed")),
    ("F8: no launch waited", false, "a wait that ends twice", |h| repeat(h, "launch_allowed")),
];

const BROKEN_LOGINS: &[Row] = &[
    ("DQ-13", false, "no wait for a login", |h| remove(h, "agent_auth_required")),
    ("DQ-13", true, "a wait for a login of another length", |h| {
        if let Fact::AgentAuthRequired { wait_ms, .. } = fact(h, "agent_auth_required") {
            *wait_ms += 1;
        }
    }),
    ("F8: the next run waits", false, "a wait that ended", |h| remove(h, "launch_allowed")),
];

fn start_failed() -> TaskError {
    TaskError { code: "agent_start_failed".into(), message: String::new() }
}

/// Returns the first run.
fn first_run(steps: &[Played]) -> RunId {
    let (step, at) = find(steps, "run_started", 0);
    steps[step].facts[at].place.run.unwrap()
}

#[rustfmt::skip]
const BROKEN_WITHHELD: &[Row] = &[
    ("I7: is retried: End", true, "an attempt with output is retried as if it was withheld", |h| {
        put_before(h, ("turn_settled", 0), output());
        stopped_by(h, 0, StopReason::ProcessExited);
        let (run, (step, _)) = (first_run(h), find(h, "turn_settled", 0));
        h[step].begun.trigger = Trigger::Exited(run, ExitReason::Exited, FailedStart::Passing);
    }),
    ("I7: is retried: End", true, "a cancelled attempt is retried as if it was withheld", |h| {
        let task = other_task(h, 0);
        put_before(h, ("turn_settled", 0), Fact::CancelRequested { task });
    }),
    ("I7: RetryAtOnce", true, "a withheld prompt with the error of another attempt", |h| {
        retried(h, |error, _| error.code = "agent_exited".into());
    }),
    ("I7: waits 700 ms", true, "a withheld prompt waits", |h| retried(h, |_, wait_ms| *wait_ms = 700)),
];

/// After the withheld prompt, the agent does not start four times; then no attempt is left.
#[rustfmt::skip]
const BROKEN_STARTS: &[Row] = &[
    ("I7: is retried unsent", true, "an agent is retried that did not fail to start", |h| {
        let (step, at) = find(h, "run_exited", 1);
        h[step].facts.remove(at);
        renumber(h);
    }),
    ("I7: is retried after 6", true, "a withheld prompt allows one more retry", |h| {
        let ended = find(h, "task_ended", 0);
        let (task, error) = (other_task(h, 0), start_failed());
        let (wait_ms, due) = (700 << 5, Deadline::after(h[ended.0].begun.now, 700 << 5));
        let fact = Fact::TaskRetrying { task, attempt: 6, error, wait_ms, due };
        h[ended.0].facts[ended.1].fact = fact;
    }),
];
