//! Whether a request's client is still there: a handler that waits learns of it only here.

use std::{
    any::Any,
    future::pending,
    io::{self, ErrorKind},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use actix_web::{HttpRequest, dev::Extensions};
use tokio::{io::Interest, net::TcpStream};

/// A client's connection: a descriptor of its own, because a handler cannot reach the server's.
#[derive(Clone, Debug)]
pub struct Connection(Option<Arc<OwnedFd>>);

impl Connection {
    /// Notes a new connection in its requests' data. Without descriptors, its clients are not
    /// watched.
    pub fn note(stream: &dyn Any, data: &mut Extensions) {
        let own = stream
            .downcast_ref::<TcpStream>()
            .and_then(|stream| stream.as_fd().try_clone_to_owned().ok());
        data.insert(Self(own.map(Arc::new)));
    }

    /// The connection of a request.
    pub fn of(request: &HttpRequest) -> Self {
        request.conn_data::<Self>().cloned().unwrap_or(Self(None))
    }

    /// Resolves once the client has closed the connection, or its sending half: it waits for no
    /// answer, or looks like one that does not. Cancel safe.
    pub async fn closed(&self) {
        let watched = self.0.as_ref().and_then(|own| watch(own).ok());
        let Some(watched) = watched else { return pending().await };
        loop {
            match watched.ready(Interest::READABLE).await {
                Ok(ready) if ready.is_read_closed() => return,
                // The next request, which the server reads after this one's answer. Waits for more.
                Ok(_) => {
                    let none = || Err::<(), _>(ErrorKind::WouldBlock.into());
                    _ = watched.try_io(Interest::READABLE, none);
                }
                Err(_) => return pending().await,
            }
        }
    }
}

/// Registers a connection once more with this thread's reactor.
fn watch(own: &OwnedFd) -> io::Result<TcpStream> {
    TcpStream::from_std(own.try_clone()?.into())
}
