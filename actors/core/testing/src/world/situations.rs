//! Histories that lead to error-prone situations.

use greenroom_core::{Continuity, ExitReason, FailedStart, StopReason};

use super::actions::{
    Action, AgentMessage, LockReply, PermissionChoice, PermissionRequest, TimerKind,
};

pub const SUBMIT: Action = Action::Submit { bytes: 3 };
pub const READY: Action = Action::Ready(Continuity::Loaded);
pub const READY_LOST: Action = Action::Ready(Continuity::Lost);
pub const OUTPUT: Action = Action::Output(AgentMessage::Chunk(0));
pub const ANSWER: Action = Action::AnswerPrompt(StopReason::EndTurn);
pub const CONFIRM_CANCEL: Action = Action::AnswerPrompt(StopReason::Cancelled);
pub const EXITS: Action = Action::Exit(ExitReason::Exited);
pub const STOPPED: Action = Action::Exit(ExitReason::Stopped);
pub const START_FAILS: Action = Action::Exit(ExitReason::StartFailed);
/// The agent wants a login before it opens a session.
pub const WANTS_LOGIN: Action = Action::Exit(ExitReason::AgentAuth);
pub const REQUEST_PERMISSION: Action =
    Action::RequestPermission(PermissionRequest { options: 0, tool: 0, repeated: false });
pub const ALLOW: Action = Action::AnswerPermission { back: 0, choice: PermissionChoice::Option(0) };
pub const REFUSE: Action =
    Action::AnswerPermission { back: 0, choice: PermissionChoice::Option(1) };
pub const LOCK_ACQUIRED: Action = Action::AnswerLock(LockReply::Acquired);
/// Cancels the task that was submitted last.
pub const CANCEL: Action = Action::Cancel { back: 0 };

/// Failed attempts are retried, no group is put on hold, permissions are asked.
pub const CONTINUE: Action = Action::ChangeSettings(0, 0);
/// Likewise, and a group is put on hold after each interrupted turn.
pub const HOLD: Action = Action::ChangeSettings(0, 4);
/// Likewise, but after two interrupted turns, or one with a lost context.
pub const AUTO_HOLD: Action = Action::ChangeSettings(0, 12);
/// A profile with more detectors than ACP.
pub const LISTENS: Action = Action::ChangeSettings(32, 12);
/// Nothing is retried.
pub const NEVER_RETRY: Action = Action::ChangeSettings(0, 3);

/// An idle agent, and an agent with a prompt in flight.
pub const IDLE: &[Action] = &[SUBMIT, Action::GrantSlot, READY, OUTPUT, ANSWER];
pub const IN_TURN: &[Action] = &[SUBMIT, Action::GrantSlot, READY];

/// Returns each situation's name, and the actions that lead there.
pub fn situations() -> Vec<(&'static str, Vec<Action>)> {
    let loops: Vec<Action> = std::iter::once(NEVER_RETRY)
        .chain([SUBMIT, Action::GrantSlot, START_FAILS].repeat(5))
        .chain([CONTINUE, SUBMIT, Action::GrantSlot])
        .collect();
    let degraded = [&*loops, &[START_FAILS]].concat();
    let with = |settings: Action, rest: &[Action]| [&[settings], rest].concat();
    let then = |first: &[Action], rest: &[Action]| [first, rest].concat();
    let backs_off = with(AUTO_HOLD, &then(IN_TURN, &[SUBMIT, EXITS]));
    let backoff_ends = Action::FireTimerOf(TimerKind::Backoff);
    let fifth = with(
        AUTO_HOLD,
        &then(&[SUBMIT], &[Action::GrantSlot, START_FAILS, backoff_ends].repeat(4)),
    );
    let sixth =
        then(&fifth, &[Action::GrantSlot, START_FAILS, backoff_ends, Action::GrantSlot, READY]);
    let dies = Action::FailStart(FailedStart::InRestore);
    let restores = [
        &[AUTO_HOLD],
        IDLE,
        &[EXITS, SUBMIT],
        &*[Action::GrantSlot, dies, backoff_ends].repeat(5),
        &[Action::GrantSlot],
    ]
    .concat();
    vec![
        ("nothing yet", vec![]),
        ("idle", IDLE.to_vec()),
        ("in a turn", then(IN_TURN, &[SUBMIT])),
        (
            "in a turn with open permissions",
            then(IN_TURN, &[REQUEST_PERMISSION, REQUEST_PERMISSION, SUBMIT]),
        ),
        ("the sixth failing run in a row", loops),
        ("degraded", degraded),
        ("the agent wants a login", then(&[SUBMIT], &[Action::GrantSlot, WANTS_LOGIN, SUBMIT])),
        ("an attempt backs off", backs_off.clone()),
        ("a second attempt starts", then(&backs_off, &[backoff_ends, Action::GrantSlot])),
        ("the fifth attempt", fifth),
        ("the last attempt", sixth),
        ("the last attempt to restore a session", restores),
        ("after a cancel", then(IN_TURN, &[CANCEL, CONFIRM_CANCEL, SUBMIT, Action::GrantSlot])),
        ("wedged by a cancel", {
            let queued = Action::QueuePrompt;
            let then_queued = [CANCEL, CONFIRM_CANCEL, SUBMIT, Action::GrantSlot, OUTPUT, queued];
            with(LISTENS, &then(IN_TURN, &then_queued))
        }),
        ("held", with(HOLD, &then(IN_TURN, &[SUBMIT, OUTPUT, EXITS]))),
        ("interrupted once", with(AUTO_HOLD, &then(IN_TURN, &[SUBMIT, OUTPUT, EXITS]))),
        ("compacting", then(IDLE, &[Action::Compact, LOCK_ACQUIRED, Action::GrantSlot, SUBMIT])),
        ("outdated as it starts", then(&[SUBMIT, Action::GrantSlot], &[Action::Configure(2)])),
        ("outdated in a turn", then(IN_TURN, &[SUBMIT, Action::Configure(2)])),
        ("without a way to compact", {
            then(
                IDLE,
                &[
                    Action::Compact,
                    Action::AnswerLock(LockReply::Busy),
                    SUBMIT,
                    Action::ChangeSettings(24, 0),
                ],
            )
        }),
        (
            "resting after a compaction",
            then(IDLE, &[Action::Compact, Action::AnswerLock(LockReply::Failed), SUBMIT]),
        ),
        ("deleted while being interrupted", {
            let deadline = Action::FireTimerOf(TimerKind::Attempt);
            with(
                AUTO_HOLD,
                &then(IN_TURN, &[OUTPUT, deadline, Action::Archive, Action::Configure(0)]),
            )
        }),
        ("expires soon", then(IN_TURN, &[Action::SubmitWithin { ms: 1 }, SUBMIT])),
    ]
}
