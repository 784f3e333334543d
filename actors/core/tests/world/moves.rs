//! What may happen next, at random.

use greenroom_core::{Continuity, ExitReason, Sign, Source, StopReason};
use proptest::{collection::vec, prelude::*};

/// Something that somebody does. Small numbers only, so that a failure shrinks well.
#[derive(Clone, Copy, Debug)]
pub enum Move {
    /// A caller asks for a turn.
    Submit { bytes: u8 },
    /// A caller asks for a turn that has to start within so many times ten milliseconds.
    SubmitWithin { ms: u8 },
    /// A caller asks for a compaction by the agent's own command.
    Compact,
    /// A caller asks for a compaction by a summary and another session.
    CompactByRotation,
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
    /// The profile, or the server's configuration, is another.
    Terms(u8, u8),
    /// The server has a slot, wanted or not.
    Grant,
    /// One of the things that are bounded in time took that time.
    Expire(u8),
    /// The first thing of this kind that is bounded in time took that time.
    ExpireA(Bound),
    /// Another group's run waits for a place, and this one's is not needed.
    Evict,
    /// The server shuts down.
    Shutdown,
    /// The server dies.
    Crash,
    /// Something could not be stored, and the group is read back.
    Unstored,
    /// The machine is rebooted, and its clock is set by so many seconds meanwhile.
    Reboot(i8),
    /// Somebody sets the clock by so many times ten seconds.
    Clock(i8),
    /// A millisecond, a second, ten or two minutes pass.
    Wait(u8),
    /// The lock that was asked for is answered.
    Lock(LockSaid),
    /// The lock that the group holds is taken over.
    LoseLock,
    /// The agent opened its session.
    Ready(Continuity),
    /// The agent opened its session, and told which of hermes' sessions that is.
    ReadyAs(Continuity, u8),
    /// The agent opened the other session that it was asked for, or could not.
    Open(bool),
    /// The agent says something.
    Say(Spoken),
    /// The agent writes something that is no message.
    SayNonsense,
    /// The agent asks for what greenroom does not offer.
    AskUnoffered,
    /// A message, or a line on stderr, tells of a compaction.
    Signal(Seen),
    /// A message tells which of hermes' sessions is in force.
    Provenance { number: u8, compacted: bool },
    /// A message is about a session with another id, or the one in force.
    NameSession(u8),
    /// The agent asks for a permission.
    Ask(Asked),
    /// Somebody answers the permission that was opened so many before the last.
    Decide { back: u8, choice: Chosen },
    /// The agent answers its prompt.
    Answer(StopReason),
    /// The agent answers its prompt with an error.
    AnswerError(i64),
    /// The agent answers a prompt for the second time.
    AnswerAgain,
    /// The agent answers what nobody asked.
    AnswerUnknown(u8),
    /// The agent closes its stdout.
    Close,
    /// The agent's process ends.
    Exit(ExitReason),
    /// A timer fires for what is over already: several may be due at once.
    LateExpire(u8),
    /// A run that is over is heard of once more.
    LateSay,
    /// Likewise: it answers the prompt that it owed an answer.
    LateAnswer,
    /// Likewise.
    LateAsk,
    /// Likewise.
    LateReady,
    /// Likewise.
    LateExit,
    /// Likewise.
    LateSignal(Seen),
    /// Likewise.
    LateProvenance(u8),
    /// Likewise.
    LateName,
    /// Likewise.
    LateOpen,
    /// Likewise.
    LateClose,
}

/// A permission that an agent asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Which options it offers.
    pub options: u8,
    /// The kind of tool; 0: not told.
    pub tool: u8,
    /// Whether it is the request before, once more.
    pub again: bool,
}

/// What somebody answers to a permission.
#[derive(Clone, Copy, Debug)]
pub enum Chosen {
    /// One of its options.
    Option(u8),
    /// An option that it does not offer.
    Unknown,
    Cancel,
}

/// What may be bounded in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Turn,
    Cancel,
    Compaction,
    Lock,
    Permission,
    Backoff,
    Launch,
    Queued,
    Idle,
}

/// How an agent answers a prompt with an error: JSON-RPC's codes, ACP's and others.
const CODES: [i64; 8] = [-32603, -32000, -32600, -32601, -32602, -32700, -32001, 1];

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
    /// A tool call ends, and badly.
    ToolFails(u8),
    /// What the session cost so far.
    Cost(u8),
    /// Tools and costs in several lines at once.
    Burst(u8),
    /// What is no output of an attempt.
    Mode,
    /// What a hermes says that lost track after a cancel.
    Queued,
}

/// What a detector sees of a compaction.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The detector.
    pub source: Source,
    /// What it saw.
    pub sign: Sign,
    /// ACP's name for it; 0: none.
    pub key: u8,
    /// The hermes session that is compacted, and the one after it; 0: not named.
    pub lineage: (u8, u8),
}

/// What becomes of the wish for a lock.
#[derive(Clone, Copy, Debug)]
pub enum LockSaid {
    Taken,
    Held,
    Absent,
    Failed,
}

/// Up to `most` moves.
pub fn moves(most: usize) -> impl Strategy<Value = Vec<Move>> {
    vec(next(), 0..most)
}

