//! The compaction lock: acquiring, refreshing, releasing, publishing under it, and its end when a
//! group is adopted.

use greenroom_actors::storage::{
    GroupCommit, GroupNo, LockError, LockGrant, LockRequest, ReadStore, Store, StoreError,
};
use greenroom_core::{
    BootId, EndReason, Fact, Now, SessionId, Timestamp, Uptime,
    lock::{Holder, Lease, Lock, LockKey, TTL_MS_MAX, Ttl},
};
use greenroom_testing::world::Action;
use uuid::Uuid;

use super::{
    Engine,
    actor::{Actor, READY, SUBMIT, commit},
    open,
};

const BOOT: BootId = BootId(Uuid::from_u128(1));
const NEXT_BOOT: BootId = BootId(Uuid::from_u128(2));
/// The time to live of every lease here.
const TTL: u64 = 100;

fn at(boot: BootId, ms: u64) -> Now {
    Now { wall: Timestamp(50_000 + ms as i64), up: Uptime { boot, ms } }
}

fn now(ms: u64) -> Now {
    at(BOOT, ms)
}

fn key(text: &str) -> LockKey {
    text.parse().unwrap()
}

fn request(key: &str, holder: &str, group: Option<GroupNo>) -> LockRequest {
    let (key, holder) = (key.parse().unwrap(), holder.parse().unwrap());
    LockRequest { key, holder, ttl: Ttl::from_ms(TTL).unwrap(), group }
}

/// No holder's death can be proved.
fn never_dead(_: &Holder) -> bool {
    false
}

fn acquire(store: &mut impl Store, holder: &str, now: Now) -> Result<LockGrant, LockError> {
    store.lock_acquire(&request("session", holder, None), now, &never_dead)
}

/// Acquires a free lock.
fn acquire_free(store: &mut impl Store, holder: &str, now: Now) -> Lease {
    let LockGrant { lock, fresh } = acquire(store, holder, now).unwrap();
    assert!(fresh && lock.expires.ms == now.up.ms + TTL, "{lock:?}");
    assert_eq!((lock.acquired_at, lock.expires.boot), (now.wall, now.up.boot));
    lock.lease
}

#[track_caller]
fn is_busy<T: std::fmt::Debug>(answer: Result<T, LockError>, by: &str, until: i64) {
    match answer {
        Err(LockError::Conflict { holder, expires_at }) => {
            assert_eq!((holder.as_str(), expires_at), (by, Timestamp(50_000 + until)));
        }
        other => panic!("not held by {by}: {other:?}"),
    }
}

#[track_caller]
fn is_lost<T: std::fmt::Debug>(answer: Result<T, LockError>) {
    assert!(matches!(answer, Err(LockError::Lost)), "{answer:?}");
}

fn stored<E: Engine>(engine: &E, name: &str) -> Option<Lock> {
    engine.read_store().lock(&key(name)).unwrap()
}

/// HL-3: one holder at a time, each with a greater token than all before, also over a restart.
pub fn a_lock_has_one_holder_and_tokens_grow<E: Engine>() {
    let (dir, engine, mut store, _) = open::<E>();
    assert_eq!(stored(&engine, "session"), None);
    let mine = acquire_free(&mut store, "me", now(0));
    is_busy(acquire(&mut store, "you", now(99)), "me", 100);
    assert_eq!(stored(&engine, "session").unwrap().lease, mine);

    let again = acquire(&mut store, "me", now(50)).unwrap();
    assert_eq!((again.fresh, &again.lock.lease), (false, &mine), "the same token");
    assert_eq!((again.lock.expires.ms, again.lock.acquired_at), (150, now(0).wall));
    is_busy(acquire(&mut store, "you", now(149)), "me", 150);

    let other =
        store.lock_acquire(&request("other session", "you", None), now(149), &never_dead).unwrap();
    assert!(other.lock.lease.token > mine.token, "another key is another lock");
    let yours = acquire_free(&mut store, "you", now(150));
    assert!(yours.token > other.lock.lease.token);
    assert!(store.lock_release(&yours).unwrap());
    drop((store, engine));

    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let later = acquire_free(&mut store, "me", now(151));
    assert!(later.token > yours.token, "the token of a released lease is not used again");
    drop((store, engine));
    let engine = E::open(dir.path()).unwrap();
    is_busy(acquire(&mut engine.store(), "you", now(152)), "me", 251);
}

