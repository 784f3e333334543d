//! What may happen next, at random.

use greenroom_core::{Continuity, ExitReason, StopReason};
use proptest::{collection::vec, prelude::*};

/// Something that somebody does. Small numbers only, so that a failure shrinks well.
#[derive(Clone, Copy, Debug)]
pub enum Move {
    /// A caller asks for a turn.
    Submit { bytes: u8 },
    /// A caller asks for a compaction.
    Compact,
    /// A caller calls off the task that was offered so many before the last.
    Cancel { back: u8 },
    /// A caller deletes the group.
    Archive,
    /// A caller wants no more work claimed.
    Pause,
    /// A caller wants it to go on.
    Resume,
    /// A caller ends the run.
    Stop,
    /// A caller makes, changes or revives the group.
    Configure(u8),
    /// The server has a slot, wanted or not.
    Grant,
    /// Whatever is bounded in time took that time.
    Expire,
    /// The server shuts down.
    Shutdown,
    /// The server dies.
    Crash,
    /// Somebody sets the clock by so many seconds.
    Clock(i8),
    /// The agent opened its session.
    Ready(Continuity),
    /// The agent says something.
    Say(Spoken),
    /// The agent writes something that is no message.
    SayNonsense,
    /// The agent asks for a permission.
    Ask { can_refuse: bool },
    /// The agent answers its prompt.
    Answer(StopReason),
    /// The agent answers its prompt with an error.
    AnswerError,
    /// The agent answers a prompt for the second time.
    AnswerAgain,
    /// The agent answers what nobody asked.
    AnswerUnknown(u8),
    /// The agent's process ends.
    Exit(ExitReason),
    /// A run that is over is heard of once more.
    LateSay,
    /// Likewise.
    LateAsk,
    /// Likewise.
    LateReady,
    /// Likewise.
    LateExit,
}

/// What an agent says.
#[derive(Clone, Copy, Debug)]
pub enum Spoken {
    /// Text, in up to three lines.
    Chunk(u8),
    /// How full its context is.
    Usage(u8),
    /// A tool call begins.
    ToolBegins(u8),
    /// A tool call ends.
    ToolEnds(u8),
    /// What is no output of an attempt.
    Mode,
}

/// Up to `most` moves.
pub fn moves(most: usize) -> impl Strategy<Value = Vec<Move>> {
    vec(next(), 0..most)
}

/// Weighted so that turns start and end, and everything else happens in between.
fn next() -> impl Strategy<Value = Move> {
    (0_u8..100, any::<u8>()).prop_map(|(which, detail)| match which {
        0..12 => Move::Submit { bytes: detail },
        12..17 => Move::Compact,
        17..23 => Move::Cancel { back: detail % 8 },
        23 => match detail % 4 {
            0 => Move::Archive,
            1 => Move::Pause,
            2 => Move::Stop,
            _ => Move::Resume,
        },
        24..27 => Move::Configure(detail),
        27..41 => Move::Grant,
        41..45 => Move::Expire,
        45 => Move::Shutdown,
        46..49 => Move::Crash,
        49 => Move::Clock(detail as i8),
        50..63 => Move::Ready(match detail % 4 {
            0 => Continuity::Lost,
            1 => Continuity::Resumed,
            _ => Continuity::Loaded,
        }),
        63..71 => Move::Say(match detail % 5 {
            0 => Spoken::Chunk(detail / 5),
            1 => Spoken::Usage(detail),
            2 => Spoken::ToolBegins(detail % 3),
            3 => Spoken::ToolEnds(detail % 3),
            _ => Spoken::Mode,
        }),
        71 => Move::SayNonsense,
        72..75 => Move::Ask { can_refuse: detail.is_multiple_of(2) },
        75..85 => Move::Answer(match detail % 4 {
            0 => StopReason::Cancelled,
            1 => StopReason::MaxTokens,
            _ => StopReason::EndTurn,
        }),
        85..87 => Move::AnswerError,
        87 => Move::AnswerAgain,
        88 => Move::AnswerUnknown(detail),
        89..95 => Move::Exit(match detail % 4 {
            0 => ExitReason::StartFailed,
            1 => ExitReason::Protocol,
            2 => ExitReason::Stopped,
            _ => ExitReason::Exited,
        }),
        95 => Move::LateSay,
        96 => Move::LateAsk,
        97 => Move::LateReady,
        98 => Move::LateExit,
        _ => Move::Exit(ExitReason::Stopped),
    })
}
