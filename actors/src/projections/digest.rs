//! The projection of digests into rows, for each commit and for a rebuild from the frames.
//!
//! Core sums up the facts.

use std::time::Instant;

use greenroom_core::{
    AgentOutput, Digests, Fact, Kinds, Lines, Recorded, SessionCursor, Timestamp,
    digest::{RunDigest, Sealed},
};
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    acp::{self, session},
    storage::{
        Db, DigestRows, FrameFilter, GroupNo, ReadStore, SealedDigests, StoreError,
        StoredCheckpoint, TurnRow,
    },
    transcript::frame::{Block, Frame},
};

/// The bytes of frames that are read at a time, so that the reading thread is soon free again.
const PAGE_BYTES: usize = 4 << 20;
/// The rows and bytes that a rebuild stores in one transaction; the row that exceeds the bytes is
/// still stored. That takes a few milliseconds, for which a commit may have to wait.
const ROWS_MAX: usize = 250;
const ROWS_BYTES_MAX: usize = 1 << 20;

impl SealedDigests {
    /// Projects one fact into `digests`, and adds what it seals.
    pub fn project(&mut self, digests: &mut Digests, recorded: &Recorded, at: Timestamp) {
        match digests.apply(recorded, at) {
            None => {}
            Some(Sealed::Run(run)) => _ = self.runs.insert(run.run, json(&run)),
            Some(Sealed::Turn(task, digest)) => {
                let agent = digests.run.as_ref().map(|run| run.agent.clone());
                let digest = json(&digest);
                self.turns.insert(task, TurnRow { ended_at: at, agent, digest });
            }
        }
    }

    /// Returns the rows, once all facts are projected.
    pub fn into_rows(self, digests: &Digests) -> DigestRows {
        DigestRows {
            group: json(&digests.group),
            run: digests.run.as_ref().map(json::<RunDigest>),
            open: json(&digests.open),
            sealed: self,
        }
    }

    /// Takes the rows that one transaction stores.
    fn take_batch(&mut self) -> Self {
        let mut batch = Self::default();
        let (mut rows, mut bytes) = (0, 0);
        while rows < ROWS_MAX && bytes < ROWS_BYTES_MAX {
            if let Some((run, digest)) = self.runs.pop_first() {
                bytes += digest.len();
                batch.runs.insert(run, digest);
            } else if let Some((task, turn)) = self.turns.pop_first() {
                bytes += turn.digest.len();
                batch.turns.insert(task, turn);
            } else {
                break;
            }
            rows += 1;
        }
        batch
    }

    fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.turns.is_empty()
    }
}

/// Projects a commit's facts into `digests`. Returns the rows; `None` if no fact is a frame.
pub fn project(digests: &mut Digests, facts: &[Recorded], at: Timestamp) -> Option<DigestRows> {
    let before = digests.group.watermark_seq;
    let mut sealed = SealedDigests::default();
    facts.iter().for_each(|fact| sealed.project(digests, fact, at));
    (digests.group.watermark_seq != before).then(|| sealed.into_rows(digests))
}

/// Rebuilds a group's digests from its checkpoint and its frames up to `last_seq`, and stores them
/// under the owner's `epoch` (TD-6). The group's own digest is stored last, so that an interrupted
/// rebuild is repeated.
///
/// # Errors
///
/// [`StoreError::Fenced`], or the database's error.
pub async fn rebuild(
    db: &Db,
    no: GroupNo,
    epoch: u64,
    last_seq: u64,
) -> Result<Digests, StoreError> {
    let start = move |store: &dyn ReadStore| Rebuild::start(store, no);
    let mut rebuild = db.read(start).await?;
    loop {
        let before = rebuild.digests.group.watermark_seq;
        rebuild = db.read(move |store| rebuild.next_page(store, no)).await?;
        // After each page, so that memory does not grow with the log.
        put_sealed(db, no, epoch, std::mem::take(&mut rebuild.sealed)).await?;
        if rebuild.digests.group.watermark_seq == before {
            let again = db.read(start).await?;
            if again.from_seq != rebuild.from_seq {
                // Retention truncated the log meanwhile, perhaps beyond the frames that were read.
                rebuild = again;
                continue;
            }
            let Rebuild { mut digests, sealed, .. } = rebuild;
            // The unreadable end of a damaged log is skipped.
            digests.group.watermark_seq = last_seq;
            let rows = sealed.into_rows(&digests);
            db.write(move |store| store.put_digests(no, epoch, &rows)).await?;
            return Ok(digests);
        }
    }
}