/// HL-4.
pub fn only_holder_and_token_refresh_or_release_a_lease<E: Engine>() {
    let (_dir, engine, mut store, _) = open::<E>();
    let mine = acquire_free(&mut store, "me", now(0));
    let strange = Lease { holder: "you".parse().unwrap(), ..mine.clone() };
    let early = Lease { token: mine.token - 1, ..mine.clone() };
    let elsewhere = Lease { key: key("other"), ..mine.clone() };
    for lease in [&strange, &early] {
        is_busy(store.lock_refresh(lease, now(10)), "me", 100);
    }
    is_lost(store.lock_refresh(&elsewhere, now(10)));
    for lease in [&strange, &early, &elsewhere] {
        assert!(!store.lock_release(lease).unwrap());
    }
    assert_eq!(stored(&engine, "session").unwrap().expires.ms, 100, "the lease is unchanged");

    assert_eq!(store.lock_refresh(&mine, now(60)).unwrap().expires.ms, 160);
    assert_eq!(store.lock_refresh(&mine, now(500)).unwrap().expires.ms, 600, "past its expiry");
    let refreshed = store.lock_refresh(&mine, at(NEXT_BOOT, 7)).unwrap();
    assert_eq!(refreshed.expires, Uptime { boot: NEXT_BOOT, ms: 107 }, "past a reboot");
    assert_eq!(refreshed.lease, mine);
    assert_eq!(stored(&engine, "session"), Some(refreshed));

    let yours = acquire_free(&mut store, "you", at(NEXT_BOOT, 107));
    is_busy(store.lock_refresh(&mine, at(NEXT_BOOT, 108)), "you", 207);
    assert!(!store.lock_release(&mine).unwrap(), "what another took is not released");
    is_lost(store.lock_refresh(&mine, at(NEXT_BOOT, 207)));
    assert_eq!(stored(&engine, "session").unwrap().lease, yours, "nor restored");

    assert!(store.lock_release(&yours).unwrap());
    assert!(!store.lock_release(&yours).unwrap(), "a second release has no effect");
    is_lost(store.lock_refresh(&yours, at(NEXT_BOOT, 108)));
    assert_eq!(stored(&engine, "session"), None);
}

/// HL-5 and F27: what frees a lock that was not released.
pub fn a_lock_is_reclaimed_when_it_expires_or_its_holder_is_dead<E: Engine>() {
    let (_dir, engine, mut store, _) = open::<E>();
    let mut reclaim = |now: Now, is_dead: &dyn Fn(&Holder) -> bool| {
        let first = acquire_free(&mut store, "me", at(BOOT, 1_000));
        let answer = store.lock_acquire(&request("session", "you", None), now, is_dead);
        for holder in [&first.holder, &"you".parse().unwrap()] {
            let token = stored(&engine, "session").map_or(0, |lock| lock.lease.token);
            let lease = Lease { key: key("session"), holder: holder.clone(), token };
            store.lock_release(&lease).unwrap();
        }
        answer.map(|granted| granted.lock.lease.token > first.token)
    };
    is_busy(reclaim(now(1_099), &never_dead), "me", 1_100);
    assert!(reclaim(now(1_100), &never_dead).unwrap(), "expired");
    assert!(reclaim(at(NEXT_BOOT, 1_050), &never_dead).unwrap(), "of another boot");
    assert!(reclaim(now(1_050), &|holder| holder.as_str() == "me").unwrap(), "dead");
    is_busy(reclaim(now(1_050), &|holder| holder.as_str() != "me"), "me", 1_100);
    let jumped = |ms| Now { wall: Timestamp(ms), ..now(1_099) };
    for wall in [0, 90_000_000] {
        let answer = reclaim(jumped(wall), &never_dead);
        assert!(matches!(answer, Err(LockError::Conflict { .. })), "wall clock {wall}: {answer:?}");
    }
}

/// Leases that are no longer refreshed do not stay for ever.
pub fn only_old_leases_are_deleted<E: Engine>() {
    let (_dir, _, mut store, _) = open::<E>();
    let mine = acquire_free(&mut store, "me", now(0));
    let last = TTL + TTL_MS_MAX;
    assert_eq!(store.forget_locks(now(last).up).unwrap(), 0);
    assert!(store.lock_refresh(&mine, now(0)).is_ok(), "expired, and can still be refreshed");
    assert_eq!(store.forget_locks(now(last + 1).up).unwrap(), 1);
    is_lost(store.lock_refresh(&mine, now(0)));
    acquire_free(&mut store, "me", now(0));
    assert_eq!(store.forget_locks(at(NEXT_BOOT, 0).up).unwrap(), 1, "of another boot");
}

/// Returns a group with one open segment, and its session.
fn group_with_segment(store: &mut impl Store) -> (Actor, SessionId) {
    let mut actor = Actor::new(1);
    commit(store, &actor.play_all(&[SUBMIT, Action::GrantSlot, READY]));
    let session = actor.world.group.state().session_id().cloned().unwrap();
    (actor, session)
}

fn rotation(actor: &mut Actor, lease: &Lease) -> GroupCommit {
    let facts = vec![
        Fact::SegmentEnded { segment: 1, end_reason: EndReason::Compaction },
        Fact::SegmentStarted {
            segment: 2,
            parent: Some(1),
            session: SessionId("child".into()),
            provenance: None,
        },
        Fact::LockReleased {
            key: SessionId(lease.key.as_str().into()),
            holder: lease.holder.to_string(),
            token: lease.token,
            fences: true,
        },
    ];
    let mut facts = actor.forge(Timestamp(9_000), facts);
    facts.summary.state.segment = 2;
    facts
}

