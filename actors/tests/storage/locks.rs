//! The compaction lock: acquiring, refreshing, releasing, publishing under it, and what becomes of
//! it when a group changes hands.

use greenroom_actors::storage::{
    Archive, Granted, GroupNo, LockAsk, LockError, Store, StoreError, Writes,
};
use greenroom_core::{
    EndReason, SessionId, Timestamp, Write,
    lock::{BootId, Holder, Lease, Lock, LockKey, Now, TTL_MS_MAX, Ttl, Uptime},
};
use uuid::Uuid;

use crate::{
    Engine,
    actor::{Actor, READY, SUBMIT, commit},
    world::Move,
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

fn ask(key: &str, holder: &str, group: Option<GroupNo>) -> LockAsk {
    let (key, holder) = (key.parse().unwrap(), holder.parse().unwrap());
    LockAsk { key, holder, ttl: Ttl::from_ms(TTL).unwrap(), group }
}

/// Nobody's death can be proved.
fn doubt(_: &Holder) -> bool {
    false
}

fn acquire(store: &mut impl Store, holder: &str, now: Now) -> Result<Granted, LockError> {
    store.lock_acquire(&ask("session", holder, None), now, &doubt)
}

/// A lease that must be given, as one that was free.
fn take(store: &mut impl Store, holder: &str, now: Now) -> Lease {
    let Granted { lock, fresh } = acquire(store, holder, now).unwrap();
    assert!(fresh && lock.expires.ms == now.up.ms + TTL, "{lock:?}");
    assert_eq!((lock.acquired_at, lock.expires.boot), (now.wall, now.up.boot));
    lock.lease
}

#[track_caller]
fn held<T: std::fmt::Debug>(answer: Result<T, LockError>, by: &str, until: i64) {
    match answer {
        Err(LockError::Held { holder, expires_at }) => {
            assert_eq!((holder.as_str(), expires_at), (by, Timestamp(50_000 + until)));
        }
        other => panic!("not held by {by}: {other:?}"),
    }
}

#[track_caller]
fn lost<T: std::fmt::Debug>(answer: Result<T, LockError>) {
    assert!(matches!(answer, Err(LockError::Lost)), "{answer:?}");
}

fn stored<E: Engine>(engine: &E, name: &str) -> Option<Lock> {
    engine.archive().lock(&key(name)).unwrap()
}

/// HL-3: one holder at a time, each with a greater token than all before, over a restart too.
pub fn a_lock_has_one_holder_and_tokens_grow<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    assert_eq!(stored(&engine, "session"), None);
    let mine = take(&mut store, "me", now(0));
    held(acquire(&mut store, "you", now(99)), "me", 100);
    assert_eq!(stored(&engine, "session").unwrap().lease, mine);

    let again = acquire(&mut store, "me", now(50)).unwrap();
    assert_eq!((again.fresh, &again.lock.lease), (false, &mine), "the same token");
    assert_eq!((again.lock.expires.ms, again.lock.acquired_at), (150, now(0).wall));
    held(acquire(&mut store, "you", now(149)), "me", 150);

    let other = store.lock_acquire(&ask("other session", "you", None), now(149), &doubt).unwrap();
    assert!(other.lock.lease.token > mine.token, "another key is another lock");
    let yours = take(&mut store, "you", now(150));
    assert!(yours.token > other.lock.lease.token);
    assert!(store.lock_release(&yours).unwrap());
    drop((store, engine));

    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let later = take(&mut store, "me", now(151));
    assert!(later.token > yours.token, "the token of a released lease is not used again");
    drop((store, engine));
    let engine = E::open(dir.path()).unwrap();
    held(acquire(&mut engine.store(), "you", now(152)), "me", 251);
}

