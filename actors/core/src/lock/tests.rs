//! Tests of the lock's rules, on both sides of each boundary.

use super::*;

const BOOT: BootId = BootId(Uuid::from_u128(1));
const OTHER_BOOT: BootId = BootId(Uuid::from_u128(2));
/// The wall clock's time at uptime 0.
const WALL: i64 = 1_000_000;

fn now(ms: u64) -> Now {
    Now { wall: Timestamp(WALL + ms as i64), up: Uptime { boot: BOOT, ms } }
}

fn holder(name: &str) -> Holder {
    name.parse().expect("a holder")
}

fn ttl(ms: u64) -> Ttl {
    Ttl::from_ms(ms).expect("a time to live")
}

fn lease(name: &str, token: u64) -> Lease {
    Lease { key: "session".parse().expect("a key"), holder: holder(name), token }
}

fn lock(name: &str, boot: BootId, expires_ms: u64) -> Lock {
    let expires = Uptime { boot, ms: expires_ms };
    Lock { lease: lease(name, 7), ttl: ttl(100), acquired_at: Timestamp(5), expires }
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Take,
    /// With the same token, until then.
    Extend(u64),
    /// The other holder.
    LockConflict(&'static str),
}

/// HL-3, HL-5, F27: who acquires a lock.
#[test]
fn a_holder_acquires_a_lock_only_if_it_is_free() {
    use Outcome::{Extend, LockConflict, Take};
    let mine = |expires| Some(lock("me", BOOT, expires));
    let yours = |expires| Some(lock("you", BOOT, expires));
    let dead = |expires| Some(lock("dead", BOOT, expires));
    let elsewhen = |name| Some(lock(name, OTHER_BOOT, 1_100));
    let far = 1_000 + TTL_MS_MAX;
    #[rustfmt::skip]
    let cases = [
        ("free",                          None,              50, Take),
        ("yours, still held",             yours(1_001),      50, LockConflict("you")),
        ("yours, just expired",           yours(1_000),      50, Take),
        ("yours, long expired",           yours(0),          50, Take),
        ("yours, of another boot",        elsewhen("you"),   50, Take),
        ("yours, as long as can be",      yours(far),        50, LockConflict("you")),
        ("yours, longer than can be",     yours(far + 1),    50, Take),
        ("mine, still held",              mine(1_001),       50, Extend(1_050)),
        ("mine, held for longer already", mine(1_051),       50, Extend(1_051)),
        ("mine, just expired",            mine(1_000),       50, Take),
        ("mine, of another boot",         elsewhen("me"),    50, Take),
        ("a dead one's, still held",      dead(1_001),       50, Take),
        ("a dead one's, expired",         dead(1_000),       50, Take),
    ];
    for (name, row, ttl_ms, expected) in cases {
        let is_dead = |holder: &Holder| holder.as_str() == "dead";
        let outcome = acquire(row.as_ref(), &holder("me"), ttl(ttl_ms), now(1_000), is_dead);
        let outcome = match outcome {
            Ok(Acquisition::Take) => Take,
            Ok(Acquisition::Extend(lock)) => {
                assert_eq!((lock.lease.token, lock.ttl, lock.expires.boot), (7, ttl(50), BOOT));
                Extend(lock.expires.ms)
            }
            Err(conflict) => {
                let left = row.expect("a row").expires.ms - 1_000;
                assert_eq!(conflict.expires_at, Timestamp(WALL + 1_000 + left as i64), "{name}");
                assert_eq!(conflict.holder, holder("you"), "{name}");
                LockConflict("you")
            }
        };
        assert_eq!(outcome, expected, "{name}");
    }
}

/// HL-5: only the holder of a live lock is checked for death.
#[test]
fn only_the_other_holder_of_a_live_lock_is_inspected() {
    for row in [None, Some(lock("me", BOOT, 1_001)), Some(lock("you", BOOT, 1_000))] {
        let is_dead = |holder: &Holder| panic!("checked {holder}");
        let outcome = acquire(row.as_ref(), &holder("me"), ttl(1), now(1_000), is_dead);
        assert!(outcome.is_ok(), "{row:?}");
    }
}

/// HL-4.
#[test]
fn a_lease_is_refreshed_by_its_holder_and_token_until_the_lock_is_taken() {
    let row = |name, expires| Some(lock(name, BOOT, expires));
    let held = |left| {
        Err(RefreshError::Conflict(LockConflict { holder: holder("you"), expires_at: wall(left) }))
    };
    fn wall(left: i64) -> Timestamp {
        Timestamp(WALL + 1_000 + left)
    }
    #[rustfmt::skip]
    let cases = [
        ("mine, still held",            row("me", 1_001),                    lease("me", 7), Ok(1_100)),
        ("mine, expired, not taken",    row("me", 10),                       lease("me", 7), Ok(1_100)),
        ("mine, of another boot",       Some(lock("me", OTHER_BOOT, 9_000)), lease("me", 7), Ok(1_100)),
        ("mine, held for longer",       row("me", 1_101),                    lease("me", 7), Ok(1_101)),
        ("mine, by an earlier token",   row("me", 1_001),                    lease("me", 6), Err(RefreshError::Conflict(LockConflict { holder: holder("me"), expires_at: wall(1) }))),
        ("mine, by a later token",      row("me", 1_000),                    lease("me", 8), Err(RefreshError::Free)),
        ("yours, by my token",          row("you", 1_001),                   lease("me", 7), held(1)),
        ("yours, expired",              row("you", 1_000),                   lease("me", 7), Err(RefreshError::Free)),
        ("free",                        None,                                lease("me", 7), Err(RefreshError::Free)),
    ];
    for (name, row, lease, expected) in cases {
        let refreshed = refresh(row.as_ref(), &lease, now(1_000));
        if let Ok(lock) = &refreshed {
            assert_eq!((&lock.lease, lock.ttl), (&lease, ttl(100)), "{name}");
            assert_eq!(lock.expires.boot, BOOT, "{name}");
            assert_eq!(lock.acquired_at, Timestamp(5), "{name}");
        }
        assert_eq!(refreshed.map(|lock| lock.expires.ms), expected, "{name}");
    }
}

/// F27: the wall clock changes only the displayed expiry.
#[test]
fn a_jump_of_the_wall_clock_changes_no_lease() {
    let row = lock("you", BOOT, 1_100);
    for jump in [-3_600_000, 0, 3_600_000] {
        let now = Now { wall: Timestamp(WALL + jump), ..now(1_000) };
        let held = acquire(Some(&row), &holder("me"), ttl(1), now, |_| false);
        let expires_at = Timestamp(WALL + jump + 100);
        assert_eq!(held, Err(LockConflict { holder: holder("you"), expires_at }));
    }
}

/// HL-3, API-2: what a lease may be made of.
#[test]
fn keys_holders_and_times_have_bounds() {
    let text = |bytes| "x".repeat(bytes);
    #[rustfmt::skip]
    let cases = [
        ("no key",             text(0).parse::<LockKey>().err(),                    Some(InvalidLease::Key)),
        ("shortest key",       text(1).parse::<LockKey>().err(),                    None),
        ("longest key",        text(KEY_BYTES_MAX).parse::<LockKey>().err(),        None),
        ("too long a key",     text(KEY_BYTES_MAX + 1).parse::<LockKey>().err(),    Some(InvalidLease::Key)),
        ("no holder",          text(0).parse::<Holder>().err(),                     Some(InvalidLease::Holder)),
        ("shortest holder",    text(1).parse::<Holder>().err(),                     None),
        ("longest holder",     text(HOLDER_BYTES_MAX).parse::<Holder>().err(),      None),
        ("too long a holder",  text(HOLDER_BYTES_MAX + 1).parse::<Holder>().err(),  Some(InvalidLease::Holder)),
        ("no time",            Ttl::from_ms(0).err(),                               Some(InvalidLease::Ttl)),
        ("shortest time",      Ttl::from_ms(1).err(),                               None),
        ("longest time",       Ttl::from_ms(TTL_MS_MAX).err(),                      None),
        ("too long a time",    Ttl::from_ms(TTL_MS_MAX + 1).err(),                  Some(InvalidLease::Ttl)),
    ];
    for (name, found, expected) in cases {
        assert_eq!(found, expected, "{name}");
    }
}

/// HL-6.
#[test]
fn leases_are_refreshed_at_half_time_within_bounds() {
    #[rustfmt::skip]
    let cases = [
        // ttl, every, failures
        (1,          1,      1),
        (2,          1,      2),
        (1_000,      500,    2),
        (1_999,      999,    2),
        (2_000,      1_000,  2),
        (2_001,      1_000,  2),
        (119_999,    59_999, 2),
        (120_000,    60_000, 2),
        (300_000,    60_000, 5),
        (TTL_MS_MAX, 60_000, 60),
    ];
    for (ms, every_ms, failures) in cases {
        let ttl = ttl(ms);
        assert_eq!((ttl.refresh_ms(), ttl.failures_max()), (every_ms, failures), "{ms} ms");
        assert_eq!(ttl.ms(), ms);
    }
}

const OWN_PROCESS: Process = Process { pid: 10, start: 500, pid_ns: 4_026_531_836, boot: BOOT };

/// HL-5: a holder names its process, in exactly one form.
#[test]
fn a_process_is_read_only_from_an_exact_holder() {
    let nonce = Uuid::from_u128(99);
    let holder_of_process = Holder::of(&OWN_PROCESS, nonce);
    let text = holder_of_process.as_str();
    assert_eq!(holder_of_process.process(), Some(OWN_PROCESS), "{text}");
    assert_ne!(
        holder_of_process,
        Holder::of(&OWN_PROCESS, Uuid::from_u128(98)),
        "unique by its nonce"
    );
    assert!(text.len() <= HOLDER_BYTES_MAX);
    assert_eq!(Holder::unprovable(nonce).process(), None);
    let (head, _) = text.rsplit_once(":nonce=").expect("a nonce");
    for bad in [
        text.replace("greenroom:", "another:"),
        text.replace("pid=10", "pid=0"),
        text.replace("pid=10", "pid=+10"),
        text.replace("pid=10", "pid=010"),
        text.replace("pid=10", "pid=-10"),
        text.replace("pid=10", "pid=99999999999"),
        text.replace("pid=10", "pid="),
        text.replace("pid=10:", ""),
        text.replace("pid=10", "pid=10:tid=3"),
        text.replace("start=500", "start=x"),
        text.replace("boot=", "boot=x"),
        head.to_owned(),
        format!("{head}:nonce="),
        format!("{text}:"),
        format!("{text}0"),
        format!(" {text}"),
        "someone".to_owned(),
    ] {
        assert_eq!(holder(&bad).process(), None, "{bad}");
    }
}

/// HL-4, HL-5: another program may have a name that names its own process, and none of greenroom's.
#[test]
fn greenrooms_names_are_reserved() {
    let of = |process: Process| Holder::of(&process, Uuid::nil());
    let other = Process { pid: 11, ..OWN_PROCESS };
    let cases = [
        ("this process's", of(OWN_PROCESS), true),
        ("without a process", Holder::unprovable(Uuid::nil()), true),
        ("the prefix alone", holder("greenroom:"), true),
        ("another process's", of(other), false),
        ("of an earlier one with this number", of(Process { start: 1, ..OWN_PROCESS }), false),
        ("of no greenroom", holder("greenroom-nightly"), false),
    ];
    for (name, holder, reserved) in cases {
        assert_eq!(holder.is_reserved(Some(&OWN_PROCESS)), reserved, "{name}");
    }
    assert!(!of(OWN_PROCESS).is_reserved(None), "this process is unknown");
}

/// HL-5: in doubt a holder lives.
#[test]
fn a_holder_is_dead_only_by_proof() {
    use PidState::{Gone, Started, Unknown};
    let other = Process { pid: 11, ..OWN_PROCESS };
    let of = |process: Process| Holder::of(&process, Uuid::nil());
    #[rustfmt::skip]
    let cases = [
        ("gone",                            of(other),                                            Gone,         true),
        ("another one has its number",      of(other),                                            Started(501), true),
        ("alive",                           of(other),                                            Started(500), false),
        ("cannot be read",                  of(other),                                            Unknown,      false),
        ("own pid",                         of(OWN_PROCESS),                                      Gone,         false),
        ("own pid, started earlier",        of(Process { start: 1, ..OWN_PROCESS }),              Started(500), false),
        ("in another namespace",            of(Process { pid_ns: 1, ..other }),                   Gone,         false),
        ("in another boot, or machine",     of(Process { boot: OTHER_BOOT, ..other }),            Gone,         false),
        ("unparsable",                      holder("greenroom:pid=11"),                           Gone,         false),
        ("another program's",               holder("another:11:x"),                                Gone,         false),
        ("greenroom's, without proof",      Holder::unprovable(Uuid::nil()),                      Gone,         false),
    ];
    for (name, holder, state, dead) in cases {
        let inspect = |pid| {
            assert_eq!(pid, 11, "{name}");
            state
        };
        assert_eq!(is_provably_dead(&holder, &OWN_PROCESS, inspect), dead, "{name}");
    }
}
