//! Whether a request's client is still there: a handler that waits learns of it only here.

use std::{
    any::Any,
    cell::{Cell, OnceCell},
    future::pending,
    io::ErrorKind,
    os::fd::{AsFd as _, OwnedFd},
    rc::Rc,
};

use actix_web::{HttpRequest, dev::Extensions};
use tokio::{io::Interest, net::TcpStream};

/// A client's connection: a descriptor of its own, because a handler cannot reach the server's.
#[derive(Clone)]
pub struct Connection(Rc<Watched>);

#[derive(Default)]
struct Watched {
    /// Until the first wait: most connections have none, and cost no wake-ups.
    unwatched: Cell<Option<OwnedFd>>,
    stream: OnceCell<TcpStream>,
}

impl Connection {
    /// Notes a new connection in its requests' data. Without descriptors, its clients are not
    /// watched.
    pub fn note(stream: &dyn Any, data: &mut Extensions) {
        let stream = stream.downcast_ref::<TcpStream>();
        let own = stream.and_then(|stream| stream.as_fd().try_clone_to_owned().ok());
        data.insert(Self(Rc::new(Watched { unwatched: Cell::new(own), ..Watched::default() })));
    }

    /// The connection of a request.
    pub fn of(request: &HttpRequest) -> Self {
        request.conn_data::<Self>().cloned().unwrap_or_else(|| Self(Rc::default()))
    }

    /// Resolves once the client has closed the connection, or its sending half: it waits for no
    /// answer, or looks like one that does not. Cancel safe.
    pub async fn closed(&self) {
        let Watched { unwatched, stream } = &*self.0;
        if let Some(own) = unwatched.take()
            && let Ok(watched) = TcpStream::from_std(own.into())
        {
            _ = stream.set(watched);
        }
        let Some(stream) = stream.get() else { return pending().await };
        loop {
            match stream.ready(Interest::READABLE).await {
                Ok(ready) if ready.is_read_closed() => return,
                // The next request, which the server reads after this one's answer. Waits for more.
                Ok(_) => {
                    let none = || Err::<(), _>(ErrorKind::WouldBlock.into());
                    _ = stream.try_io(Interest::READABLE, none);
                }
                Err(_) => return pending().await,
            }
        }
    }
}
