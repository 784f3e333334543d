//! The readers: a few threads, each with its own connection to the database.

use std::panic::{AssertUnwindSafe, catch_unwind};

use actix::{Actor, ActorContext as _, Handler, Message, SyncContext};

use super::{ReadStore, StoreError, chain};

/// One reading thread. After a query that panicked it opens a new connection.
pub struct Reader<A> {
    store: Result<A, StoreError>,
    open: Box<Open<A>>,
}

type Open<A> = dyn Fn() -> Result<A, StoreError> + Send;

impl<A: ReadStore + Unpin> Reader<A> {
    /// A reader of the store that `open` opens. If that fails, each query retries it.
    pub fn new(open: impl Fn() -> Result<A, StoreError> + Send + 'static) -> Self {
        Self { store: open(), open: Box::new(open) }
    }
}

impl<A: ReadStore + Unpin> Actor for Reader<A> {
    type Context = SyncContext<Self>;
}

/// A closure that a reading thread calls with the store; it passes its answer on itself. All of its
/// reads see the same committed state.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Query(pub Box<QueryFn>);

type QueryFn = dyn FnOnce(Result<&dyn ReadStore, &StoreError>) + Send;

impl<A: ReadStore + Unpin> Handler<Query> for Reader<A> {
    type Result = ();

    fn handle(&mut self, Query(query): Query, ctx: &mut Self::Context) {
        if self.store.is_err() {
            self.store = (self.open)();
        }
        // A panic would end the thread for good. Nothing of the connection is used after a panic.
        match catch_unwind(AssertUnwindSafe(|| self.answer(query))) {
            Ok(Ok(())) => {}
            Ok(Err(err)) => {
                log::log!(
                    target: "greenroom::storage", err.level(), err:% = chain(&err);
                    "a reader could not end its transaction; it is restarted"
                );
                // Otherwise every later read would see this state.
                ctx.stop();
            }
            Err(_) => {
                log::error!(target: "greenroom::storage", "a reader panicked; it is restarted");
                ctx.stop();
            }
        }
    }
}

impl<A: ReadStore + Unpin> Reader<A> {
    fn answer(&self, query: Box<QueryFn>) -> Result<(), StoreError> {
        let mut query = Some(query);
        let read = match &self.store {
            Ok(store) => store.in_one_snapshot(&mut |store| {
                if let Some(query) = query.take() {
                    query(Ok(store));
                }
            }),
            Err(err) => Err(err.clone()),
        };
        match (query, read) {
            // The transaction could not begin, so the query was not called.
            (Some(query), Err(err)) => {
                query(Err(&err));
                Ok(())
            }
            (_, read) => read,
        }
    }
}
