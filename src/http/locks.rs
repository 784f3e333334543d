//! Locks: the compaction lock, for outside programs that compact the same sessions (HL-15).
//!
//! A holder can refresh and release its lock while the server drains: what it began under the lock
//! may end under it. The token is the proof of the holder, and only answers to the holder have it.
//! greenroom's own locks cannot be changed here, whatever the proof (HL-4).

use actix_web::{HttpRequest, HttpResponse, web::Data};
use greenroom_actors::{
    clock,
    storage::{LockError, LockGrant, LockRequest, holder},
};
use greenroom_core::{
    Now,
    lock::{Holder, InvalidLease, Lease, Lock, LockKey, Ttl},
};
use serde::{Deserialize, Serialize};

use super::{
    body::Body,
    error::ApiError,
    query::{NoParameters, Query},
    state::AppState,
    view::Time,
};

/// The body of a request that acquires a lock.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcquireRequest {
    holder: Holder,
    ttl_ms: Ttl,
}

/// The proof that a caller holds a lock.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    holder: Holder,
    token: u64,
}

/// A lock.
#[derive(Serialize)]
struct LockView<'a> {
    key: &'a LockKey,
    holder: &'a Holder,
    /// For its holder only.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<u64>,
    acquired_at: Time,
    expires_at: Time,
}

impl<'a> LockView<'a> {
    /// Shows a lock to any caller.
    fn new(lock: &'a Lock, now: Now) -> Self {
        let Lease { key, holder, .. } = &lock.lease;
        let (acquired_at, expires_at) = (Time(lock.acquired_at), Time(lock.expires_at(now)));
        Self { key, holder, token: None, acquired_at, expires_at }
    }

    /// Shows a lock to its holder.
    fn for_holder(lock: &'a Lock, now: Now) -> Self {
        Self { token: Some(lock.lease.token), ..Self::new(lock, now) }
    }
}

/// Returns a lock and its holder, without the token; 404 if the lock is free.
pub async fn get(
    state: Data<AppState>,
    request: HttpRequest,
    _: Query<NoParameters>,
) -> Result<HttpResponse, ApiError> {
    let key = key(&request).map_err(|_| ApiError::NoSuchLock)?;
    let found = state.shared.db.lock_get(key).await?;
    let lock = found.ok_or(ApiError::NoSuchLock)?;
    Ok(HttpResponse::Ok().json(LockView::new(&lock, clock::moment())))
}

/// Counts the locks. Between two counts, those that were acquired are added.
pub async fn count(state: &AppState) {
    let now = clock::moment().up;
    // Without a table of locks there are none, and a failing database is reported elsewhere.
    let count = state.read(move |store| Ok(store.lock_count(now).ok())).await;
    if let Ok(Some(count)) = count {
        state.shared.quotas.locks.set(count);
    }
}

/// Checks that there is room for the lock `key`, or that it exists: then it may be extended.
async fn check_room(state: &AppState, key: &LockKey) -> Result<(), ApiError> {
    let locks = &state.shared.quotas.locks;
    if locks.check(1).is_ok() || state.shared.db.lock_get(key.clone()).await?.is_some() {
        return Ok(());
    }
    // Some may have been released or have expired.
    count(state).await;
    Ok(locks.check(1)?)
}

/// Acquires a lock: 201; or 200 with the same token if the caller already holds it.
pub async fn put(
    state: Data<AppState>,
    request: HttpRequest,
    _: Query<NoParameters>,
    body: Body<AcquireRequest>,
) -> Result<HttpResponse, ApiError> {
    state.check_accepts_work()?;
    let AcquireRequest { holder, ttl_ms } = body.value;
    let key = key(&request)?;
    if holder::is_reserved(&holder) {
        return Err(held(&state, key).await?.unwrap_or_else(reserved));
    }
    let ask = LockRequest { key, holder, ttl: ttl_ms, group: None };
    check_room(&state, &ask.key).await?;
    let LockGrant { lock, fresh } = state.answer_to(state.shared.db.lock_acquire(ask)).await??;
    if fresh {
        let locks = &state.shared.quotas.locks;
        locks.set(locks.used() + 1);
    }
    let mut response = if fresh { HttpResponse::Created() } else { HttpResponse::Ok() };
    Ok(response.json(LockView::for_holder(&lock, clock::moment())))
}

