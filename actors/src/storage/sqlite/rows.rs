//! The conversions between values and columns: keys, times, words, JSON, and whole rows.

use greenroom_core::{
    Compaction, CompactionHistory, CrashLoop, End, EndFrame, EndState, Ending, Existence, Exit,
    FailedStart, GroupId, GroupState, Hold, Json, Permission, PermissionShown, PromptCapabilities,
    Queued, Retry, RunId, Session, SessionId, Stage, Start, Status, Task, TaskId, TaskKind,
    TaskState, Timestamp, Work,
};
use rusqlite::{
    Error, Row,
    types::{FromSql, FromSqlError, Type, ValueRef},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::storage::{
    GROUP_MAX, GroupNo, GroupSummary, PermissionRecord, RunRecord, SEQ_MAX, SalvagedPermission,
    SalvagedTask, SegmentRecord, fault_in,
};

/// Bits of a key that are the seq, or the ordinal, within the group.
const SEQ_BITS: u32 = 36;
// A key has room for each number, and for one group more: its first key ends the last group's
// range.
const _: () = assert!(SEQ_MAX < 1 << SEQ_BITS && (GROUP_MAX as u64) + 1 < 1 << (63 - SEQ_BITS));
/// The last moment of the year 9999, milliseconds: a later time is damage.
const TIME_MAX: i64 = 253_402_300_799_999;

/// Returns the key of a frame or a task of a group.
pub fn key(group: GroupNo, seq: u64) -> i64 {
    let seq = seq.min(SEQ_MAX);
    i64::from(group) << SEQ_BITS | seq as i64
}

/// Returns the frame's or task's number within the group.
pub fn seq(key: i64) -> u64 {
    (key & ((1 << SEQ_BITS) - 1)) as u64
}

/// Formats a value as JSON.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}

/// Returns the column of a task's findings.
pub fn findings(ending: &Ending) -> Option<String> {
    Some(ending.findings).filter(|findings| !findings.is_empty()).map(|findings| json(&findings))
}

/// Converts a time into a column.
pub fn ms(at: Option<Timestamp>) -> Option<i64> {
    at.map(|at| at.0)
}

/// Converts a number into a column.
pub fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Reads a number that is not negative.
fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value = row.get::<_, i64>(column)?;
    u64::try_from(value).map_err(|_| Error::IntegralValueOutOfRange(column, value))
}

/// Reads the number of a group's last frame.
pub fn last_seq(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    number(row, column)
}

/// Reads a number within a group, at most [`SEQ_MAX`].
fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value = row.get::<_, i64>(column)?;
    let fits = u64::try_from(value).ok().filter(|value| *value <= SEQ_MAX);
    fits.ok_or(Error::IntegralValueOutOfRange(column, value))
}

fn optional<T>(
    row: &Row<'_>,
    column: usize,
    read: impl Fn(&Row<'_>, usize) -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => read(row, column).map(Some),
    }
}

/// Reads a time, at most [`TIME_MAX`].
pub fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    let value = row.get::<_, i64>(column)?;
    if (-TIME_MAX..=TIME_MAX).contains(&value) {
        Ok(Timestamp(value))
    } else {
        Err(Error::IntegralValueOutOfRange(column, value))
    }
}

pub fn text<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<Option<&'a str>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        ValueRef::Text(bytes) => {
            std::str::from_utf8(bytes).map(Some).map_err(|err| Error::Utf8Error(column, err))
        }
        other => Err(Error::InvalidColumnType(column, String::new(), other.data_type())),
    }
}

/// The columns of a task in the order that [`task`] reads them.
pub const TASK_COLUMNS: &str = "key, id, kind, origin, prompt, focus, metadata, deadline_ms, \
     created_at, state, claimed_at, attempt, cancel_requested, started_at, ended_at, run, segment, \
     seq_first, seq_last, stop_reason, error, interrupted, text, text_truncated, usage, tokens, \
     strategy, findings, expires, retry_at, retry_of";