fn seen(detail: u8, more: u8) -> Seen {
    Seen {
        source: match detail % 3 {
            0 => Source::Acp,
            1 => Source::HermesMeta,
            _ => Source::HermesStderr,
        },
        sign: match detail / 3 % 10 {
            0..3 => Sign::Started,
            3..6 => Sign::Completed,
            6 => Sign::Failed,
            7 => Sign::Cancelled,
            8 => [Sign::Skipped, Sign::Noop][usize::from(more % 2)],
            _ => Sign::Noted,
        },
        key: more / 2 % 3,
        lineage: (more / 6 % 4, more / 24 % 4),
    }
}

/// Weighted so that turns start and end, and everything else happens in between.
fn next() -> impl Strategy<Value = Move> {
    (0_u8..165, any::<u8>(), any::<u8>()).prop_map(|(which, detail, more)| match which {
        0..12 => Move::Submit { bytes: detail },
        12..18 => Move::Compact,
        18..24 => Move::Cancel { back: detail % 8 },
        24 => match detail % 4 {
            0 => Move::Archive,
            1 => Move::Pause,
            2 => Move::Stop,
            _ => Move::Resume,
        },
        25..28 => Move::Configure(detail),
        28..42 => Move::Grant,
        42..47 => Move::Expire(detail % 4),
        47 => [Move::Shutdown, Move::Evict][usize::from(detail % 2)],
        48 => Move::Crash,
        49 => [Move::Crash, Move::Unstored, Move::Reboot(more as i8)][usize::from(detail % 3)],
        50 => [Move::Clock(more as i8), Move::Wait(more)][usize::from(detail % 2)],
        51..64 => match (detail % 4, more % 4) {
            (0, 0) => Move::Ready(Continuity::Lost),
            (1, 0) => Move::Ready(Continuity::Resumed),
            (_, 0) => Move::Ready(Continuity::Loaded),
            (0, number) => Move::ReadyAs(Continuity::Lost, number),
            (1, number) => Move::ReadyAs(Continuity::Resumed, number),
            (_, number) => Move::ReadyAs(Continuity::Loaded, number),
        },
        64..75 => Move::Say(match detail % 7 {
            0 | 1 => Spoken::Chunk(more),
            2 => Spoken::Usage(more),
            3 => [Spoken::Usage(more), Spoken::Cost(more / 2)][usize::from(more % 2)],
            4 if more >= 128 => Spoken::Burst(more - 128),
            4 => Spoken::ToolBegins(more % 3),
            5 => [Spoken::ToolEnds(more / 2 % 3), Spoken::ToolFails(more / 2 % 3)]
                [usize::from(more % 2)],
            _ => [Spoken::Mode, Spoken::Queued][usize::from(more % 2)],
        }),
        75 => [Move::SayNonsense, Move::AskUnoffered][usize::from(more % 2)],
        76..79 | 150..152 => {
            Move::Ask(Asked { options: detail, tool: more % 3, again: more.is_multiple_of(8) })
        }
        79..91 => Move::Answer(match detail % 4 {
            0 => StopReason::Cancelled,
            1 => StopReason::MaxTokens,
            _ => StopReason::EndTurn,
        }),
        91..93 => Move::AnswerError(CODES[usize::from(detail % 8)]),
        93 => [Move::AnswerAgain, Move::AnswerUnknown(more)][usize::from(detail % 2)],
        94..99 => Move::Exit(match detail % 4 {
            0 => ExitReason::StartFailed,
            1 => ExitReason::Protocol,
            2 => ExitReason::Stopped,
            _ => ExitReason::Exited,
        }),
        99 => match detail % 11 {
            0 => Move::LateSay,
            1 => Move::LateAsk,
            2 => Move::LateReady,
            3 => Move::LateExit,
            4 => Move::LateSignal(seen(detail / 11, more)),
            5 => Move::LateProvenance(more),
            6 => Move::LateName,
            7 => Move::LateOpen,
            8 => Move::LateAnswer,
            9 => Move::LateExpire(more),
            _ => Move::LateClose,
        },
        100..116 => Move::Signal(seen(detail, more)),
        116..119 => Move::Provenance { number: detail % 4, compacted: more.is_multiple_of(2) },
        119 => Move::NameSession(detail % 3),
        120..132 => Move::Lock(match detail % 8 {
            0 => LockSaid::Held,
            1 => LockSaid::Absent,
            2 => LockSaid::Failed,
            _ => LockSaid::Taken,
        }),
        132 => Move::LoseLock,
        133..139 => Move::CompactByRotation,
        139..145 => Move::Open(!detail.is_multiple_of(4)),
        145..147 => Move::Terms(detail, more),
        152..157 => Move::Decide {
            back: more % 4,
            choice: match detail % 8 {
                0 => Chosen::Unknown,
                1 | 2 => Chosen::Cancel,
                option => Chosen::Option(option),
            },
        },
        157..160 => Move::SubmitWithin { ms: detail },
        160 => Move::Resume,
        161..163 => Move::AnswerError(CODES[0]),
        163 => Move::ExpireA([Bound::Backoff, Bound::Launch][usize::from(detail % 2)]),
        164 => Move::Exit([ExitReason::Exited, ExitReason::StartFailed][usize::from(detail % 2)]),
        147 => Move::Close,
        _ => Move::Exit(ExitReason::Stopped),
    })
}
