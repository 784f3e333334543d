//! The random actions of the world around a group.

use greenroom_core::{Continuity, ExitReason, FailedStart, SignalKind, Source, StopReason};
use proptest::{collection::vec, prelude::*, sample::select};

/// One action of a caller, the server or the agent. Its numbers are small, so that a failure
/// shrinks well.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// A caller submits a turn.
    Submit { bytes: u8 },
    /// A caller submits a turn with these blocks besides text: 1 image, 2 audio, 4 resource.
    SubmitBlocks(u8),
    /// A caller submits a turn that has to start within `ms` times ten milliseconds.
    SubmitWithin { ms: u8 },
    /// A caller submits a compaction by the agent's own command.
    Compact,
    /// A caller submits a compaction by a summary and another session.
    CompactByRotation,
    /// A caller cancels the task that was submitted `back` before the last.
    Cancel { back: u8 },
    /// A caller deletes the group.
    Archive,
    /// A caller orders the rows of the group to be deleted.
    Purge,
    /// A caller pauses the group.
    Pause,
    /// A caller resumes the group.
    Resume,
    /// A caller stops the run.
    Stop,
    /// A caller creates, changes or revives the group.
    Configure(u8),
    /// The profile or the server's configuration changes.
    ChangeSettings(u8, u8),
    /// The server grants a slot, wanted or not.
    GrantSlot,
    /// One of the running timers fires.
    FireTimer(u8),
    /// The first running timer of this kind fires.
    FireTimerOf(TimerKind),
    /// Another group's run waits for a place, and the pool evicts this idle one.
    Evict,
    /// The server begins to shut down.
    Drain,
    /// The server shuts down, and waits no longer for the running turn.
    Shutdown,
    /// The server shuts down before it writes the prompt that it just committed.
    WithholdPrompt,
    /// The server dies.
    Crash,
    /// A commit failed, and the group is restored.
    StorageFailure,
    /// The machine reboots, and its clock is set by this many seconds meanwhile.
    Reboot(i8),
    /// The clock is set by this many times ten seconds.
    SetClock(i8),
    /// A millisecond, a second, ten or two minutes pass.
    Wait(u8),
    /// The server answers the lock request.
    AnswerLock(LockReply),
    /// Another holder takes the group's lock.
    LoseLock,
    /// The agent opened its session.
    Ready(Continuity),
    /// The agent opened its session, and named its own session.
    ReadyAs(Continuity, u8),
    /// The agent opened its session, and takes these blocks besides text: 1 image, 2 audio, 4
    /// resource.
    ReadyTaking(Continuity, u8),
    /// The agent opened the other session that the group requested, or failed to.
    OpenSession(bool),
    /// The agent writes a message.
    Output(AgentMessage),
    /// The agent writes a message that the server reads before it sends the running prompt.
    EarlyOutput(AgentMessage),
    /// The agent writes a line that is no message.
    InvalidOutput,
    /// The agent writes a line that begins as a message does, and is none.
    BrokenMessage,
    /// The agent sends a request that greenroom does not support.
    UnsupportedRequest,
    /// A message or a line on stderr reports a compaction.
    CompactionSignal(DetectorSignal),
    /// A message names the agent's own session in force.
    Provenance { number: u8, compacted: bool },
    /// A text names another session, or the one in force.
    OutputOfSession(u8),
    /// The agent reports the usage of a session: 0 the one in force, 1 the one that was prompted
    /// last, else another one.
    UsageOfSession(u8, u8),
    /// The agent requests a permission.
    RequestPermission(PermissionRequest),
    /// A caller answers the permission that was opened `back` before the last.
    AnswerPermission { back: u8, choice: PermissionChoice },
    /// The agent answers its prompt.
    AnswerPrompt(StopReason),
    /// The agent answers that it queued its prompt.
    QueuePrompt,
    /// The agent answers its prompt with an error.
    AnswerPromptWithError(i64),
    /// The agent answers its prompt with an error or a stop reason that is not ACP's.
    AnswerUnclearly(u8),
    /// The agent answers a prompt a second time.
    RepeatAnswer,
    /// The agent answers a prompt that was never sent.
    AnswerUnknownPrompt(u8),
    /// The agent closes its stdout.
    CloseStdout,
    /// The agent's process ends.
    Exit(ExitReason),
    /// It ends before it is ready, in such a way.
    FailStart(FailedStart),
    /// A timer fires too late: several may be due at once.
    LateTimer(u8),
    /// Late output of a run that is over.
    LateOutput,
    /// Likewise: it answers its unanswered prompt.
    LateAnswer,
    /// Likewise.
    LatePermissionRequest,
    /// Likewise.
    LateReady,
    /// Likewise.
    LateExit,
    /// Likewise.
    LateSignal(DetectorSignal),
    /// Likewise.
    LateProvenance(u8),
    /// Likewise.
    LateSessionOpened,
    /// Likewise.
    LateStdoutClosed,
}