/// Extends a lease by its `ttl_ms`.
pub async fn refresh(
    state: Data<AppState>,
    request: HttpRequest,
    _: Query<NoParameters>,
    body: Body<LeaseRequest>,
) -> Result<HttpResponse, ApiError> {
    let LeaseRequest { holder, token } = body.value;
    let key = key(&request)?;
    if holder::is_reserved(&holder) {
        let lost = || LockError::Lost.into();
        return Err(held(&state, key).await?.unwrap_or_else(lost));
    }
    state.check_can_write()?;
    let lease = Lease { key, holder, token };
    let lock = state.answer_to(state.shared.db.lock_refresh(lease)).await??;
    Ok(HttpResponse::Ok().json(LockView::for_holder(&lock, clock::moment())))
}

/// Returns the error for a caller that does not hold the lock, if it is held.
async fn held(state: &AppState, key: LockKey) -> Result<Option<ApiError>, ApiError> {
    let found = state.shared.db.lock_get(key).await?;
    Ok(found.map(|lock| LockError::from(lock.conflict(clock::moment())).into()))
}

/// The error for a name that is kept for greenroom's own locks.
fn reserved() -> ApiError {
    let detail =
        "holder: a name that begins with `greenroom:` must name the caller's own process".into();
    ApiError::InvalidBody { field: Some("holder".into()), detail }
}

/// Releases a lock. A caller that does not hold it changes nothing, and gets the same response.
pub async fn delete(
    state: Data<AppState>,
    request: HttpRequest,
    Query(LeaseRequest { holder, token }): Query<LeaseRequest>,
) -> Result<HttpResponse, ApiError> {
    if let Ok(key) = key(&request)
        && !holder::is_reserved(&holder)
    {
        let lease = Lease { key, holder, token };
        state.check_can_write()?;
        match state.answer_to(state.shared.db.lock_release(lease)).await? {
            // Without a lock table no lock is held.
            Ok(_) | Err(LockError::Absent) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(HttpResponse::NoContent().finish())
}

/// Returns the key as the caller sent it. The router decodes a path leniently, so that two paths
/// may become one; two keys must not.
fn key(request: &HttpRequest) -> Result<LockKey, ApiError> {
    let encoded = request.uri().path().split('/').nth(3).unwrap_or_default();
    let decoded = decode(encoded).ok_or(ApiError::InvalidKey(InvalidLease::Key))?;
    decoded.parse().map_err(ApiError::InvalidKey)
}

/// Decodes percent-encoding (RFC 3986, 2.1); `None` if the text is not properly encoded UTF-8.
fn decode(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes().iter();
    while let Some(byte) = rest.next() {
        let mut digit = || char::from(*rest.next()?).to_digit(16);
        let decoded = if *byte == b'%' { digit()? * 16 + digit()? } else { u32::from(*byte) };
        bytes.push(u8::try_from(decoded).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_once_and_strictly() {
        #[rustfmt::skip]
        let cases = [
            ("plain",                     "a-b_c.d~e",    Some("a-b_c.d~e")),
            ("what a path would split",   "a%2Fb%2fc",    Some("a/b/c")),
            ("space, and a plus as such", "a%20b+c",      Some("a b+c")),
            ("two bytes",                 "%C3%A4",       Some("ä")),
            ("once and not twice",        "%252F",        Some("%2F")),
            ("empty",                     "",             Some("")),
            ("truncated",                 "a%",           None),
            ("truncated after a digit",   "a%2",          None),
            ("no digits",                 "%zz",          None),
            ("a sign",                    "%+1",          None),
            ("no UTF-8",                  "%FF",          None),
        ];
        for (name, encoded, decoded) in cases {
            assert_eq!(decode(encoded).as_deref(), decoded, "{name}");
        }
    }
}
