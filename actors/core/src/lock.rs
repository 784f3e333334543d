//! The compaction lock: who may compact a session, and until when (HL rules).
//!
//! Each function decides about one stored row. Nothing here reads a clock or a process table: the
//! moment and the state of a holder's process are arguments. The store releases a lease itself, by
//! one conditional delete on holder and token.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de};
use uuid::Uuid;

use crate::{BootId, Now, Timestamp, Uptime};

#[cfg(test)]
mod tests;

/// The longest key, in bytes: session ids are chosen by agents.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest holder, in bytes.
pub const HOLDER_BYTES_MAX: usize = 512;
/// The longest time to live. A holder that needs longer refreshes.
pub const TTL_MS_MAX: u64 = 3_600_000;

/// The bounds of HL-6 for the refresh interval apply from this time to live on.
const TTL_MS_USUAL: u64 = 2_000;
const REFRESH_MS_MIN: u64 = 1_000;
const REFRESH_MS_MAX: u64 = 60_000;

/// Which part of a lease is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLease {
    /// The key is empty or too long (HL-3).
    #[error("a lock's key is 1 to {KEY_BYTES_MAX} bytes")]
    Key,
    /// The holder is empty or too long.
    #[error("a lock's holder is 1 to {HOLDER_BYTES_MAX} bytes")]
    Holder,
    /// The time to live is zero or too long.
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
            /// Returns it as text.
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
    /// What is locked: the id of the session that is compacted (HL-3).
    LockKey,
    KEY_BYTES_MAX,
    Key
);
bounded_text!(
    /// Who holds a lock. Outside programs choose their own; [`Holder::of`] makes greenroom's.
    Holder,
    HOLDER_BYTES_MAX,
    Holder
);

/// How long a lease lasts unless it is refreshed: 1 to [`TTL_MS_MAX`] milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl(u64);

impl Ttl {
    /// A time to live of `ms` milliseconds.
    ///
    /// # Errors
    ///
    /// [`InvalidLease::Ttl`] if it is 0, or longer than [`TTL_MS_MAX`].
    pub fn from_ms(ms: u64) -> Result<Self, InvalidLease> {
        if (1..=TTL_MS_MAX).contains(&ms) { Ok(Self(ms)) } else { Err(InvalidLease::Ttl) }
    }

    /// Returns it in milliseconds.
    pub fn ms(self) -> u64 {
        self.0
    }

    /// Returns the refresh interval: half of it, bounded to 1 to 60 s; below 2 s without bounds
    /// (HL-6).
    pub fn refresh_ms(self) -> u64 {
        let half = (self.0 / 2).max(1);
        if self.0 < TTL_MS_USUAL { half } else { half.clamp(REFRESH_MS_MIN, REFRESH_MS_MAX) }
    }

    /// Returns after how many failures in a row the holder stops refreshing: about the time to live
    /// (HL-6).
    pub fn failures_max(self) -> u64 {
        (self.0 / self.refresh_ms()).max(1)
    }
}

impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_ms(u64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// The right to compact one session, until another holder takes the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What is locked.
    pub key: LockKey,
    /// Who holds it.
    pub holder: Holder,
    /// The fencing token: it grows with each acquisition and is never reused.
    pub token: u64,
}

/// A stored lock. An expired one stays until another holder takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The lease that holds it.
    pub lease: Lease,
    /// Its time to live, which each refresh restores.
    pub ttl: Ttl,
    /// When it was acquired, for display.
    pub acquired_at: Timestamp,
    /// When it expires: from then on any holder may take it.
    pub expires: Uptime,
}

/// Another holder has the lock.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lock is held by {holder}")]
pub struct LockConflict {
    /// The other holder.
    pub holder: Holder,
    /// When it expires unless it is refreshed, by the wall clock.
    pub expires_at: Timestamp,
}

/// The result of a successful acquisition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquisition {
    /// Replace the stored row, if any, by a lease with a new token.
    Take,
    /// The holder already has the lock: replace the row by this one.
    Extend(Lock),
}

/// Why a lease cannot be refreshed: its holder has lost it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefreshError {
    /// Another holder has the lock, or the same holder under a later token.
    Conflict(LockConflict),
    /// The lock is free.
    Free,
}

impl Ttl {
    /// Returns when a lease of this length expires that begins or is refreshed now.
    pub fn end(self, now: Uptime) -> Uptime {
        Uptime { ms: now.ms.saturating_add(self.0), ..now }
    }
}

impl Lock {
    /// Whether only its holder may have it. A row that lasts longer than any lease can was written
    /// in another boot with the same id.
    pub fn is_live(&self, now: Uptime) -> bool {
        let left = self.expires.ms.saturating_sub(now.ms);
        self.expires.boot == now.boot && (1..=TTL_MS_MAX).contains(&left)
    }

