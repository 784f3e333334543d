//! Answers that clients have not read yet: how many bytes of them the server keeps (F28, I11).
//!
//! What clients leave unread counts against a limit over all connections. An answer of which a
//! client has read nothing for a while is dropped with its connection, if others need the room.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use actix_web::{
    body::{BodySize, MessageBody},
    web::Bytes,
};
use greenroom_actors::quota::{Quota, Share};

/// The bytes of one piece.
pub const PIECE_BYTES: usize = 32 << 10;
/// After so long without progress an answer may be dropped for another one.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// The answers that are being sent, over all connections.
#[derive(Clone, Debug, Default)]
pub struct Unread(Arc<Mutex<Vec<Weak<Mutex<Rest>>>>>);

/// What a client has not read of an answer.
#[derive(Debug)]
struct Rest {
    /// `None` once it was dropped.
    bytes: Option<Bytes>,
    share: Share,
    /// When the client last took a piece.
    progress: Instant,
}

/// An answer in pieces.
#[derive(Debug)]
pub struct Pieces(Arc<Mutex<Rest>>);

/// The answer was dropped, because its client did not read it.
#[derive(Debug, thiserror::Error)]
#[error("the client did not read its answer")]
pub struct Dropped;

impl Unread {
    /// Keeps an answer until its client has read it, whether there is room or not.
    pub fn keep(&self, quota: &Arc<Quota>, bytes: Bytes) -> Pieces {
        let share = quota.hold(bytes.len() as u64);
        let rest = Rest { bytes: Some(bytes), share, progress: Instant::now() };
        let rest = Arc::new(Mutex::new(rest));
        let mut all = lock(&self.0);
        // Each answer is looked at about twice: the list doubles before it is cleaned.
        if all.len() == all.capacity() {
            all.retain(|other| other.strong_count() > 0);
        }
        all.push(Arc::downgrade(&rest));
        Pieces(rest)
    }

    /// Makes room for an answer, if need be by dropping what stalled clients leave unread. Returns
    /// whether there is room.
    pub fn make_room(&self, quota: &Quota, bytes: usize) -> bool {
        if quota.check(bytes as u64).is_ok() {
            return true;
        }
        lock(&self.0).retain(|rest| {
            let Some(rest) = rest.upgrade() else { return false };
            let mut rest = lock(&rest);
            let is_stalled = rest.progress.elapsed() >= STALLED_AFTER;
            if is_stalled {
                rest.bytes = None;
                rest.share.set(0);
            }
            !is_stalled
        });
        quota.check(bytes as u64).is_ok()
    }
}

impl Pieces {
    /// Takes the next piece; `None` after the last one.
    ///
    /// # Errors
    ///
    /// [`Dropped`].
    pub fn next(&self) -> Option<Result<Bytes, Dropped>> {
        let mut rest = lock(&self.0);
        let Some(bytes) = &mut rest.bytes else { return Some(Err(Dropped)) };
        let length = bytes.len().min(PIECE_BYTES);
        let (piece, left) = (bytes.split_to(length), bytes.len());
        rest.share.set(left as u64);
        rest.progress = Instant::now();
        (length > 0).then_some(Ok(piece))
    }
}

impl MessageBody for Pieces {
    type Error = Dropped;

    fn size(&self) -> BodySize {
        BodySize::Sized(lock(&self.0).bytes.as_ref().map_or(0, Bytes::len) as u64)
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Dropped>>> {
        Poll::Ready(self.next())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use greenroom_actors::quota::{QuotaMax, Quotas};

    use super::*;

    /// F28, I11: an answer counts until it is read, and one whose client stalls makes room.
    #[test]
    fn an_unread_answer_counts_until_it_is_read_or_dropped() {
        let unread_bytes = 3 * PIECE_BYTES as u64;
        let quotas = Quotas::new(QuotaMax { unread_bytes, ..QuotaMax::default() });
        let (quota, unread) = (&quotas.unread_bytes, Unread::default());
        let answer = || Bytes::from(vec![b'x'; 2 * PIECE_BYTES + 1]);
        let pieces = unread.keep(quota, answer());
        assert!(!unread.make_room(quota, PIECE_BYTES), "its client has just begun");
        assert_eq!(pieces.next().unwrap().unwrap().len(), PIECE_BYTES);
        assert!(unread.make_room(quota, PIECE_BYTES));
        let lengths = [(); 3].map(|()| pieces.next().map(|piece| piece.unwrap().len()));
        assert_eq!((lengths, quota.used()), ([Some(PIECE_BYTES), Some(1), None], 0));

        let (gone, stalled) = (unread.keep(quota, answer()), unread.keep(quota, answer()));
        drop(gone);
        assert_eq!(quota.used(), answer().len() as u64);
        lock(&stalled.0).progress -= STALLED_AFTER;
        assert!(unread.make_room(quota, 3 * PIECE_BYTES));
        assert_eq!(quota.used(), 0);
        assert!(stalled.next().unwrap().is_err());
    }
}
