//! Histories that lead to where things are apt to go wrong.

use greenroom_core::{Continuity, ExitReason, StopReason};

use super::moves::{Asked, Bound, Chosen, LockSaid, Move, Spoken};

pub const SUBMIT: Move = Move::Submit { bytes: 3 };
pub const READY: Move = Move::Ready(Continuity::Loaded);
pub const LOST: Move = Move::Ready(Continuity::Lost);
pub const SAY: Move = Move::Say(Spoken::Chunk(0));
pub const ANSWER: Move = Move::Answer(StopReason::EndTurn);
pub const CONFIRM: Move = Move::Answer(StopReason::Cancelled);
pub const DIES: Move = Move::Exit(ExitReason::Exited);
pub const ENDS: Move = Move::Exit(ExitReason::Stopped);
pub const FAILS: Move = Move::Exit(ExitReason::StartFailed);
pub const ASK: Move = Move::Ask(Asked { options: 0, tool: 0, again: false });
pub const ALLOW: Move = Move::Decide { back: 0, choice: Chosen::Option(0) };
pub const REFUSE: Move = Move::Decide { back: 0, choice: Chosen::Option(1) };
pub const LOCKED: Move = Move::Lock(LockSaid::Taken);
/// Calls off the task that was offered last.
pub const CANCEL: Move = Move::Cancel { back: 0 };

/// What failed is made again, nobody is held, a person is asked.
pub const CONTINUES: Move = Move::Terms(0, 0);
/// Likewise, and a group is held after each turn that was cut off.
pub const HOLDS: Move = Move::Terms(0, 4);
/// Likewise, and after two, or one whose context was lost.
pub const AUTO: Move = Move::Terms(0, 12);
/// Nothing is made again.
pub const NEVER: Move = Move::Terms(0, 3);

/// An agent that waits for its prompt, and one that has it.
pub const IDLE: &[Move] = &[SUBMIT, Move::Grant, READY, SAY, ANSWER];
pub const IN_TURN: &[Move] = &[SUBMIT, Move::Grant, READY];

/// A name, and what leads there.
pub fn situations() -> Vec<(&'static str, Vec<Move>)> {
    let loops: Vec<Move> = std::iter::once(NEVER)
        .chain([SUBMIT, Move::Grant, FAILS].repeat(5))
        .chain([CONTINUES, SUBMIT, Move::Grant])
        .collect();
    let degraded = [&*loops, &[FAILS]].concat();
    let with = |terms: Move, rest: &[Move]| [&[terms], rest].concat();
    let then = |first: &[Move], rest: &[Move]| [first, rest].concat();
    let backs_off = with(AUTO, &then(IN_TURN, &[SUBMIT, DIES]));
    let again = Move::ExpireA(Bound::Backoff);
    let fifth = with(AUTO, &then(&[SUBMIT], &[Move::Grant, FAILS, again].repeat(4)));
    let sixth = then(&fifth, &[Move::Grant, FAILS, again, Move::Grant, READY]);
    vec![
        ("nothing yet", vec![]),
        ("idle", IDLE.to_vec()),
        ("in a turn", then(IN_TURN, &[SUBMIT])),
        ("in a turn that is asked for", then(IN_TURN, &[ASK, ASK, SUBMIT])),
        ("the sixth run in a row", loops),
        ("degraded", degraded),
        ("an attempt backs off", backs_off.clone()),
        ("a second attempt starts", then(&backs_off, &[again, Move::Grant])),
        ("the fifth attempt", fifth),
        ("the last attempt", sixth),
        ("behind a cancel", then(IN_TURN, &[CANCEL, CONFIRM, SUBMIT, Move::Grant])),
        ("wedged by a cancel", {
            let queued = Move::Say(Spoken::Queued);
            then(IN_TURN, &[CANCEL, CONFIRM, SUBMIT, Move::Grant, queued, ANSWER])
        }),
        ("held", with(HOLDS, &then(IN_TURN, &[SUBMIT, SAY, DIES]))),
        ("once cut off", with(AUTO, &then(IN_TURN, &[SUBMIT, SAY, DIES]))),
        ("compacting", then(IDLE, &[Move::Compact, LOCKED, Move::Grant, SUBMIT])),
        ("outdated as it starts", then(&[SUBMIT, Move::Grant], &[Move::Configure(2)])),
        ("outdated in a turn", then(IN_TURN, &[SUBMIT, Move::Configure(2)])),
        ("without a way to compact", {
            then(IDLE, &[Move::Compact, Move::Lock(LockSaid::Held), SUBMIT, Move::Terms(24, 0)])
        }),
        ("a rest", then(IDLE, &[Move::Compact, Move::Lock(LockSaid::Failed), SUBMIT])),
        ("deleted as it is cut off", {
            let cut = Move::ExpireA(Bound::Turn);
            with(AUTO, &then(IN_TURN, &[SAY, cut, Move::Archive, Move::Configure(0)]))
        }),
        ("expires soon", then(IN_TURN, &[Move::SubmitWithin { ms: 1 }, SUBMIT])),
    ]
}
