//! Query strings: reads the parameters of a route; every error names its parameter.

use std::future::{Ready, ready};

use actix_web::{FromRequest, HttpRequest, dev::Payload};
use serde::{Deserialize, de::DeserializeOwned};

use super::error::ApiError;

/// The parameters of a request, read as `T`. A `T` that denies unknown fields refuses a misspelt
/// parameter, which would otherwise select nothing and look as if it had.
pub struct Query<T>(pub T);

/// The parameters of a route that takes none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParameters {}

impl<T: DeserializeOwned> FromRequest for Query<T> {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(parse(request.query_string()).map(Self))
    }
}

/// Reads a query string.
///
/// # Errors
///
/// [`ApiError::InvalidQuery`], with the parameter and what it may be.
pub fn parse<T: DeserializeOwned>(query: &str) -> Result<T, ApiError> {
    let pairs = serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
    serde_path_to_error::deserialize(pairs).map_err(|err| {
        let path = err.path().to_string();
        let why = err.into_inner().to_string();
        let is_about_value = path != "." && !why.contains(" field `");
        ApiError::InvalidQuery(match is_about_value {
            true => format!("{path}: {why}"),
            false => why
                .replace(" field `", " parameter `")
                .replace("there are no fields", "this route takes none"),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Colour {
        Red,
        DarkBlue,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Paint {
        #[serde(rename = "colour")]
        _colour: Option<Colour>,
        #[serde(rename = "coats")]
        _coats: Option<u8>,
        #[serde(rename = "holder")]
        _holder: String,
    }

    /// API-2: an error names the parameter, and the words that it may be.
    #[test]
    fn a_bad_query_names_its_parameter() {
        #[rustfmt::skip]
        let cases = [
            ("holder=x",               None),
            ("holder=x&colour=red",    None),
            ("colour=dark_blue&holder=%ff", None),
            ("holder=x&colour=up",     Some("colour: unknown variant `up`, expected `red` or `dark_blue`")),
            ("holder=x&coats=256",     Some("coats: number too large to fit in target type")),
            ("holder=x&coats=",        Some("coats: cannot parse integer from empty string")),
            ("",                       Some("missing parameter `holder`")),
            ("holder=x&holder=y",      Some("duplicate parameter `holder`")),
            ("holder=x&color=red",     Some("unknown parameter `color`, expected one of `colour`, `coats`, `holder`")),
        ];
        for (query, expected) in cases {
            let detail = parse::<Paint>(query).err().map(|err| err.to_string());
            assert_eq!(detail.as_deref(), expected, "{query}");
        }
        let none = parse::<NoParameters>("wait=1").err().map(|err| err.to_string());
        assert_eq!(none.as_deref(), Some("unknown parameter `wait`, this route takes none"));
    }
}
