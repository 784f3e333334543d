//! Readers: a few threads, each with a connection of its own, apart from the writer.

use std::panic::{AssertUnwindSafe, catch_unwind};

use actix::{Actor, ActorContext as _, Handler, Message, SyncContext};

use super::{Archive, StoreError};

/// One reading thread. A question that panics takes its connection with it: then the thread opens
/// another one.
pub struct Reader<A> {
    archive: Result<A, StoreError>,
    open: Box<Open<A>>,
}

type Open<A> = dyn Fn() -> Result<A, StoreError> + Send;

impl<A: Archive + Unpin> Reader<A> {
    /// Reads from what `open` opens. If that fails, each question tries it again.
    pub fn new(open: impl Fn() -> Result<A, StoreError> + Send + 'static) -> Self {
        Self { archive: open(), open: Box::new(open) }
    }
}

impl<A: Archive + Unpin> Actor for Reader<A> {
    type Context = SyncContext<Self>;
}

/// A question to the database, asked on a reading thread; the question itself passes the answer on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Query(pub Box<Question>);

type Question = dyn FnOnce(Result<&dyn Archive, &StoreError>) + Send;

impl<A: Archive + Unpin> Handler<Query> for Reader<A> {
    type Result = ();

    fn handle(&mut self, Query(ask): Query, ctx: &mut Self::Context) {
        if self.archive.is_err() {
            self.archive = (self.open)();
        }
        let archive = self.archive.as_ref().map(|archive| archive as &dyn Archive);
        // A panic would end the thread for good. Nothing of the connection is used after one.
        if catch_unwind(AssertUnwindSafe(|| ask(archive))).is_err() {
            log::error!(target: "greenroom::storage", "a reader panicked; it is started again");
            ctx.stop();
        }
    }
}