fn segments(read_store: &impl ReadStore) -> Vec<(u32, bool)> {
    let segments = read_store.segments(1, 0, 10).unwrap();
    segments.iter().map(|segment| (segment.segment, segment.closed.is_none())).collect()
}

/// HL-11, I4: child, closed parent and released lease are stored together or not at all.
pub fn a_publication_without_its_lease_is_refused<E: Engine>() {
    let (_dir, engine, mut store, _) = open::<E>();
    let (mut actor, _) = group_with_segment(&mut store);
    let before = engine.read_store().group(1).unwrap();
    let nothing_written = |read_store: &E::ReadStore| {
        assert_eq!(segments(read_store), [(1, true)]);
        assert_eq!(read_store.group(1).unwrap(), before);
    };

    let mine = acquire_free(&mut store, "me", now(0));
    let yours = acquire_free(&mut store, "you", now(100));
    let answer = store.commit(&[rotation(&mut actor, &mine)]);
    assert!(matches!(answer, Err(StoreError::LeaseLost)), "{answer:?}");
    nothing_written(&engine.read_store());
    assert_eq!(stored(&engine, "session").unwrap().lease, yours, "another's lock is not touched");

    let fenced = GroupCommit { epoch: actor.epoch + 1, ..rotation(&mut actor, &yours) };
    let answer = store.commit(&[fenced]).unwrap().remove(0);
    assert!(matches!(answer, Err(StoreError::Fenced)), "{answer:?}");
    nothing_written(&engine.read_store());
    assert_eq!(stored(&engine, "session").unwrap().lease, yours, "I14: nor by a fenced owner");

    let rotate = rotation(&mut actor, &yours);
    store.commit(std::slice::from_ref(&rotate)).unwrap().remove(0).unwrap();
    assert_eq!(segments(&engine.read_store()), [(1, false), (2, true)]);
    assert_eq!(stored(&engine, "session"), None, "released in the same transaction");
    let mut repeated = rotate;
    repeated.summary.state.last_seq +=
        repeated.facts.iter().map(|recorded| recorded.fact.frames()).sum::<u64>();
    let follows = repeated.summary.state.last_seq + 1;
    repeated.facts.iter_mut().for_each(|recorded| recorded.place.seq = follows);
    let answer = store.commit(&[repeated]);
    assert!(answer.is_err(), "a lease publishes once: {answer:?}");
}

/// An earlier owner's leases end with it; those of others stay.
pub fn adopting_or_purging_a_group_releases_only_its_locks<E: Engine>() {
    let (_dir, engine, mut store, _) = open::<E>();
    let mut actors = [Actor::new(1), Actor::new(2)];
    let created: Vec<GroupCommit> =
        actors.iter_mut().map(|actor| actor.play(SUBMIT).unwrap()).collect();
    commit(&mut store, &created);
    let locks = [("one", Some(1)), ("two", Some(2)), ("outside", None)];
    let take_all = |store: &mut E::Store| {
        for (name, group) in locks {
            store.lock_acquire(&request(name, "me", group), now(0), &never_dead).unwrap();
        }
    };
    let left = || -> Vec<&str> {
        let stored = |(name, _): &(&'static str, _)| stored(&engine, name).map(|_| *name);
        locks.iter().filter_map(stored).collect()
    };
    take_all(&mut store);
    store.adopt(1, now(0).up).unwrap().unwrap();
    assert_eq!(left(), ["two", "outside"]);
    take_all(&mut store);
    store.purge(2, Some(1)).unwrap();
    assert_eq!(left(), ["one", "outside"]);
    store.adopt(7, now(0).up).unwrap();
    assert_eq!(left(), ["one", "outside"], "a group that was never created has no locks");
}

/// HL-12.
pub fn a_closed_segment_without_a_child_is_reopened<E: Engine>() {
    let (_dir, engine, mut store, _) = open::<E>();
    let (mut actor, session) = group_with_segment(&mut store);
    let adopt = |store: &mut E::Store, ms| {
        store.adopt(1, now(ms).up).unwrap().unwrap();
        segments(&engine.read_store())
    };
    assert_eq!(adopt(&mut store, 0), [(1, true)], "open as before");

    let lease = acquire_free(&mut store, "other", now(0));
    let rotate = rotation(&mut actor, &lease);
    store.lock_release(&lease).unwrap();
    let closed =
        GroupCommit { epoch: 2, ..actor.forge(rotate.at, vec![rotate.facts[0].fact.clone()]) };
    commit(&mut store, &[closed]);
    assert_eq!(segments(&engine.read_store()), [(1, false)]);
    let held_outside = request(&session.0, "outside", None);
    store.lock_acquire(&held_outside, now(0), &never_dead).unwrap();
    assert_eq!(adopt(&mut store, 99), [(1, false)], "the holder may still open the next");
    assert_eq!(adopt(&mut store, 100), [(1, true)], "the lease has expired");

    let segment = engine.read_store().segments(1, 0, 1).unwrap().remove(0);
    assert_eq!((segment.session, segment.closed), (session, None));
}
