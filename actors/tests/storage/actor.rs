//! What a group's actor does between the rules and the database, and nothing else of it.

use greenroom_actors::{
    digest,
    frames::{Block, Place, pack},
    storage::{GroupNo, Standing, Store, StoreError, Writes},
};
use greenroom_core::{Continuity, Digests, GroupId, StopReason, Timestamp, Write};

use crate::world::{Move, World};

/// A group in its world, with what its actor adds to a commit.
pub struct Actor {
    pub no: GroupNo,
    pub id: GroupId,
    pub epoch: u64,
    pub world: World,
    /// All blocks that were ever packed.
    pub blocks: Vec<Block>,
    place: Place,
    pub digests: Digests,
}

impl Actor {
    pub fn new(no: GroupNo) -> Self {
        Self {
            no,
            id: format!("group-{no}").parse().unwrap(),
            epoch: 1,
            world: World::numbered(u128::from(no) << 64),
            blocks: Vec::new(),
            place: Place::default(),
            digests: Digests::default(),
        }
    }

    /// The facts of one move as they would be stored, if it leads to any.
    pub fn play(&mut self, next: Move) -> Option<Writes> {
        let (at, mut writes) = self.world.play(next).unwrap()?;
        for write in &mut writes {
            // The locks of the play are in no table; `locks.rs` is about those that are.
            if let Write::LockReleased { fences, .. } = write {
                *fences = false;
            }
        }
        (!writes.is_empty()).then(|| self.state(at, writes))
    }

    /// The facts of several moves, each of which leads to some.
    pub fn play_all(&mut self, moves: &[Move]) -> Vec<Writes> {
        moves.iter().map(|next| self.play(*next).unwrap_or_else(|| panic!("{next:?}"))).collect()
    }

    /// Some facts, as the group's actor would have them stored.
    pub fn state(&mut self, at: Timestamp, writes: Vec<Write>) -> Writes {
        let blocks = pack(&mut self.place, at, &writes);
        self.blocks.extend(blocks.iter().cloned());
        let standing = self.standing();
        let digests = digest::fold(&mut self.digests, &writes, at);
        let (group, epoch) = (self.no, self.epoch);
        Writes { group, epoch, at, standing, writes, blocks, digests, key: None }
    }

    /// Facts that the rules did not state, as they would be stored next. The actor forgets them:
    /// the database may refuse them.
    pub fn forge(&self, at: Timestamp, writes: Vec<Write>) -> Writes {
        let blocks = pack(&mut self.place.clone(), at, &writes);
        let mut standing = self.standing();
        standing.head.last_seq += writes.iter().map(Write::frames).sum::<u64>();
        let digests = digest::fold(&mut self.digests.clone(), &writes, at);
        let (group, epoch) = (self.no, self.epoch);
        Writes { group, epoch, at, standing, writes, blocks, digests, key: None }
    }

    pub fn standing(&self) -> Standing {
        let group = &self.world.group;
        Standing {
            id: self.id.clone(),
            head: group.head().clone(),
            status: group.status(),
            blocked_by: group.blocked_by(),
            queue_length: group.waiting().len() as u64,
            current_task: group.current().map(|task| task.id),
            current_run: group.run().map(|run| run.id),
            is_compacting: group.active_compaction().is_some(),
        }
    }
}

pub const SUBMIT: Move = Move::Submit { bytes: 3 };
pub const READY: Move = Move::Ready(Continuity::Loaded);
pub const ANSWER: Move = Move::Answer(StopReason::EndTurn);

/// Stores a batch all of which must succeed.
pub fn commit(store: &mut impl Store, batch: &[Writes]) {
    let answers = store.commit(batch).unwrap();
    assert!(answers.len() == batch.len() && answers.iter().all(Result::is_ok), "{answers:?}");
}

/// Stores facts of which the database must refuse the only ones.
pub fn refused(store: &mut impl Store, writes: Writes) {
    let answer = store.commit(&[writes]);
    assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}");
}
