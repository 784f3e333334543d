//! The writer's calls of the database: whether one is under way.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counts the beginnings and the ends of calls, one at a time. Clones share the number.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls(Arc<AtomicU64>);

impl Calls {
    /// Begins a call, which ends when the returned value is dropped.
    pub fn begin(&self) -> Call {
        self.0.fetch_add(1, Ordering::Relaxed);
        Call(self.0.clone())
    }

    /// The number: odd while a call is under way.
    pub fn number(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A call that is under way.
#[derive(Debug)]
pub(super) struct Call(Arc<AtomicU64>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
