//! Digests as rows: what a commit adds to them, and how they are made again from the frames.
//!
//! Owns the way from core's fold to what is stored. It sums nothing up itself.

use std::time::Instant;

use greenroom_core::{
    Digests, Kinds, Lines, RunId, Said, Timestamp, Write,
    digest::{Closed, RunDigest},
};
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    agent::{acp, sessions::Reread},
    frames::{Block, Frame},
    storage::{
        Archive, ClosedRows, DigestRows, FrameFilter, GroupNo, Ledger, StoreError, StoredBase,
        TurnRow,
    },
};

/// What is read at a time: a reading thread is not kept from others for longer.
const PAGE_BYTES: usize = 4 << 20;
/// What is stored in one transaction when digests are made again, rows and bytes: the row that goes
/// over is still stored. So many take a few milliseconds; a commit may have to wait that long.
const ROWS_MAX: usize = 250;
const ROWS_BYTES_MAX: usize = 1 << 20;

impl ClosedRows {
    /// Takes in one fact, and keeps what it closes.
    pub fn fold(&mut self, digests: &mut Digests, write: &Write, at: Timestamp) {
        match digests.take(write, at) {
            None => {}
            Some(Closed::Run(run)) => _ = self.runs.insert(run.run, json(&run)),
            Some(Closed::Turn(task, digest)) => {
                let agent = digests.run.as_ref().map(|run| run.agent.clone());
                let digest = json(&digest);
                self.turns.insert(task, TurnRow { ended_at: at, agent, digest });
            }
        }
    }

    /// The rows, when all facts are folded.
    pub fn into_rows(self, digests: &Digests) -> DigestRows {
        DigestRows {
            group: json(&digests.group),
            run: digests.run.as_ref().map(json::<RunDigest>),
            carry: json(&digests.carry),
            closed: self,
        }
    }

    /// Takes out what one transaction stores.
    fn part(&mut self) -> Self {
        let mut part = Self::default();
        let (mut rows, mut bytes) = (0, 0);
        while rows < ROWS_MAX && bytes < ROWS_BYTES_MAX {
            if let Some((run, digest)) = self.runs.pop_first() {
                bytes += digest.len();
                part.runs.insert(run, digest);
            } else if let Some((task, turn)) = self.turns.pop_first() {
                bytes += turn.digest.len();
                part.turns.insert(task, turn);
            } else {
                break;
            }
            rows += 1;
        }
        part
    }

    fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.turns.is_empty()
    }
}

/// Takes the facts of a commit in; `None` if they are no frames, and so change nothing.
pub fn fold(digests: &mut Digests, writes: &[Write], at: Timestamp) -> Option<DigestRows> {
    let before = digests.group.watermark_seq;
    let mut closed = ClosedRows::default();
    writes.iter().for_each(|write| closed.fold(digests, write, at));
    (digests.group.watermark_seq != before).then(|| closed.into_rows(digests))
}

/// Makes a group's digests again from its frames up to `last_seq`, from where its log was cut on,
/// and stores them under the owner's `epoch` (SEEDS TD-6). The group's own are last: until then it
/// has none that are current, and whoever is interrupted begins anew.
///
/// # Errors
///
/// [`StoreError::Fenced`], or the database's error.
pub async fn rebuild(
    ledger: &Ledger,
    no: GroupNo,
    epoch: u64,
    last_seq: u64,
) -> Result<Digests, StoreError> {
    let begin = move |archive: &dyn Archive| Rebuild::begin(archive, no);
    let mut fold = ledger.read(begin).await?;
    loop {
        let before = fold.digests.group.watermark_seq;
        fold = ledger.read(move |archive| fold.go_on(archive, no)).await?;
        // A page's at a time: what a long log closed is never held together.
        put_closed(ledger, no, epoch, std::mem::take(&mut fold.closed)).await?;
        if fold.digests.group.watermark_seq == before {
            let again = ledger.read(begin).await?;
            if again.from_seq != fold.from_seq {
                // Retention cut the log meanwhile, and frames may be gone that were not read yet.
                fold = again;
                continue;
            }
            let Rebuild { mut digests, closed, .. } = fold;
            // What cannot be read at the end of a damaged log is passed over.
            digests.group.watermark_seq = last_seq;
            ledger.put_digests(no, epoch, closed.into_rows(&digests)).await?;
            return Ok(digests);
        }
    }
}