/// The number of [`TASK_COLUMNS`].
pub const TASK_WIDTH: usize = 31;

/// Reads a task from [`TASK_COLUMNS`].
pub fn task(row: &Row<'_>) -> rusqlite::Result<Task> {
    let prompt = raw_json(row, 4)?.ok_or_else(|| corrupt(4, "no prompt"))?;
    let work = match from_word(row, 2)? {
        TaskKind::Turn => Work::Turn { prompt },
        TaskKind::Compaction => Work::Compaction {
            focus: row.get::<_, Option<String>>(5)?.map(Into::into),
            prompt,
            strategy: from_word(row, 26)?,
        },
    };
    Ok(Task {
        ordinal: seq(row.get(0)?),
        id: TaskId(uuid(row, 1)?.ok_or_else(|| corrupt(1, "no id"))?),
        work,
        origin: from_word(row, 3)?,
        metadata: raw_json(row, 6)?,
        deadline_ms: optional(row, 7, count)?,
        expires: from_json(row, 28)?,
        retry_of: uuid(row, 30)?.map(TaskId),
        created_at: time(row, 8)?,
        attempt: row.get(11)?,
        cancel_requested: row.get(12)?,
        stage: stage(row)?,
    })
}

/// Reads the stage of a task from [`TASK_COLUMNS`]. The state decides which columns say something;
/// `contradictions` finds rows with others.
fn stage(row: &Row<'_>) -> rusqlite::Result<Stage> {
    let state: TaskState = from_word(row, 9)?;
    let claimed_at = optional(row, 10, time)?;
    let due = from_json(row, 29)?;
    let (started_at, ended_at) = (optional(row, 13, time)?, optional(row, 14, time)?);
    let (run, segment) = (uuid(row, 15)?.map(RunId), row.get::<_, Option<u32>>(16)?);
    let (seq_first, seq_last) = (optional(row, 17, number)?, optional(row, 18, number)?);
    let ending = Ending {
        stop_reason: optional_word(row, 19)?,
        error: from_json(row, 20)?,
        interrupted: from_json(row, 21)?,
        text: row.get(22)?,
        text_truncated: row.get(23)?,
        usage: from_json(row, 24)?,
        tokens: raw_json(row, 25)?,
        findings: from_json(row, 27)?.unwrap_or_default(),
    };
    // Of a task that waits for its next attempt, it is what the last one failed with.
    let error = ending.error.clone().filter(|_| state == TaskState::Retrying).map(Box::new);
    let start = match (started_at, run, seq_first) {
        (Some(at), Some(run), Some(seq)) => {
            Some(Start { at, run, segment: segment.unwrap_or_default(), seq })
        }
        _ => None,
    };
    let ended = |state| {
        let frame = ended_at.zip(seq_last).map(|(at, seq)| EndFrame { at, seq });
        Stage::Ended(Box::new(End { state, claimed_at, start, frame, ending }))
    };
    Ok(match state {
        TaskState::Queued => match claimed_at {
            None => Stage::Queued,
            Some(at) => Stage::Claimed { at, retry: None },
        },
        TaskState::Retrying => match claimed_at {
            None => Stage::Retrying { retry: Retry { start, error }, due },
            Some(at) => Stage::Claimed { at, retry: Some(Retry { start, error }) },
        },
        TaskState::Running => match start {
            Some(start) if start.seq > 0 => {
                Stage::Running { claimed_at: claimed_at.unwrap_or(start.at), start }
            }
            // Without them its frames could not be found, and its prompt would be sent twice (I7).
            _ => return Err(corrupt(15, "a running task needs a run, a first frame and a start")),
        },
        TaskState::Completed => ended(EndState::Completed),
        TaskState::Failed => ended(EndState::Failed),
        TaskState::Cancelled => ended(EndState::Cancelled),
        TaskState::Interrupted => ended(EndState::Interrupted),
        TaskState::Skipped => ended(EndState::Skipped),
    })
}

