//! The part of a group's actor between the rules and the database.

use greenroom_actors::{
    projections::{digest, verify::verify},
    storage::{GroupCommit, GroupNo, GroupSummary, ReadStore, Store, StoreError},
    transcript::frame::{Block, pack},
};
use greenroom_core::{Continuity, Digests, Fact, GroupId, Recorded, StopReason, Timestamp};
use greenroom_testing::world::{Action, AgentMessage, World};

use super::Engine;

/// A group in its world, with the state that its actor adds to a commit.
pub struct Actor {
    pub no: GroupNo,
    pub id: GroupId,
    pub epoch: u64,
    pub world: World,
    /// All packed blocks.
    pub blocks: Vec<Block>,
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
            digests: Digests::default(),
        }
    }

    /// Plays one action, and returns the commit of its facts, if there are any.
    pub fn play(&mut self, next: Action) -> Option<GroupCommit> {
        let (at, mut facts) = self.world.play(next).unwrap()?;
        for recorded in &mut facts {
            // The locks of the world are in no table; `locks.rs` tests those that are.
            if let Fact::LockReleased { fences, .. } = &mut recorded.fact {
                *fences = false;
            }
        }
        (!facts.is_empty()).then(|| self.state(at, facts))
    }

    /// Plays several actions, each of which has to make facts.
    pub fn play_all(&mut self, actions: &[Action]) -> Vec<GroupCommit> {
        actions.iter().map(|next| self.play(*next).unwrap_or_else(|| panic!("{next:?}"))).collect()
    }

    /// Returns the commit of the facts, as the group's actor makes it.
    pub fn state(&mut self, at: Timestamp, facts: Vec<Recorded>) -> GroupCommit {
        let blocks = pack(at, &facts);
        self.blocks.extend(blocks.iter().cloned());
        let summary = self.summary();
        let digests = digest::project(&mut self.digests, &facts, at);
        let (group, epoch) = (self.no, self.epoch);
        GroupCommit { group, epoch, at, summary, facts, blocks, digests, key: None }
    }

    /// Returns the commit of facts that the rules did not make. The actor keeps its state: the
    /// database may refuse them.
    pub fn forge(&self, at: Timestamp, facts: Vec<Fact>) -> GroupCommit {
        let mut group = self.world.group.clone();
        let facts: Vec<_> = facts.into_iter().map(|fact| group.record(fact, at)).collect();
        let blocks = pack(at, &facts);
        let mut summary = self.summary();
        summary.state.last_seq = group.state().last_seq;
        let digests = digest::project(&mut self.digests.clone(), &facts, at);
        let (group, epoch) = (self.no, self.epoch);
        GroupCommit { group, epoch, at, summary, facts, blocks, digests, key: None }
    }

    pub fn summary(&self) -> GroupSummary {
        GroupSummary::of(self.id.clone(), &self.world.group)
    }
}

pub const SUBMIT: Action = Action::Submit { bytes: 3 };
pub const READY: Action = Action::Ready(Continuity::Loaded);
pub const ANSWER: Action = Action::AnswerPrompt(StopReason::EndTurn);
pub const OUTPUT: Action = Action::Output(AgentMessage::Burst(9));
/// A turn in a group with a live agent.
pub const TURN: [Action; 4] = [SUBMIT, Action::GrantSlot, OUTPUT, ANSWER];

/// Stores a group with this number of ended turns; its agent is live.
pub fn group_with_turns(engine: &impl Engine, no: GroupNo, turns: usize) -> Actor {
    let mut actor = Actor::new(no);
    let mut facts = actor.play_all(&[SUBMIT, Action::GrantSlot, READY, ANSWER]);
    (1..turns).for_each(|_| facts.extend(actor.play_all(&TURN)));
    commit(&mut engine.store(), &facts);
    actor
}

/// What `greenroom verify` finds in a group; nothing if it does not exist.
pub fn differences(read_store: &impl ReadStore, no: GroupNo) -> Vec<String> {
    verify(read_store, no).unwrap().map(|verdict| verdict.differences).unwrap_or_default()
}

/// Stores a batch of commits that must all succeed.
pub fn commit(store: &mut impl Store, batch: &[GroupCommit]) {
    let answers = store.commit(batch).unwrap();
    assert!(answers.len() == batch.len() && answers.iter().all(Result::is_ok), "{answers:?}");
}

/// Checks that the database refuses the commit.
pub fn refused(store: &mut impl Store, facts: GroupCommit) {
    let answer = store.commit(&[facts]);
    assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}");
}
