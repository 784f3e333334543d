//! The compaction lock, for programs outside greenroom that compact the same sessions (SEEDS
//! HL-15).
//!
//! Refreshing and releasing go on while the server drains: what was begun under a lock may end
//! under it.

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Data, Query},
};
use greenroom_actors::{
    clock,
    storage::{Granted, LockAsk, LockError},
};
use greenroom_core::lock::{Holder, InvalidLease, Lease, Lock, LockKey, Now, Ttl};
use serde::{Deserialize, Serialize};

use super::{Worker, body::Body, error::ApiError, view};

/// Who wants a lock, and for how long.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockRequest {
    holder: Holder,
    ttl_ms: Ttl,
}

/// Whose lock it is.
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
    token: u64,
    acquired_at: view::Time,
    expires_at: view::Time,
}

impl<'a> LockView<'a> {
    fn new(lock: &'a Lock, now: Now) -> Self {
        let Lease { key, holder, token } = &lock.lease;
        Self {
            key,
            holder,
            token: *token,
            acquired_at: view::Time(lock.acquired_at),
            expires_at: view::Time(lock.expires_at(now)),
        }
    }
}

/// Shows who holds a lock; 404 if nobody does.
pub async fn get(worker: Data<Worker>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let key = key(&request).map_err(|_| ApiError::NoSuchLock)?;
    let found = worker.edge.shared.ledger.lock_get(key).await?;
    let lock = found.ok_or(ApiError::NoSuchLock)?;
    Ok(HttpResponse::Ok().json(LockView::new(&lock, clock::moment())))
}

/// Takes a lock: 201. 200 if its living holder asks again, who keeps the token.
pub async fn put(
    worker: Data<Worker>,
    request: HttpRequest,
    body: Body<LockRequest>,
) -> Result<HttpResponse, ApiError> {
    worker.take_work()?;
    let LockRequest { holder, ttl_ms } = body.value;
    let ask = LockAsk { key: key(&request)?, holder, ttl: ttl_ms, group: None };
    let Granted { lock, fresh } = worker.edge.shared.ledger.lock_acquire(ask).await?;
    let mut response = if fresh { HttpResponse::Created() } else { HttpResponse::Ok() };
    Ok(response.json(LockView::new(&lock, clock::moment())))
}

/// Extends a lease by its `ttl_ms`.
pub async fn refresh(
    worker: Data<Worker>,
    request: HttpRequest,
    body: Body<LeaseRequest>,
) -> Result<HttpResponse, ApiError> {
    let LeaseRequest { holder, token } = body.value;
    let lease = Lease { key: key(&request)?, holder, token };
    let lock = worker.edge.shared.ledger.lock_refresh(lease).await?;
    Ok(HttpResponse::Ok().json(LockView::new(&lock, clock::moment())))
}

/// Gives a lease up. Who asks for what is not theirs changes nothing, and gets the same answer.
pub async fn delete(
    worker: Data<Worker>,
    request: HttpRequest,
    Query(LeaseRequest { holder, token }): Query<LeaseRequest>,
) -> Result<HttpResponse, ApiError> {
    if let Ok(key) = key(&request) {
        let lease = Lease { key, holder, token };
        match worker.edge.shared.ledger.lock_release(lease).await {
            // Where there are no locks, nobody holds one.
            Ok(_) | Err(LockError::Absent) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(HttpResponse::NoContent().finish())
}

/// The key as it was sent. The router decodes a path leniently, so that two paths may become one;
/// two keys must not.
fn key(request: &HttpRequest) -> Result<LockKey, ApiError> {
    let encoded = request.uri().path().split('/').nth(3).unwrap_or_default();
    let decoded = decode(encoded).ok_or(ApiError::InvalidKey(InvalidLease::Key))?;
    decoded.parse().map_err(ApiError::InvalidKey)
}

/// Undoes percent-encoding (RFC 3986, 2.1), if the text is properly encoded UTF-8.
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
            ("cut off",                   "a%",           None),
            ("cut off after a digit",     "a%2",          None),
            ("no digits",                 "%zz",          None),
            ("a sign",                    "%+1",          None),
            ("no UTF-8",                  "%FF",          None),
        ];
        for (name, encoded, decoded) in cases {
            assert_eq!(decode(encoded).as_deref(), decoded, "{name}");
        }
    }
}