/// A permission that an agent requests.
#[derive(Clone, Copy, Debug)]
pub struct PermissionRequest {
    /// Which options it offers.
    pub options: u8,
    /// The kind of tool; 0: not given.
    pub tool: u8,
    /// Whether it repeats the last request.
    pub repeated: bool,
}

/// A caller's answer to a permission.
#[derive(Clone, Copy, Debug)]
pub enum PermissionChoice {
    /// One of its options.
    Option(u8),
    /// An option that it does not offer.
    Unknown,
    Cancel,
}

/// The kinds of timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerKind {
    Attempt,
    Cancel,
    Compaction,
    Lock,
    Permission,
    Backoff,
    Launch,
    Login,
    Queued,
    Idle,
}

/// The error codes of an agent's answer: JSON-RPC's, ACP's and others.
const CODES: [i64; 8] = [-32603, -32000, -32600, -32601, -32602, -32700, -32001, 1];

/// How often a caller orders a purge; it has no effect on a group that is not archived.
const PURGE: u32 = 1;
/// How often an agent fails before it is ready in a way that lasts, or on its session.
const FAILED_START: u32 = 2;
/// How often a prompt has blocks that not every agent takes, and an agent says which it takes.
const BLOCKS: u32 = 2;
/// How often an agent answers its prompt so that the stop reason is unknown.
const UNCLEAR_ANSWER: u32 = 1;
/// How often an agent writes half a message.
const BROKEN_MESSAGE: u32 = 1;

/// What an agent writes.
#[derive(Clone, Copy, Debug)]
pub enum AgentMessage {
    /// Text, in up to three lines.
    Chunk(u8),
    /// Text of one of a few messages.
    ChunkOf(u8),
    /// Words of the user: a replay, or an echo of the prompt.
    UserWords,
    /// The usage of its context.
    Usage(u8),
    /// A tool call starts.
    ToolStarted(u8),
    /// A tool call completes.
    ToolCompleted(u8),
    /// A tool call fails.
    ToolFailed(u8),
    /// The session's cost so far.
    Cost(u8),
    /// Tools and costs in several lines at once.
    Burst(u8),
    /// A message that is no output of an attempt.
    Mode,
}

/// What a detector reports of a compaction.
#[derive(Clone, Copy, Debug)]
pub struct DetectorSignal {
    /// The detector.
    pub source: Source,
    /// What it reports.
    pub kind: SignalKind,
    /// ACP's key for it; 0: none.
    pub key: u8,
    /// The compacted session of the agent's own, and the one after it; 0: not named.
    pub lineage: (u8, u8),
}

/// The answer to a lock request.
#[derive(Clone, Copy, Debug)]
pub enum LockReply {
    Acquired,
    Busy,
    Absent,
    Failed,
}

/// Up to `most` actions.
pub fn actions(most: usize) -> impl Strategy<Value = Vec<Action>> {
    vec(action(), 0..most)
}

/// Any action, weighted so that turns start and end, and everything else happens in between.
///
/// The weight of each group is the sum of the weights in it, so that a weight means the same in
/// every group.
fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        43 + PURGE + BLOCKS => caller_action(),
        39 => server_action(),
        28 + FAILED_START + BLOCKS => run_action(),
        34 + UNCLEAR_ANSWER + BROKEN_MESSAGE => output_action(),
        21 => detector_action(),
        1 => late_action(),
    ]
}

