//! The compaction lock: who may compact a session, and until when (SEEDS HL).
//!
//! One stored row is decided over at a time. Nothing here reads a clock or a process table: the
//! moment, and what can be seen of a holder's process, are arguments. That a lease is released by
//! its holder and token alone is one conditional delete, and the store's.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de};
use uuid::Uuid;

use crate::Timestamp;

#[cfg(test)]
mod tests;

/// The longest key, in bytes: session ids are chosen by agents.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest holder, in bytes.
pub const HOLDER_BYTES_MAX: usize = 512;
/// The longest time to live. Whoever needs longer refreshes.
pub const TTL_MS_MAX: u64 = 3_600_000;

/// From this time to live on the bounds of SEEDS HL-6 apply to the interval of refreshing.
const TTL_MS_USUAL: u64 = 2_000;
const REFRESH_MS_MIN: u64 = 1_000;
const REFRESH_MS_MAX: u64 = 60_000;

/// A part of a lease that breaks its rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLease {
    /// The key is empty or too long (SEEDS HL-3).
    #[error("a lock's key is 1 to {KEY_BYTES_MAX} bytes")]
    Key,
    /// The holder is empty or too long.
    #[error("a lock's holder is 1 to {HOLDER_BYTES_MAX} bytes")]
    Holder,
    /// The time to live is nothing, or too long.
    #[error("a lock's time to live is 1 to {TTL_MS_MAX} ms")]
    Ttl,
}

macro_rules! bounded_text {
    ($(#[$doc:meta])* $name:ident, $bytes_max:ident, $invalid:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// It as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidLease;

            fn from_str(text: &str) -> Result<Self, InvalidLease> {
                let fits = (1..=$bytes_max).contains(&text.len());
                if fits { Ok(Self(text.into())) } else { Err(InvalidLease::$invalid) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

bounded_text!(
    /// What is locked: the id of the session that is compacted, the parent (SEEDS HL-3).
    LockKey,
    KEY_BYTES_MAX,
    Key
);
bounded_text!(
    /// Who holds a lock. Programs outside choose theirs; greenroom's own are made by
    /// [`Holder::of`].
    Holder,
    HOLDER_BYTES_MAX,
    Holder
);

/// How long a lease lasts unless it is refreshed: 1 to [`TTL_MS_MAX`] milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl(u64);

impl Ttl {
    /// A time to live of so many milliseconds.
    ///
    /// # Errors
    ///
    /// [`InvalidLease::Ttl`] if it is none, or longer than [`TTL_MS_MAX`].
    pub fn from_ms(ms: u64) -> Result<Self, InvalidLease> {
        if (1..=TTL_MS_MAX).contains(&ms) { Ok(Self(ms)) } else { Err(InvalidLease::Ttl) }
    }

    /// In milliseconds.
    pub fn ms(self) -> u64 {
        self.0
    }

    /// How often to refresh: at half time, every 1 to 60 s; below 2 s simply at half time
    /// (SEEDS HL-6).
    pub fn refresh_ms(self) -> u64 {
        let half = (self.0 / 2).max(1);
        if self.0 < TTL_MS_USUAL { half } else { half.clamp(REFRESH_MS_MIN, REFRESH_MS_MAX) }
    }

    /// After how many failures in a row refreshing is given up: nobody could then still rely on
    /// the lease (SEEDS HL-6).
    pub fn failures_max(self) -> u64 {
        (self.0 / self.refresh_ms()).max(1)
    }
}

impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_ms(u64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// One boot of one machine, by the kernel's own name for it; nil where that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootId(pub Uuid);

/// A moment that no jump of the wall clock moves, the same for all processes of the machine
/// (RELIABILITY F27).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uptime {
    /// The boot that is counted from. Moments of two boots cannot be compared.
    pub boot: BootId,
    /// Milliseconds since, suspension included (`CLOCK_BOOTTIME`).
    pub ms: u64,
}

/// A moment on both clocks: leases are measured by one and shown by the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// The wall clock.
    pub wall: Timestamp,
    /// The clock of leases.
    pub up: Uptime,
}

/// The right to compact one session, as long as nobody else has taken it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What is locked.
    pub key: LockKey,
    /// Who holds it.
    pub holder: Holder,
    /// The fencing token: greater with every acquisition, never used again.
    pub token: u64,
}

/// A lock as it is stored. One that has expired stays until somebody takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Whose it is.
    pub lease: Lease,
    /// How long it was asked for; every refresh gives as much again.
    pub ttl: Ttl,
    /// When it was acquired, to show.
    pub acquired_at: Timestamp,
    /// From when on anybody may take it.
    pub expires: Uptime,
}

/// Another holds the lock.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lock is held by {holder}")]
pub struct Held {
    /// Who.
    pub holder: Holder,
    /// Until when, by the wall clock, unless they refresh it.
    pub expires_at: Timestamp,
}

/// What an acquisition comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquisition {
    /// Whatever is stored gives way to a lease with a token of its own.
    Take,
    /// The asker holds it already: this is what to store in place of the row.
    Extend(Lock),
}

/// Why a lease cannot be refreshed: it is its holder's no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Another holds the lock, or the same holder by a later token.
    Held(Held),
    /// Nobody does.
    Free,
}

impl Ttl {
    /// When a lease of this length that begins, or is refreshed, now expires.
    pub fn end(self, now: Uptime) -> Uptime {
        Uptime { ms: now.ms.saturating_add(self.0), ..now }
    }
}

