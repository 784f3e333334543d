//! The middleware for what is true of every answer: its headers, that HEAD has no body, and that a
//! request whose body was not read ends its connection.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_web::{
    Error, HttpMessage as _,
    body::{BodySize, BoxBody, MessageBody},
    dev::{Payload, ServiceRequest, ServiceResponse},
    error::PayloadError,
    http::{
        Method,
        header::{CACHE_CONTROL, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::Next,
    web::Bytes,
};
use futures_util::Stream;

/// The headers of every answer: a browser takes it for what it says it is, keeps no copy, and shows
/// it to no page of another site.
const HEADERS: [(HeaderName, HeaderValue); 3] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];

/// Completes the answer of the services inside.
///
/// # Errors
///
/// The service's error.
pub async fn answer(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let is_head = request.method() == Method::HEAD;
    let unread = share_payload(&mut request);
    let mut response = next.call(request).await?.map_into_boxed_body();
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, value);
    }
    Ok(match unread {
        None if !is_head => response,
        unread => response.map_body(|_, body| {
            let body = if is_head { Err(body.size()) } else { Ok(body) };
            BoxBody::new(Answer { body, _unread: unread })
        }),
    })
}

/// Gives the services a payload whose other half stays here, if the request has a payload.
fn share_payload(request: &mut ServiceRequest) -> Option<SharedPayload> {
    match request.take_payload() {
        Payload::None => None,
        payload => {
            let shared = SharedPayload(Rc::new(RefCell::new(payload)));
            request.set_payload(Payload::Stream { payload: Box::pin(shared.clone()) });
            Some(shared)
        }
    }
}

/// A request's body, also while no handler reads it.
#[derive(Clone)]
struct SharedPayload(Rc<RefCell<Payload>>);

impl Stream for SharedPayload {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_next(cx)
    }
}

/// The body of an answer, or, for HEAD, only its size.
struct Answer {
    body: Result<BoxBody, BodySize>,
    /// actix-http reads on to the end of a chunked body that was dropped, which may never come. For
    /// one that is not read to its end and still alive when the answer ends, it sends
    /// `Connection: close`, and waits a second at most for the client to close.
    _unread: Option<SharedPayload>,
}

impl MessageBody for Answer {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        match &self.body {
            Ok(body) => body.size(),
            Err(size) => *size,
        }
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        match &mut self.body {
            Ok(body) => Pin::new(body).poll_next(cx),
            Err(_) => Poll::Ready(None),
        }
    }
}