fn caller_action() -> impl Strategy<Value = Action> {
    let state_change = select(vec![Action::Archive, Action::Pause, Action::Stop, Action::Resume]);
    let purge = Just(Action::Purge);
    prop_oneof![
        12 => any::<u8>().prop_map(|bytes| Action::Submit { bytes }),
        3 => any::<u8>().prop_map(|ms| Action::SubmitWithin { ms }),
        6 => Just(Action::Compact),
        6 => Just(Action::CompactByRotation),
        6 => (0..8_u8).prop_map(|back| Action::Cancel { back }),
        3 => any::<u8>().prop_map(Action::Configure),
        5 => (0..4_u8, permission_choice())
            .prop_map(|(back, choice)| Action::AnswerPermission { back, choice }),
        1 => Just(Action::Resume),
        1 => state_change,
        PURGE => purge,
        BLOCKS => (0..8_u8).prop_map(Action::SubmitBlocks),
    ]
}

fn server_action() -> impl Strategy<Value = Action> {
    let failure = prop_oneof![
        Just(Action::Crash),
        Just(Action::StorageFailure),
        any::<i8>().prop_map(Action::Reboot),
    ];
    let time =
        prop_oneof![any::<i8>().prop_map(Action::SetClock), any::<u8>().prop_map(Action::Wait),];
    prop_oneof![
        14 => Just(Action::GrantSlot),
        5 => (0..4_u8).prop_map(Action::FireTimer),
        1 => select(vec![TimerKind::Backoff, TimerKind::Launch, TimerKind::Login])
            .prop_map(Action::FireTimerOf),
        12 => lock_reply().prop_map(Action::AnswerLock),
        1 => Just(Action::LoseLock),
        2 => any::<(u8, u8)>().prop_map(|(number, more)| Action::ChangeSettings(number, more)),
        1 => select(vec![
            Action::Drain,
            Action::Shutdown,
            Action::Evict,
            Action::WithholdPrompt,
        ]),
        1 => Just(Action::Crash),
        1 => failure,
        1 => time,
    ]
}

fn run_action() -> impl Strategy<Value = Action> {
    let ready = (continuity(), 0..4_u8).prop_map(|(continuity, own)| match own {
        0 => Action::Ready(continuity),
        number => Action::ReadyAs(continuity, number),
    });
    let any_exit = select(vec![
        ExitReason::StartFailed,
        ExitReason::AgentAuth,
        ExitReason::Protocol,
        ExitReason::Stopped,
        ExitReason::Exited,
    ]);
    let failed_exit = select(vec![ExitReason::Exited, ExitReason::StartFailed]);
    prop_oneof![
        13 => ready,
        6 => prop_oneof![3 => Just(true), 1 => Just(false)].prop_map(Action::OpenSession),
        1 => Just(Action::CloseStdout),
        5 => any_exit.prop_map(Action::Exit),
        2 => Just(Action::Exit(ExitReason::Stopped)),
        1 => failed_exit.prop_map(Action::Exit),
        FAILED_START => select(vec![FailedStart::InRestore, FailedStart::Lasting])
            .prop_map(Action::FailStart),
        BLOCKS => (continuity(), 0..8_u8)
            .prop_map(|(continuity, blocks)| Action::ReadyTaking(continuity, blocks)),
    ]
}

fn output_action() -> impl Strategy<Value = Action> {
    let stop_reason = prop_oneof![
        2 => Just(StopReason::EndTurn),
        1 => Just(StopReason::MaxTokens),
        1 => Just(StopReason::Cancelled),
    ];
    let stray_answer =
        prop_oneof![Just(Action::RepeatAnswer), any::<u8>().prop_map(Action::AnswerUnknownPrompt),];
    prop_oneof![
        11 => agent_message().prop_map(Action::Output),
        1 => agent_message().prop_map(Action::EarlyOutput),
        1 => select(vec![Action::InvalidOutput, Action::UnsupportedRequest]),
        BROKEN_MESSAGE => Just(Action::BrokenMessage),
        UNCLEAR_ANSWER => (0..3_u8).prop_map(Action::AnswerUnclearly),
        5 => permission_request().prop_map(Action::RequestPermission),
        12 => stop_reason.prop_map(Action::AnswerPrompt),
        1 => Just(Action::QueuePrompt),
        2 => select(CODES.to_vec()).prop_map(Action::AnswerPromptWithError),
        2 => Just(Action::AnswerPromptWithError(CODES[0])),
        1 => stray_answer,
    ]
}