impl Lock {
    /// Whether nobody but its holder may have it. What claims to last longer than any lease can
    /// was written in another boot that looks like this one.
    pub fn is_live(&self, now: Uptime) -> bool {
        let left = self.expires.ms.saturating_sub(now.ms);
        self.expires.boot == now.boot && (1..=TTL_MS_MAX).contains(&left)
    }

    /// When it expires, by the wall clock as it stands.
    pub fn expires_at(&self, now: Now) -> Timestamp {
        let left = self.expires.ms as i64 - now.up.ms as i64;
        Timestamp(now.wall.0 + left)
    }

    /// Never shortened: a refresh that comes late takes nothing away.
    fn extended(&self, ttl: Ttl, now: Uptime) -> Self {
        let mut expires = ttl.end(now);
        if self.is_live(now) {
            expires.ms = expires.ms.max(self.expires.ms);
        }
        Self { ttl, expires, ..self.clone() }
    }

    /// What anybody else is told of it.
    pub fn held(&self, now: Now) -> Held {
        Held { holder: self.lease.holder.clone(), expires_at: self.expires_at(now) }
    }
}

/// Decides whether `holder` may have the lock whose stored row is `row`.
///
/// Anybody takes a lock that is free, expired or from another boot, and one whose holder `is_dead`
/// by proof (SEEDS HL-5); the living holder keeps its token and is given `ttl` from now on.
///
/// # Errors
///
/// [`Held`] if another holds it; the row is as it was.
pub fn acquire(
    row: Option<&Lock>,
    holder: &Holder,
    ttl: Ttl,
    now: Now,
    is_dead: impl FnOnce(&Holder) -> bool,
) -> Result<Acquisition, Held> {
    match row.filter(|lock| lock.is_live(now.up)) {
        None => Ok(Acquisition::Take),
        Some(lock) if lock.lease.holder == *holder => {
            Ok(Acquisition::Extend(lock.extended(ttl, now.up)))
        }
        Some(lock) if is_dead(&lock.lease.holder) => Ok(Acquisition::Take),
        Some(lock) => Err(lock.held(now)),
    }
}

/// Decides whether `lease` may go on, and gives the row to store: also past its expiry, as long as
/// nobody has taken the lock over (SEEDS HL-4).
///
/// # Errors
///
/// [`Lost`] if the stored lock is another lease's, or there is none; nothing brings it back.
pub fn refresh(row: Option<&Lock>, lease: &Lease, now: Now) -> Result<Lock, Lost> {
    match row {
        Some(lock) if lock.lease == *lease => Ok(lock.extended(lock.ttl, now.up)),
        Some(lock) if lock.is_live(now.up) => Err(Lost::Held(lock.held(now))),
        Some(_) | None => Err(Lost::Free),
    }
}

/// A process, told from every other one that had or will have its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number within its PID namespace.
    pub pid: u32,
    /// When it started, in the kernel's clock ticks since the boot.
    pub start: u64,
    /// The PID namespace, by its inode.
    pub pid_ns: u64,
    /// The boot.
    pub boot: BootId,
}

/// What can be seen of the process that has a number now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Nobody has the number.
    Gone,
    /// Whoever has it started then.
    Started(u64),
    /// It cannot be told.
    Unknown,
}

/// What greenroom's own holders begin with.
const OWN: &str = "greenroom:";

impl Holder {
    /// A holder that carries what can prove its death. `nonce` makes it unique (SEEDS HL-5).
    pub fn of(process: &Process, nonce: Uuid) -> Self {
        let Process { pid, start, pid_ns, boot } = process;
        let text = format!(
            "{OWN}pid={pid}:start={start}:ns={pid_ns}:boot={}:nonce={}",
            boot.0,
            nonce.simple()
        );
        Self(text.into())
    }

    /// A holder of greenroom's whose death nothing proves: its lock is free when it expires.
    pub fn unprovable(nonce: Uuid) -> Self {
        Self(format!("{OWN}nonce={}", nonce.simple()).into())
    }

    /// The process that it names, if it is exactly what [`Holder::of`] makes.
    pub fn process(&self) -> Option<Process> {
        let mut fields = self.0.strip_prefix(OWN)?.split(':');
        let mut field = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=');
        let process = Process {
            pid: field("pid")?.parse().ok()?,
            start: field("start")?.parse().ok()?,
            pid_ns: field("ns")?.parse().ok()?,
            boot: BootId(Uuid::try_parse(field("boot")?).ok()?),
        };
        let nonce = Uuid::try_parse(field("nonce")?).ok()?;
        (process.pid != 0 && Self::of(&process, nonce) == *self).then_some(process)
    }
}

/// Whether the holder's process is gone beyond doubt (SEEDS HL-5): never if it cannot be read out
/// of the name, has the number of `own`, or was counted elsewhere: in another PID namespace, boot
/// or machine.
pub fn is_provably_dead(holder: &Holder, own: &Process, look: impl FnOnce(u32) -> Sight) -> bool {
    let comparable = |process: &Process| {
        process.pid != own.pid && process.pid_ns == own.pid_ns && process.boot == own.boot
    };
    let Some(process) = holder.process().filter(comparable) else { return false };
    match look(process.pid) {
        Sight::Gone => true,
        Sight::Started(start) => start != process.start,
        Sight::Unknown => false,
    }
}