/// Stores sealed digests in small transactions. Sleeps as long as each one took, so that this work
/// uses at most half of the writer.
async fn put_sealed(
    db: &Db,
    no: GroupNo,
    epoch: u64,
    mut sealed: SealedDigests,
) -> Result<(), StoreError> {
    while !sealed.is_empty() {
        let started = Instant::now();
        let rows = sealed.take_batch();
        db.write(move |store| store.put_sealed(no, epoch, &rows)).await?;
        sleep(started.elapsed()).await;
    }
    Ok(())
}

struct Rebuild {
    /// The checkpoint's frame.
    from_seq: u64,
    digests: Digests,
    sealed: SealedDigests,
    cursor: SessionCursor,
}

impl Rebuild {
    fn start(store: &dyn ReadStore, no: GroupNo) -> Result<Self, StoreError> {
        let stored = store.checkpoint(no)?;
        let checkpoint = stored.as_ref().and_then(|stored| StoredCheckpoint::read(stored).ok());
        let (mut digests, cursor) = checkpoint
            .map(|checkpoint| (checkpoint.digests(), checkpoint.cursor))
            .unwrap_or_default();
        // Of an unreadable checkpoint only the frame is known.
        let from_seq = stored.map_or(0, |stored| stored.seq);
        digests.group.watermark_seq = from_seq;
        Ok(Self { from_seq, digests, sealed: SealedDigests::default(), cursor })
    }

    fn next_page(mut self, store: &dyn ReadStore, no: GroupNo) -> Result<Self, StoreError> {
        let filter = FrameFilter {
            after: self.digests.group.watermark_seq,
            frames_max: u64::MAX,
            bytes_max: PAGE_BYTES,
            ..FrameFilter::default()
        };
        for block in store.blocks(no, &filter)? {
            self.read_block(&block);
        }
        Ok(self)
    }

    fn read_block(&mut self, block: &Block) {
        for frame in block.frames() {
            if frame.seq <= self.digests.group.watermark_seq {
                continue;
            }
            let fact = fact(frame, &mut self.cursor);
            let recorded = Recorded { place: block.place(frame), fact };
            self.sealed.project(&mut self.digests, &recorded, block.at);
        }
    }
}

/// Returns the fact of a frame. An unreadable one becomes agent output, so that it counts as a
/// frame (AM-18).
fn fact(frame: Frame<'_>, cursor: &mut SessionCursor) -> Fact {
    let summary = session::summarize(cursor, frame.kind, frame.payload);
    if let Some(Ok(fact)) = Fact::read(frame.kind, frame.payload) {
        return fact;
    }
    if frame.kind == "session/prompt"
        && let Ok((_, session, prompt)) = acp::parse_prompt_line(frame.payload)
    {
        return Fact::PromptSent { session, prompt };
    }
    let kinds = Kinds::All(frame.kind.to_owned().into());
    let lines = Lines { count: 1, kinds, text: frame.payload.to_owned().into() };
    // Digests go by the place of a late frame.
    Fact::AgentOutput(AgentOutput { lines, summary, late: None })
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}

#[cfg(test)]
mod tests {
    use greenroom_core::{RunId, TaskId};
    use uuid::Uuid;

    use super::*;

    /// I15: other groups' commits wait for few rows only, however many one group's log sealed.
    #[test]
    fn rows_are_stored_in_batches() {
        let digest = |bytes: usize| "x".repeat(bytes);
        let rows = |runs: u128, turns: u128, bytes: usize| SealedDigests {
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
        let cases: [(&str, SealedDigests, &[usize]); 6] = [
            ("none",          rows(0, 0, 1),         &[]),
            ("as many",       rows(0, 250, 1),       &[250]),
            ("one more",      rows(0, 251, 1),       &[250, 1]),
            ("of both kinds", rows(249, 252, 1),     &[250, 250, 1]),
            ("as long",       rows(1, 2, 1 << 19),   &[2, 1]),
            ("longer",        rows(2, 1, 2 << 20),   &[1, 1, 1]),
        ];
        for (name, all, expected) in cases {
            let (mut left, mut stored, mut sizes) =
                (all.clone(), SealedDigests::default(), Vec::new());
            while !left.is_empty() {
                let batch = left.take_batch();
                sizes.push(batch.runs.len() + batch.turns.len());
                stored.runs.extend(batch.runs);
                stored.turns.extend(batch.turns);
            }
            assert_eq!(sizes, expected, "{name}");
            assert!(stored == all, "{name}: something is missing");
        }
    }
}