/// HL-4.
pub fn a_lease_is_refreshed_and_released_by_its_holder_and_token_only<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mine = take(&mut store, "me", now(0));
    let strange = Lease { holder: "you".parse().unwrap(), ..mine.clone() };
    let early = Lease { token: mine.token - 1, ..mine.clone() };
    let elsewhere = Lease { key: key("other"), ..mine.clone() };
    for lease in [&strange, &early] {
        held(store.lock_refresh(lease, now(10)), "me", 100);
    }
    lost(store.lock_refresh(&elsewhere, now(10)));
    for lease in [&strange, &early, &elsewhere] {
        assert!(!store.lock_release(lease).unwrap());
    }
    assert_eq!(stored(&engine, "session").unwrap().expires.ms, 100, "nothing was changed");

    assert_eq!(store.lock_refresh(&mine, now(60)).unwrap().expires.ms, 160);
    assert_eq!(store.lock_refresh(&mine, now(500)).unwrap().expires.ms, 600, "past its expiry");
    let reborn = store.lock_refresh(&mine, at(NEXT_BOOT, 7)).unwrap();
    assert_eq!(reborn.expires, Uptime { boot: NEXT_BOOT, ms: 107 }, "past a reboot");
    assert_eq!(reborn.lease, mine);
    assert_eq!(stored(&engine, "session"), Some(reborn));

    let yours = take(&mut store, "you", at(NEXT_BOOT, 107));
    held(store.lock_refresh(&mine, at(NEXT_BOOT, 108)), "you", 207);
    assert!(!store.lock_release(&mine).unwrap(), "what another took is not released");
    lost(store.lock_refresh(&mine, at(NEXT_BOOT, 207)));
    assert_eq!(stored(&engine, "session").unwrap().lease, yours, "nor brought back");

    assert!(store.lock_release(&yours).unwrap());
    assert!(!store.lock_release(&yours).unwrap(), "twice is once");
    lost(store.lock_refresh(&yours, at(NEXT_BOOT, 108)));
    assert_eq!(stored(&engine, "session"), None);
}

/// HL-5 and F27: what makes a lock free though nobody released it.
pub fn a_lock_is_reclaimed_when_it_expires_or_its_holder_is_dead<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mut reclaim = |now: Now, is_dead: &dyn Fn(&Holder) -> bool| {
        let first = take(&mut store, "me", at(BOOT, 1_000));
        let answer = store.lock_acquire(&ask("session", "you", None), now, is_dead);
        for holder in [&first.holder, &"you".parse().unwrap()] {
            let token = stored(&engine, "session").map_or(0, |lock| lock.lease.token);
            let lease = Lease { key: key("session"), holder: holder.clone(), token };
            store.lock_release(&lease).unwrap();
        }
        answer.map(|granted| granted.lock.lease.token > first.token)
    };
    held(reclaim(now(1_099), &doubt), "me", 1_100);
    assert!(reclaim(now(1_100), &doubt).unwrap(), "expired");
    assert!(reclaim(at(NEXT_BOOT, 1_050), &doubt).unwrap(), "of another boot");
    assert!(reclaim(now(1_050), &|holder| holder.as_str() == "me").unwrap(), "dead");
    held(reclaim(now(1_050), &|holder| holder.as_str() != "me"), "me", 1_100);
    let jumped = |ms| Now { wall: Timestamp(ms), ..now(1_099) };
    for wall in [0, 90_000_000] {
        let answer = reclaim(jumped(wall), &doubt);
        assert!(matches!(answer, Err(LockError::Held { .. })), "wall clock {wall}: {answer:?}");
    }
}

/// What nobody refreshes any more does not stay for ever.
pub fn old_leases_are_forgotten_and_no_others<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mine = take(&mut store, "me", now(0));
    let last = TTL + TTL_MS_MAX;
    assert_eq!(store.forget_locks(now(last).up).unwrap(), 0);
    assert!(store.lock_refresh(&mine, now(0)).is_ok(), "expired, and can still be refreshed");
    assert_eq!(store.forget_locks(now(last + 1).up).unwrap(), 1);
    lost(store.lock_refresh(&mine, now(0)));
    take(&mut store, "me", now(0));
    assert_eq!(store.forget_locks(at(NEXT_BOOT, 0).up).unwrap(), 1, "of another boot");
}

/// A group with one open segment, and the facts that would rotate it.
fn grown(store: &mut impl Store) -> (Actor, SessionId) {
    let mut actor = Actor::new(1);
    commit(store, &actor.play_all(&[SUBMIT, Move::Grant, READY]));
    let session = actor.world.group.head().session.clone().unwrap();
    (actor, session)
}

fn rotation(actor: &mut Actor, lease: &Lease) -> Writes {
    let facts = vec![
        Write::SegmentEnded { segment: 1, end_reason: EndReason::Compaction },
        Write::SegmentStarted {
            segment: 2,
            parent: Some(1),
            session: SessionId("child".into()),
            provenance: None,
        },
        Write::LockReleased {
            key: SessionId(lease.key.as_str().into()),
            holder: lease.holder.to_string(),
            token: lease.token,
            fences: true,
        },
    ];
    let mut writes = actor.forge(Timestamp(9_000), facts);
    writes.standing.head.segment = 2;
    writes
}