    /// Returns when it expires, by the present wall clock.
    pub fn expires_at(&self, now: Now) -> Timestamp {
        let left = self.expires.ms as i64 - now.up.ms as i64;
        Timestamp(now.wall.0 + left)
    }

    /// Returns it with a new expiry, which is never earlier than the old one.
    fn extended(&self, ttl: Ttl, now: Uptime) -> Self {
        let mut expires = ttl.end(now);
        if self.is_live(now) {
            expires.ms = expires.ms.max(self.expires.ms);
        }
        Self { ttl, expires, ..self.clone() }
    }

    /// Returns the error for another holder.
    pub fn conflict(&self, now: Now) -> LockConflict {
        LockConflict { holder: self.lease.holder.clone(), expires_at: self.expires_at(now) }
    }
}

/// Decides whether `holder` acquires the lock whose stored row is `row`.
///
/// Any holder acquires a lock that is free, expired or from another boot, or whose holder `is_dead`
/// by proof (HL-5). The present holder keeps its token and gets `ttl` from now on.
///
/// # Errors
///
/// [`LockConflict`] if another holder has it; the row is unchanged.
pub fn acquire(
    row: Option<&Lock>,
    holder: &Holder,
    ttl: Ttl,
    now: Now,
    is_dead: impl FnOnce(&Holder) -> bool,
) -> Result<Acquisition, LockConflict> {
    match row.filter(|lock| lock.is_live(now.up)) {
        None => Ok(Acquisition::Take),
        Some(lock) if lock.lease.holder == *holder => {
            Ok(Acquisition::Extend(lock.extended(ttl, now.up)))
        }
        Some(lock) if is_dead(&lock.lease.holder) => Ok(Acquisition::Take),
        Some(lock) => Err(lock.conflict(now)),
    }
}

/// Decides whether `lease` is refreshed, and returns the row to store. It may be refreshed after
/// its expiry, as long as no other holder has taken the lock (HL-4).
///
/// # Errors
///
/// [`RefreshError`] if the stored lock is another lease's, or if there is none: the lease is lost.
pub fn refresh(row: Option<&Lock>, lease: &Lease, now: Now) -> Result<Lock, RefreshError> {
    match row {
        Some(lock) if lock.lease == *lease => Ok(lock.extended(lock.ttl, now.up)),
        Some(lock) if lock.is_live(now.up) => Err(RefreshError::Conflict(lock.conflict(now))),
        Some(_) | None => Err(RefreshError::Free),
    }
}

/// A process, distinct from all others that ever have its number.
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

/// What is known of the process that has a number now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PidState {
    /// No process has the number.
    Gone,
    /// The process that has it started at this tick.
    Started(u64),
    /// It cannot be read.
    Unknown,
}

/// The prefix of greenroom's own holders.
const HOLDER_PREFIX: &str = "greenroom:";

impl Holder {
    /// A holder that names its process, so that its death can be proved. `nonce` makes it unique
    /// (HL-5).
    pub fn of(process: &Process, nonce: Uuid) -> Self {
        let Process { pid, start, pid_ns, boot } = process;
        let text = format!(
            "{HOLDER_PREFIX}pid={pid}:start={start}:ns={pid_ns}:boot={}:nonce={}",
            boot.0,
            nonce.simple()
        );
        Self(text.into())
    }

    /// A holder without its process: its death cannot be proved, so its lock has to expire.
    pub fn unprovable(nonce: Uuid) -> Self {
        Self(format!("{HOLDER_PREFIX}nonce={}", nonce.simple()).into())
    }

    /// Whether only greenroom, as `this` process, may have the name. Another program may have one
    /// that names its own process, so that its death can be proved.
    pub fn is_reserved(&self, this: Option<&Process>) -> bool {
        let is_of_another = || self.process().is_some_and(|process| Some(&process) != this);
        self.0.starts_with(HOLDER_PREFIX) && !is_of_another()
    }

    /// Returns the process that it names, if it is exactly what [`Holder::of`] makes.
    pub fn process(&self) -> Option<Process> {
        let mut fields = self.0.strip_prefix(HOLDER_PREFIX)?.split(':');
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

/// Whether the holder's process is provably dead (HL-5). It is not if the holder names no process,
/// if the process has the number of `this` process, or if it is of another PID namespace, boot or
/// machine.
pub fn is_provably_dead(
    holder: &Holder,
    this: &Process,
    inspect: impl FnOnce(u32) -> PidState,
) -> bool {
    let is_comparable = |process: &Process| {
        process.pid != this.pid && process.pid_ns == this.pid_ns && process.boot == this.boot
    };
    let Some(process) = holder.process().filter(is_comparable) else { return false };
    match inspect(process.pid) {
        PidState::Gone => true,
        PidState::Started(start) => start != process.start,
        PidState::Unknown => false,
    }
}