/// Reads the readable columns of a task's row.
pub fn salvage_task(row: &Row<'_>) -> SalvagedTask {
    let mut task = SalvagedTask::default();
    let mut lost = Vec::new();
    macro_rules! take {
        ($field:ident, $read:expr) => {
            match $read {
                Ok(value) => task.$field = value,
                Err(_) => lost.push(stringify!($field)),
            }
        };
    }
    take!(focus, row.get::<_, Option<String>>(5).map(|focus| focus.map(Into::into)));
    take!(metadata, raw_json(row, 6));
    take!(deadline_ms, optional(row, 7, count));
    take!(created_at, time(row, 8).map(Some));
    take!(tokens, raw_json(row, 25));
    take!(expires, from_json(row, 28));
    take!(retry_at, from_json(row, 29));
    take!(retry_of, uuid(row, 30).map(|id| id.map(TaskId)));
    // The log may have them; otherwise the repair reports it.
    task.prompt = raw_json(row, 4).ok().flatten();
    task.strategy = optional_word(row, 26).ok().flatten();
    task.lost = lost;
    task
}

/// The column `compacting` of a group: its compactions so far, and members that later versions
/// added to the object. Earlier versions leave those out, and so they read the database.
#[derive(Default, Serialize, Deserialize)]
struct Memory {
    #[serde(flatten)]
    compacting: CompactionHistory,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unanswered: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompts: Option<PromptCapabilities>,
}

/// Returns the column `compacting` of a group.
pub fn memory(state: &GroupState) -> String {
    let unanswered = state.session.as_ref().is_some_and(|session| session.is_unanswered);
    json(&Memory { compacting: state.compacting.clone(), unanswered, prompts: state.prompts })
}

/// The columns of a group in the order that [`summary`] reads them.
pub const GROUP_COLUMNS: &str = "groups.no, id, settings, created_at, last_seq, heads.tasks, \
     session, segment, usage, paused, archived, purging, status, blocked_by, queue_length, \
     current_task, current_run, provenance, compacting, lead_in, is_compacting, held, \
     interruptions, crashes, launch_due, unspoken";

/// The number of [`GROUP_COLUMNS`].
pub const GROUP_WIDTH: usize = 26;

/// Reads a group from [`GROUP_COLUMNS`].
pub fn summary(row: &Row<'_>) -> rusqlite::Result<(GroupNo, GroupSummary)> {
    let id: String = row.get(1)?;
    let id: GroupId = id.parse().map_err(|_| corrupt(1, "no group id"))?;
    // The join found no row in `heads`.
    if row.get_ref(4)? == ValueRef::Null {
        return Err(corrupt(4, "the group has no row in heads"));
    }
    let memory: Memory = from_json(row, 18)?.unwrap_or_default();
    let summary = GroupSummary {
        id,
        state: GroupState {
            settings: from_json(row, 2)?.ok_or_else(|| corrupt(2, "no settings"))?,
            created_at: Some(time(row, 3)?),
            last_seq: number(row, 4)?,
            tasks: number(row, 5)?,
            session: session(row, memory.unanswered)?,
            segment: row.get(7)?,
            paused: row.get(9)?,
            existence: Existence::of(row.get(10)?, row.get(11)?),
            compacting: memory.compacting,
            pending_summary: row.get(19)?,
            hold: Hold { reason: optional_word(row, 21)?, interruptions: row.get(22)? },
            crash_loop: CrashLoop { crashes: row.get(23)?, launch_wait: from_json(row, 24)? },
            prompts: memory.prompts,
        },
        status: from_word(row, 12)?,
        blocked_by: optional_word(row, 13)?,
        queue_length: number(row, 14)?,
        current_task: uuid(row, 15)?.map(TaskId),
        current_run: uuid(row, 16)?.map(RunId),
        is_compacting: row.get(20)?,
    };
    Ok((row.get(0)?, summary))
}