/// The writer is the commits' for as long as it took after each transaction.
async fn put_closed(
    ledger: &Ledger,
    no: GroupNo,
    epoch: u64,
    mut closed: ClosedRows,
) -> Result<(), StoreError> {
    while !closed.is_empty() {
        let started = Instant::now();
        ledger.put_closed(no, epoch, closed.part()).await?;
        sleep(started.elapsed()).await;
    }
    Ok(())
}

struct Rebuild {
    /// Where the log was cut.
    from_seq: u64,
    digests: Digests,
    closed: ClosedRows,
    reread: Reread,
}

impl Rebuild {
    fn begin(archive: &dyn Archive, no: GroupNo) -> Result<Self, StoreError> {
        let stored = archive.base(no)?;
        let base = stored.as_ref().and_then(|stored| StoredBase::read(stored).ok());
        let (mut digests, reread) =
            base.map(|base| (base.digests(), base.reread)).unwrap_or_default();
        // Of one that cannot be read, nothing is known at all.
        let from_seq = stored.map_or(0, |stored| stored.seq);
        digests.group.watermark_seq = from_seq;
        Ok(Self { from_seq, digests, closed: ClosedRows::default(), reread })
    }

    fn go_on(mut self, archive: &dyn Archive, no: GroupNo) -> Result<Self, StoreError> {
        let filter = FrameFilter {
            after: self.digests.group.watermark_seq,
            frames_max: u64::MAX,
            bytes_max: PAGE_BYTES,
            ..FrameFilter::default()
        };
        for block in archive.blocks(no, &filter)? {
            self.block(&block);
        }
        Ok(self)
    }

    fn block(&mut self, block: &Block) {
        for frame in block.frames() {
            if frame.seq <= self.digests.group.watermark_seq {
                continue;
            }
            // Of a damaged log, what can be read is summed up.
            self.digests.group.watermark_seq = frame.seq - 1;
            let write = fact(frame, block, &mut self.reread);
            self.closed.fold(&mut self.digests, &write, block.at);
        }
    }
}

/// The fact that a frame is. One that cannot be read is something that the agent said: it counts as
/// a frame (SEEDS AM-18).
fn fact(frame: Frame<'_>, block: &Block, reread: &mut Reread) -> Write {
    let fold = reread.meaning(frame.kind, frame.payload);
    if let Some(Ok(write)) = Write::read(frame.kind, frame.payload) {
        return write;
    }
    if frame.kind == "session/prompt"
        && let Ok((id, session, prompt)) = acp::prompt_sent(frame.payload)
    {
        return Write::PromptSent { id, session, prompt };
    }
    let kinds = Kinds::All(frame.kind.to_owned().into());
    let lines = Lines { count: 1, kinds, text: frame.payload.to_owned().into() };
    let run = block.run.unwrap_or(RunId(uuid::Uuid::nil()));
    Write::Said(Said { run, task: block.task, lines, fold })
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}

#[cfg(test)]
mod tests {
    use greenroom_core::TaskId;
    use uuid::Uuid;

    use super::*;

    /// I15: whatever one group's log closed, others' commits wait for a few rows of it only.
    #[test]
    fn rows_are_stored_in_parts() {
        let digest = |bytes: usize| "x".repeat(bytes);
        let rows = |runs: u128, turns: u128, bytes: usize| ClosedRows {
            runs: (0..runs).map(|id| (RunId(Uuid::from_u128(id)), digest(bytes))).collect(),
            turns: (0..turns)
                .map(|id| {
                    let turn =
                        TurnRow { ended_at: Timestamp(0), agent: None, digest: digest(bytes) };
                    (TaskId(Uuid::from_u128(id)), turn)
                })
                .collect(),
        };
        #[rustfmt::skip]
        let cases: [(&str, ClosedRows, &[usize]); 6] = [
            ("none",          rows(0, 0, 1),         &[]),
            ("as many",       rows(0, 250, 1),       &[250]),
            ("one more",      rows(0, 251, 1),       &[250, 1]),
            ("of both kinds", rows(249, 252, 1),     &[250, 250, 1]),
            ("as long",       rows(1, 2, 1 << 19),   &[2, 1]),
            ("longer",        rows(2, 1, 2 << 20),   &[1, 1, 1]),
        ];
        for (name, all, expected) in cases {
            let (mut left, mut stored, mut sizes) =
                (all.clone(), ClosedRows::default(), Vec::new());
            while !left.is_empty() {
                let part = left.part();
                sizes.push(part.runs.len() + part.turns.len());
                stored.runs.extend(part.runs);
                stored.turns.extend(part.turns);
            }
            assert_eq!(sizes, expected, "{name}");
            assert!(stored == all, "{name}: something is missing");
        }
    }
}