fn segments(archive: &impl Archive) -> Vec<(u32, bool)> {
    let segments = archive.segments(1, 0, 10).unwrap();
    segments.iter().map(|segment| (segment.segment, segment.closed.is_none())).collect()
}

/// HL-11, I4: child, closed parent and released lease, or nothing of it.
pub fn what_is_published_without_its_lease_is_not_written<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let (mut actor, _) = grown(&mut store);
    let before = engine.archive().group(1).unwrap();
    let nothing_written = |archive: &E::Archive| {
        assert_eq!(segments(archive), [(1, true)]);
        assert_eq!(archive.group(1).unwrap(), before);
    };

    let mine = take(&mut store, "me", now(0));
    let yours = take(&mut store, "you", now(100));
    let answer = store.commit(&[rotation(&mut actor, &mine)]);
    assert!(matches!(answer, Err(StoreError::LeaseLost)), "{answer:?}");
    nothing_written(&engine.archive());
    assert_eq!(stored(&engine, "session").unwrap().lease, yours, "another's lock is not touched");

    let fenced = Writes { epoch: actor.epoch + 1, ..rotation(&mut actor, &yours) };
    let answer = store.commit(&[fenced]).unwrap().remove(0);
    assert!(matches!(answer, Err(StoreError::Fenced)), "{answer:?}");
    nothing_written(&engine.archive());
    assert_eq!(stored(&engine, "session").unwrap().lease, yours, "I14: nor by a fenced owner");

    let rotate = rotation(&mut actor, &yours);
    store.commit(std::slice::from_ref(&rotate)).unwrap().remove(0).unwrap();
    assert_eq!(segments(&engine.archive()), [(1, false), (2, true)]);
    assert_eq!(stored(&engine, "session"), None, "released in the same transaction");
    let mut again = rotate;
    again.standing.head.last_seq += again.writes.iter().map(Write::frames).sum::<u64>();
    let answer = store.commit(&[again]);
    assert!(answer.is_err(), "a lease publishes once: {answer:?}");
}

/// An earlier owner's leases go with it; those of others stay.
pub fn adopting_or_purging_a_group_frees_its_own_locks<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let mut actors = [Actor::new(1), Actor::new(2)];
    let created: Vec<Writes> = actors.iter_mut().map(|actor| actor.play(SUBMIT).unwrap()).collect();
    commit(&mut store, &created);
    let locks = [("one", Some(1)), ("two", Some(2)), ("outside", None)];
    let take_all = |store: &mut E::Store| {
        for (name, group) in locks {
            store.lock_acquire(&ask(name, "me", group), now(0), &doubt).unwrap();
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
    store.purge(2).unwrap();
    assert_eq!(left(), ["one", "outside"]);
    store.adopt(7, now(0).up).unwrap();
    assert_eq!(left(), ["one", "outside"], "a group that nobody made has no locks");
}

/// HL-12.
pub fn a_closed_segment_without_a_child_is_reopened<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let mut store = engine.store();
    let (mut actor, session) = grown(&mut store);
    let adopt = |store: &mut E::Store, ms| {
        store.adopt(1, now(ms).up).unwrap().unwrap();
        segments(&engine.archive())
    };
    assert_eq!(adopt(&mut store, 0), [(1, true)], "open as it was");

    let nobodys = take(&mut store, "nobody", now(0));
    let rotate = rotation(&mut actor, &nobodys);
    store.lock_release(&nobodys).unwrap();
    let closed = Writes { epoch: 2, ..actor.forge(rotate.at, rotate.writes[..1].to_vec()) };
    commit(&mut store, &[closed]);
    assert_eq!(segments(&engine.archive()), [(1, false)]);
    let held_outside = ask(&session.0, "outside", None);
    store.lock_acquire(&held_outside, now(0), &doubt).unwrap();
    assert_eq!(adopt(&mut store, 99), [(1, false)], "somebody may still open the next");
    assert_eq!(adopt(&mut store, 100), [(1, true)], "the lease has expired");

    let segment = engine.archive().segments(1, 0, 1).unwrap().remove(0);
    assert_eq!((segment.session, segment.closed), (session, None));
}