/// Reads the session in force from [`GROUP_COLUMNS`]. Without its id the other columns say nothing,
/// but they have to be readable.
fn session(row: &Row<'_>, is_unanswered: bool) -> rusqlite::Result<Option<Session>> {
    let id = row.get::<_, Option<String>>(6)?.map(|id| SessionId(id.into()));
    let (usage, provenance, is_fresh) = (from_json(row, 8)?, from_json(row, 17)?, row.get(25)?);
    Ok(id.map(|id| Session { id, is_fresh, is_unanswered, usage, provenance }))
}

/// Whether a group's status says that it has tasks to continue with, from [`GROUP_COLUMNS`]. An
/// unreadable row says so, too.
pub fn has_work(row: &Row<'_>) -> bool {
    let status = from_word::<Status>(row, 12).ok();
    status.is_none_or(|status| status.has_work(number(row, 14).unwrap_or(1)))
}

/// Reads the key of a task that has not started, and what decides its place in the queue.
pub fn queued(row: &Row<'_>) -> rusqlite::Result<(i64, Queued)> {
    let key: i64 = row.get(0)?;
    let kind = if row.get(3)? { TaskKind::Compaction } else { TaskKind::Turn };
    let (is_claimed, is_retrying, ordinal) = (row.get(1)?, row.get(2)?, seq(key));
    Ok((key, Queued { is_claimed, is_retrying, kind, ordinal }))
}

/// The columns of a run in the order that [`run`] reads them.
pub const RUN_COLUMNS: &str = "id, agent, pid, started_at, ready_at, ended_at, code, signal, \
     reason, detail, stderr_tail, stderr_dropped";

/// Reads a run from [`RUN_COLUMNS`].
pub fn run(row: &Row<'_>) -> rusqlite::Result<RunRecord> {
    let pid = row.get(2)?;
    let ended = match optional(row, 5, time)? {
        None => None,
        Some(at) => Some((
            at,
            Exit {
                pid,
                code: row.get(6)?,
                signal: row.get(7)?,
                reason: from_word(row, 8)?,
                detail: row.get(9)?,
                stderr_tail: row.get(10)?,
                stderr_dropped: count(row, 11)?,
                failed_start: FailedStart::Passing,
            },
        )),
    };
    Ok(RunRecord {
        id: RunId(uuid(row, 0)?.ok_or_else(|| corrupt(0, "no id"))?),
        agent: row.get(1)?,
        pid,
        started_at: time(row, 3)?,
        ready_at: optional(row, 4, time)?,
        ended,
    })
}

/// The columns of a segment in the order that [`segment`] reads them.
pub const SEGMENT_COLUMNS: &str = "segment, session, opened_seq, opened_at, closed_seq, \
     closed_at, end_reason, parent, provenance";

/// Reads a segment from [`SEGMENT_COLUMNS`].
pub fn segment(row: &Row<'_>) -> rusqlite::Result<SegmentRecord> {
    let closed = match optional(row, 4, number)? {
        None => None,
        Some(seq) => Some((seq, time(row, 5)?, from_word(row, 6)?)),
    };
    Ok(SegmentRecord {
        segment: row.get(0)?,
        parent: row.get(7)?,
        provenance: from_json(row, 8)?,
        session: SessionId(row.get::<_, String>(1)?.into()),
        opened: (number(row, 2)?, time(row, 3)?),
        closed,
    })
}

/// The columns of a compaction in the order that [`compaction`] reads them.
pub const COMPACTION_COLUMNS: &str = "key, record, started_at, ended_at, status";

/// Reads a compaction, and the seq of its first frame, from [`COMPACTION_COLUMNS`].
pub fn compaction(row: &Row<'_>) -> rusqlite::Result<(u64, Compaction)> {
    let mut record: Compaction = from_json(row, 1)?.ok_or_else(|| corrupt(1, "no record"))?;
    record.status = from_word(row, 4)?;
    record.started_at = time(row, 2)?;
    record.ended_at = optional(row, 3, time)?;
    Ok((seq(row.get(0)?), record))
}

