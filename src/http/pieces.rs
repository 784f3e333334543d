//! The middleware for large answers: sends them in pieces, so that their bytes are in memory once,
//! and only while there is room for what clients leave unread (F28, I11).

use actix_web::{
    Error, ResponseError as _,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web::Data,
};

use super::{error::ApiError, state::AppState, unread::PIECE_BYTES};

/// Sends a large answer in pieces; 503 above the limit of unread bytes. The answer to a change is
/// sent in any case: the change has happened.
///
/// # Errors
///
/// The service's error.
pub async fn pieces(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let state = request.app_data::<Data<AppState>>().cloned();
    let is_read = request.method().is_safe();
    let (request, response) = next.call(request).await?.into_parts();
    let (head, body) = response.into_parts();
    let body = match (body.try_into_bytes(), state) {
        (Ok(bytes), Some(state)) if bytes.len() > PIECE_BYTES => {
            let quota = &state.shared.quotas.unread_bytes;
            if is_read && !state.unread.make_room(quota, bytes.len()) {
                let full = quota.full();
                let refused = ApiError::Full(full).error_response();
                return Ok(ServiceResponse::new(request, refused));
            }
            BoxBody::new(state.unread.keep(quota, bytes))
        }
        (Ok(bytes), _) => BoxBody::new(bytes),
        (Err(body), _) => body.boxed(),
    };
    Ok(ServiceResponse::new(request, head.set_body(body)))
}
