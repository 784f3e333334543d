//! Readers: a few threads, each with a connection of its own, apart from the writer.

use std::panic::{AssertUnwindSafe, catch_unwind};

use actix::{Actor, ActorContext as _, Handler, Message, SyncContext};

use super::{Archive, StoreError, chain};

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
/// All of its reads see the same committed state.
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
        // A panic would end the thread for good. Nothing of the connection is used after one.
        match catch_unwind(AssertUnwindSafe(|| self.answer(ask))) {
            Ok(Ok(())) => {}
            Ok(Err(err)) => {
                log::log!(
                    target: "greenroom::storage", err.level(), err:% = chain(&err);
                    "reader could not close its transaction; restarting it"
                );
                // Otherwise every later read would see this same state.
                ctx.stop();
            }
            Err(_) => {
                log::error!(target: "greenroom::storage", "a reader panicked; it is started again");
                ctx.stop();
            }
        }
    }
}

impl<A: Archive + Unpin> Reader<A> {
    fn answer(&self, ask: Box<Question>) -> Result<(), StoreError> {
        let mut ask = Some(ask);
        let read = match &self.archive {
            Ok(archive) => archive.in_one_snapshot(&mut |archive| {
                if let Some(ask) = ask.take() {
                    ask(Ok(archive));
                }
            }),
            Err(err) => Err(err.clone()),
        };
        match (ask, read) {
            // The read could not begin, so the question was not asked yet.
            (Some(ask), Err(err)) => {
                ask(Err(&err));
                Ok(())
            }
            (_, read) => read,
        }
    }
}
