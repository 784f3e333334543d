//! Readers: a few threads, each with a connection of its own, apart from the writer.

use actix::{Actor, Handler, Message, SyncContext};

use super::{Archive, StoreError};

/// One reading thread. A question that panics takes its connection with it: then the thread opens
/// another one.
pub struct Reader<A> {
    archive: Result<A, StoreError>,
}

impl<A: Archive + Unpin> Reader<A> {
    /// Reads from what `open` opened.
    pub fn new(archive: Result<A, StoreError>) -> Self {
        Self { archive }
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

    fn handle(&mut self, Query(ask): Query, _: &mut Self::Context) {
        ask(self.archive.as_ref().map(|archive| archive as &dyn Archive));
    }
}
