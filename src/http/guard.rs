//! The middleware that checks `Host` and `Origin` before routing (C5, C6).

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web::Data,
};

use super::{error::ApiError, state::AppState};

/// Routes a request only if [`AppState::hosts`] allows it.
///
/// # Errors
///
/// The service's error; a refusal is a response, not an error.
pub async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let allowed = match request.app_data::<Data<AppState>>() {
        Some(state) => state.hosts.check(request.headers(), request.uri().authority()),
        None => Err(ApiError::BadHost),
    };
    match allowed {
        Ok(()) => next.call(request).await.map(ServiceResponse::map_into_left_body),
        Err(err) => Ok(request.error_response(err).map_into_right_body()),
    }
}