/// The columns of a permission in the order that [`permission`] reads them.
pub const PERMISSION_COLUMNS: &str = "key, record, tool_call, options, opened_at, expires_at, \
     state, selected, resolved_by, resolved_at, \
     (SELECT id FROM groups WHERE groups.no = permissions.key >> 36), id";

/// Reads a permission, and the seq of its frame, from [`PERMISSION_COLUMNS`].
pub fn permission(row: &Row<'_>) -> rusqlite::Result<(u64, PermissionRecord)> {
    let key: i64 = row.get(0)?;
    let tool_call = raw_json(row, 2)?.ok_or_else(|| corrupt(2, "no tool call"))?;
    let options = raw_json(row, 3)?.ok_or_else(|| corrupt(3, "no options"))?;
    let permission: Permission = from_json(row, 1)?.ok_or_else(|| corrupt(1, "no record"))?;
    if id(row, 11)? != permission.permission.0 {
        return Err(corrupt(11, "it is not the id in its record"));
    }
    let group: String = row.get(10)?;
    let record = PermissionRecord {
        group: group.parse().map_err(|_| corrupt(10, "no group id"))?,
        permission: Permission {
            expires_at: time(row, 5)?,
            shown: Some(Box::new(PermissionShown { tool_call, options })),
            ..permission
        },
        opened_at: time(row, 4)?,
        state: from_word(row, 6)?,
        selected: row.get(7)?,
        resolved_by: row.get(8)?,
        resolved_at: optional(row, 9, time)?,
    };
    Ok((seq(key), record))
}

/// Reads the readable columns of a permission's row.
pub fn salvage_permission(row: &Row<'_>) -> SalvagedPermission {
    SalvagedPermission {
        tool_call: raw_json(row, 2).ok().flatten(),
        options: raw_json(row, 3).ok().flatten(),
        expires_at: time(row, 5).ok(),
    }
}

pub fn corrupt(column: usize, what: &'static str) -> Error {
    Error::FromSqlConversionFailure(column, Type::Text, what.into())
}

/// The error of a column with unreadable JSON. It quotes nothing of it: see [`fault_in`].
fn unread(column: usize, err: &serde_json::Error) -> Error {
    Error::FromSqlConversionFailure(column, Type::Text, fault_in(err).into())
}

pub fn uuid(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Uuid>> {
    struct Id(Uuid);
    impl FromSql for Id {
        fn column_result(value: ValueRef<'_>) -> Result<Self, FromSqlError> {
            Uuid::from_slice(value.as_blob()?).map(Self).map_err(|_| FromSqlError::InvalidType)
        }
    }
    row.get::<_, Option<Id>>(column).map(|id| id.map(|id| id.0))
}

/// Reads a column that always holds JSON.
pub fn read<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    from_json(row, column)?.ok_or_else(|| corrupt(column, "no value"))
}

/// Reads a column that always holds an id.
pub fn id(row: &Row<'_>, column: usize) -> rusqlite::Result<Uuid> {
    uuid(row, column)?.ok_or_else(|| corrupt(column, "no id"))
}

/// Reads a column that may hold JSON.
pub fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    let Some(text) = text(row, column)? else { return Ok(None) };
    serde_json::from_str(text).map(Some).map_err(|err| unread(column, &err))
}

fn raw_json(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Json>> {
    let Some(text) = text(row, column)? else { return Ok(None) };
    Json::parse(text.to_owned()).map(Some).map_err(|err| unread(column, &err))
}

fn optional_word<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    let Some(text) = text(row, column)? else { return Ok(None) };
    let value = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text);
    T::deserialize(value).map(Some).map_err(|_| corrupt(column, "it is not a known word"))
}

fn from_word<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    optional_word(row, column)?.ok_or_else(|| corrupt(column, "no word"))
}
