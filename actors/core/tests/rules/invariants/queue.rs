//! What waits, and when it may start; and how such histories are broken.

use greenroom_core::{Fact, Recorded, RunId, Settings, TaskId, Timestamp};
use greenroom_testing::{
    invariants::{Played, Trigger},
    world::{Action, TimerKind, situations::*},
};
use uuid::Uuid;

use super::{
    BACKOFF_ENDS, History, Row, fact, find, forget, insert, nth_fact, other_task, renumber,
};

/// Returns each sound history with what breaks it.
pub fn broken() -> Vec<History> {
    let then = |first: &[Action], rest: &[Action]| [first, rest].concat();
    let compaction = [SUBMIT, Action::Compact, OUTPUT, ANSWER, LOCK_ACQUIRED, Action::GrantSlot];
    let soon = [Action::SubmitWithin { ms: 100 }, OUTPUT, ANSWER];
    let expires = Action::FireTimerOf(TimerKind::Queued);
    vec![
        (then(&[HOLD], &then(IN_TURN, &[SUBMIT, OUTPUT, EXITS])), STARTS_ON_HOLD),
        (then(IDLE, &[Action::Configure(1), Action::Pause, SUBMIT]), STARTS_IN_PAUSE),
        (then(IDLE, &[Action::Archive]), STARTS_DELETED),
        (then(IN_TURN, &compaction), STARTS_BEFORE_A_COMPACTION),
        (
            then(IN_TURN, &[Action::Compact, EXITS, BACKOFF_ENDS, Action::GrantSlot]),
            STARTS_BEFORE_A_RETRY,
        ),
        (then(IN_TURN, &then(&soon, &[Action::GrantSlot])), STARTS_TOO_LATE),
        (then(IN_TURN, &then(&soon, &[expires])), EXPIRES_TOO_EARLY),
        (vec![SUBMIT], TOO_MANY),
    ]
}

fn claim(steps: &mut [Played], after: &str, nth: usize) {
    let task = other_task(steps, nth);
    insert(steps, (after, 0), |it| it.fact = Fact::TaskClaimed { task });
}

fn start(steps: &mut [Played], after: &str, nth: usize) {
    let task = other_task(steps, nth);
    let run = RunId(Uuid::nil());
    insert(steps, (after, 0), |it| it.fact = Fact::TaskStarted { task, attempt: 1, run });
}

/// Sets the clock of the step with the last fact of a kind `ms` later.
fn later(steps: &mut [Played], (kind, nth): (&str, usize), ms: i64) {
    let (step, _) = find(steps, kind, nth);
    let now = &mut steps[step].begun.now;
    (now.wall, now.up.ms) = (Timestamp(now.wall.0 + ms), now.up.ms.saturating_add_signed(ms));
}

const STARTS_ON_HOLD: &[Row] = &[
    ("DQ-8: held or deleted", true, "a claim", |h| claim(h, "group_held", 1)),
    ("DQ-8: held or deleted", true, "a start", |h| start(h, "group_held", 1)),
    ("DQ-8: held or deleted", true, "a run", |h| {
        let (run, agent) = (RunId(Uuid::nil()), "one".to_owned());
        let fact = Fact::RunStarted { run, agent, has_detectors: false };
        insert(h, ("group_held", 0), |it| it.fact = fact);
    }),
    ("DQ-8: held by", false, "the group forgets its hold", |h| forget(h, "group_held", 0)),
];

const STARTS_IN_PAUSE: &[Row] = &[
    ("DQ-8: is claimed in a paused", true, "a claim", |h| claim(h, "group_paused", 0)),
    ("DQ-8: starts in a paused", true, "a start", |h| start(h, "group_paused", 0)),
    ("DQ-8: paused is false", false, "the group forgets it", |h| forget(h, "group_paused", 0)),
    ("I13: the settings are", false, "the group keeps its settings", |h| {
        forget(h, "group_changed", 0);
    }),
    ("I13: the settings are", false, "other settings than the caller's", |h| {
        if let Fact::GroupChanged(Settings { title, .. }) = fact(h, "group_changed") {
            *title = Some("another".into());
        }
    }),
];

const STARTS_DELETED: &[Row] = &[
    ("DQ-8: held or deleted", true, "a claim", |h| claim(h, "group_archived", 0)),
    ("DQ-8: held or deleted", true, "a start", |h| start(h, "group_archived", 0)),
    ("I13: the group is Live", false, "the group lives", |h| forget(h, "group_archived", 0)),
];

const STARTS_BEFORE_A_COMPACTION: &[Row] =
    &[("I8: starts before", true, "a turn starts before a compaction that waits", |h| {
        let turn = other_task(h, 1);
        if let Fact::TaskStarted { task, .. } = nth_fact(h, "task_started", 1) {
            *task = turn;
        }
    })];

const STARTS_BEFORE_A_RETRY: &[Row] =
    &[("I8: starts before", true, "a compaction starts before a retry", |h| {
        let compaction = other_task(h, 1);
        *nth_fact(h, "task_claimed", 1) = Fact::TaskClaimed { task: compaction };
    })];

const STARTS_TOO_LATE: &[Row] =
    &[("I12: starts after it expired", false, "a task starts after its time", |h| {
        later(h, ("task_started", 1), 10_000);
    })];

const EXPIRES_TOO_EARLY: &[Row] =
    &[("I12: expires too early", false, "a task expires before its time", |h| {
        let (step, _) = find(h, "task_ended", 1);
        h[step].begun.trigger = Trigger::Other;
        later(h, ("task_ended", 1), -10);
    })];

const TOO_MANY: &[Row] = &[("I11: 8 wait", false, "the queue has no limit", |h| {
    for number in 2..=8 {
        let Recorded { place, mut fact } = h[0].facts[1].clone();
        if let Fact::TaskQueued { task, record, .. } = &mut fact {
            *task = TaskId(Uuid::from_u128(1_000 + u128::from(number)));
            (record.id, record.ordinal) = (*task, number);
        }
        let recorded = Recorded { place, fact };
        h[0].group.replay(&recorded, Timestamp(0));
        h[0].facts.push(recorded);
    }
    renumber(h);
})];