fn detector_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        16 => detector_signal().prop_map(Action::CompactionSignal),
        3 => (0..4_u8, any::<bool>())
            .prop_map(|(number, compacted)| Action::Provenance { number, compacted }),
        1 => (0..3_u8).prop_map(Action::OutputOfSession),
        1 => (any::<u8>(), 0..3_u8).prop_map(|(used, whose)| Action::UsageOfSession(used, whose)),
    ]
}

/// Something that concerns a run, a prompt or a timer that is over.
fn late_action() -> impl Strategy<Value = Action> {
    let plain = select(vec![
        Action::LateOutput,
        Action::LateAnswer,
        Action::LatePermissionRequest,
        Action::LateReady,
        Action::LateExit,
        Action::LateSessionOpened,
        Action::LateStdoutClosed,
    ]);
    prop_oneof![
        8 => plain,
        1 => detector_signal().prop_map(Action::LateSignal),
        1 => any::<u8>().prop_map(Action::LateProvenance),
        1 => any::<u8>().prop_map(Action::LateTimer),
    ]
}

fn permission_choice() -> impl Strategy<Value = PermissionChoice> {
    prop_oneof![
        5 => (3..8_u8).prop_map(PermissionChoice::Option),
        2 => Just(PermissionChoice::Cancel),
        1 => Just(PermissionChoice::Unknown),
    ]
}

fn lock_reply() -> impl Strategy<Value = LockReply> {
    prop_oneof![
        5 => Just(LockReply::Acquired),
        1 => Just(LockReply::Busy),
        1 => Just(LockReply::Absent),
        1 => Just(LockReply::Failed),
    ]
}

fn continuity() -> impl Strategy<Value = Continuity> {
    prop_oneof![
        2 => Just(Continuity::Loaded),
        1 => Just(Continuity::Resumed),
        1 => Just(Continuity::Lost),
    ]
}

fn agent_message() -> impl Strategy<Value = AgentMessage> {
    prop_oneof![
        4 => any::<u8>().prop_map(AgentMessage::Chunk),
        2 => (0..6_u8).prop_map(AgentMessage::ChunkOf),
        3 => any::<u8>().prop_map(AgentMessage::Usage),
        1 => (0..128_u8).prop_map(AgentMessage::Cost),
        1 => (0..128_u8).prop_map(AgentMessage::Burst),
        1 => (0..3_u8).prop_map(AgentMessage::ToolStarted),
        1 => (0..3_u8).prop_map(AgentMessage::ToolCompleted),
        1 => (0..3_u8).prop_map(AgentMessage::ToolFailed),
        1 => prop_oneof![Just(AgentMessage::Mode), Just(AgentMessage::UserWords)],
    ]
}

fn permission_request() -> impl Strategy<Value = PermissionRequest> {
    let repeated = prop_oneof![7 => Just(false), 1 => Just(true)];
    (any::<u8>(), 0..3_u8, repeated).prop_map(|(options, tool, repeated)| PermissionRequest {
        options,
        tool,
        repeated,
    })
}

fn detector_signal() -> impl Strategy<Value = DetectorSignal> {
    let source = select(vec![Source::Acp, Source::HermesMeta, Source::HermesStderr]);
    let kind = prop_oneof![
        6 => Just(SignalKind::Started),
        6 => Just(SignalKind::Completed),
        2 => Just(SignalKind::Failed),
        2 => Just(SignalKind::Cancelled),
        2 => Just(SignalKind::Noted),
        1 => Just(SignalKind::Skipped),
        1 => Just(SignalKind::Noop),
    ];
    (source, kind, 0..3_u8, (0..4_u8, 0..4_u8))
        .prop_map(|(source, kind, key, lineage)| DetectorSignal { source, kind, key, lineage })
}
