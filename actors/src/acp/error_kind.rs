//! What an agent's error says about another attempt: whether it would get the same error.
//!
//! JSON-RPC's code and what `data` states in its members decide, whichever model's provider the
//! words are from. A doubt counts as an error that another attempt may not get.

use greenroom_core::ErrorKind;
use serde_json::value::RawValue;

use super::fields::{elements, fields, lossy_text, object, whole};

/// How deep causes are nested at most.
const DEPTH_MAX: usize = 8;
/// The part of a text that is read.
const TEXT_BYTES_MAX: usize = 16 << 10;
/// How many of a list's members are read.
const LIST_MAX: usize = 32;
/// The longest word that is looked up.
const WORD_BYTES_MAX: usize = 64;
/// ACP's code for "a login is needed".
const AUTH_REQUIRED: i64 = -32000;
/// JSON-RPC's codes of a request that is invalid.
const INVALID: [i64; 3] = [-32600, -32601, -32602];

/// Words of providers for "a login is needed", in lower case and without marks between.
#[rustfmt::skip]
const AUTH_WORDS: [&str; 17] = [
    "authrequired", "authenticationrequired", "authenticationerror", "authenticationfailed",
    "autherror", "providerautherror", "unauthenticated", "unauthorized", "unauthorizederror",
    "invalidapikey", "invalidauthentication", "incorrectapikey", "forbidden", "permissiondenied",
    "permissiondeniederror", "permissionerror", "loginrequired",
];
/// Their words for a request that can only fail: it is invalid, its model is unknown, or it does
/// not fit into the context.
#[rustfmt::skip]
const LASTING_WORDS: [&str; 23] = [
    "invalidrequest", "invalidrequesterror", "badrequest", "badrequesterror", "invalidargument",
    "invalidparams", "modelnotfound", "modelnotfounderror", "unknownmodel", "invalidmodel",
    "nosuchmodel", "nosuchmodelerror", "ainosuchmodelerror", "modelnotsupported",
    "contextlengthexceeded", "contextwindowexceeded", "contextoverflow", "contextoverflowerror",
    "contextlengtherror", "prompttoolong", "inputtoolong", "requesttoolarge", "payloadtoolarge",
];
/// Their words for what passes: load, limits in time, faults of the server.
#[rustfmt::skip]
const PASSING_WORDS: [&str; 15] = [
    "overloaded", "overloadederror", "serveroverloaded", "ratelimit", "ratelimited",
    "ratelimiterror", "ratelimitexceeded", "toomanyrequests", "resourceexhausted", "servererror",
    "internalservererror", "internal", "unavailable", "serviceunavailable", "timeout",
];
/// What texts for people say of such a request, in lower case.
#[rustfmt::skip]
const LASTING_PHRASES: [&str; 7] = [
    "prompt is too long", "maximum context length", "context length exceeded",
    "context window exceeded", "model not found", "unknown model", "no such model",
];
/// What they say if a login is needed.
const AUTH_PHRASES: [&str; 3] = ["authentication required", "invalid api key", "not logged in"];

/// Returns what an error with this code, message and data says about another attempt.
pub(super) fn kind(
    code: Option<i64>,
    message: Option<&RawValue>,
    data: Option<&RawValue>,
) -> ErrorKind {
    let mut said = Said::default();
    if let Some(message) = message.and_then(lossy_text) {
        said.add_text(&message, 0);
    }
    if let Some(data) = data {
        said.add(data, DEPTH_MAX);
    }
    match code {
        Some(AUTH_REQUIRED) => ErrorKind::Auth,
        Some(code) if INVALID.contains(&code) && said.auth => ErrorKind::Auth,
        Some(code) if INVALID.contains(&code) => ErrorKind::Lasting,
        code => {
            said.add_status(code.unwrap_or_default());
            said.kind()
        }
    }
}

/// What the members of an error say.
#[derive(Default)]
struct Said {
    auth: bool,
    lasting: bool,
    passing: bool,
}

impl Said {
    fn kind(&self) -> ErrorKind {
        match self {
            Self { passing: true, .. } => ErrorKind::Passing,
            Self { auth: true, .. } => ErrorKind::Auth,
            Self { lasting: true, .. } => ErrorKind::Lasting,
            Self { .. } => ErrorKind::Passing,
        }
    }

    /// Adds what `data` says, down to `depth`.
    fn add(&mut self, data: &RawValue, depth: usize) {
        fields! {
            struct Data {
                status: "status" | "statusCode" | "status_code",
                http: "httpStatus" | "http_status" | "httpStatusCode" | "http_status_code",
                code: "code",
                name: "type" | "name" | "errorName" | "error_code" | "errorCode",
                kind: "kind" | "errorKind" | "codexErrorInfo",
                message: "message",
                details: "details" | "detail" | "additionalDetails",
                reason: "reason",
                description: "description" | "error_description",
                error: "error",
                errors: "errors",
                data: "data" | "response",
                cause: "cause",
            }
        }
        let Some(next) = depth.checked_sub(1) else { return };
        if let Some(text) = lossy_text(data) {
            self.add_text(&text, next);
        } else if data.get().starts_with('[') {
            let listed = elements(data).into_iter().take(LIST_MAX);
            listed.for_each(|element| self.add(element, next));
        } else if let Some(found) = object::<Data<'_>>(data) {
            let Data { status, http, code, name, kind, .. } = &found;
            for named in [status, http, code, name, kind].into_iter().flatten() {
                match (whole(named), lossy_text(named)) {
                    (Some(number), _) => self.add_status(number),
                    (None, Some(word)) => self.add_word(&word),
                    (None, None) => self.add(named, next),
                }
            }
            let Data { message, details, reason, description, error, errors, data, cause, .. } =
                found;
            let texts = [message, details, reason, description];
            let nested = [error, errors, data, cause];
            texts.into_iter().chain(nested).flatten().for_each(|member| self.add(member, next));
        }
    }

    /// Adds an HTTP status; other numbers say nothing.
    fn add_status(&mut self, status: i64) {
        match status {
            401 | 403 => self.auth = true,
            400 => self.lasting = true,
            408 | 409 | 425 | 429 | 500..=599 => self.passing = true,
            _ => {}
        }
    }

    /// Adds a word that stands for the error.
    fn add_word(&mut self, word: &str) {
        if word.len() > WORD_BYTES_MAX {
            return;
        }
        let plain: String = word.chars().filter(char::is_ascii_alphanumeric).collect();
        let plain = plain.to_ascii_lowercase();
        let names = |words: &[&str]| words.contains(&&*plain);
        self.auth |= names(&AUTH_WORDS);
        self.lasting |= names(&LASTING_WORDS);
        self.passing |= names(&PASSING_WORDS);
    }

    /// Adds a text for people: one word, JSON in a string, an HTTP status that it names, or a
    /// phrase that has no other meaning.
    fn add_text(&mut self, text: &str, depth: usize) {
        let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        self.add_word(text);
        if let Some(at) = text.find('{')
            && depth > 0
            && let Some(Ok(inner)) =
                serde_json::Deserializer::from_str(&text[at..]).into_iter::<&RawValue>().next()
        {
            self.add(inner, depth);
        }
        let text = text.to_ascii_lowercase();
        self.auth |= AUTH_PHRASES.iter().any(|phrase| text.contains(phrase));
        self.lasting |= LASTING_PHRASES.iter().any(|phrase| text.contains(phrase));
        let words: Vec<&str> = text
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect();
        for (at, word) in words.iter().enumerate() {
            let Some(status) = word.parse().ok().filter(|_| word.len() == 3) else { continue };
            let before = at.checked_sub(1).map_or("", |at| words[at]);
            let after = words.get(at + 1).copied().unwrap_or_default();
            if ["http", "status", "code", "error"].contains(&before) || names_reason(status, after)
            {
                self.add_status(status);
            }
        }
    }
}

/// Whether HTTP's reason phrase of the status begins with this word.
fn names_reason(status: i64, word: &str) -> bool {
    match status {
        400 => word == "bad",
        401 => word == "unauthorized",
        403 => word == "forbidden",
        408 => word == "request",
        429 => word == "too",
        500 => word == "internal",
        502 => word == "bad",
        503 => word == "service",
        504 => word == "gateway",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::acp::{Message, parse};

    /// DQ-8, A-4: only an error that surely stays is not retried.
    #[test]
    fn codes_and_data_tell_what_a_retry_can_cure() {
        use ErrorKind::{Auth, Lasting, Passing};
        #[rustfmt::skip]
        let cases = [
            ("ACP's code",             r#"{"code":-32000,"message":"Authentication required"}"#, Auth),
            ("HTTP in code",           r#"{"code":401,"message":"no"}"#, Auth),
            ("HTTP in code",           r#"{"code":403,"message":"no"}"#, Auth),
            ("HTTP in code",           r#"{"code":400,"message":"no"}"#, Lasting),
            ("invalid request",        r#"{"code":-32600,"message":"no"}"#, Lasting),
            ("no such method",         r#"{"code":-32601,"message":"no"}"#, Lasting),
            ("invalid parameters",     r#"{"code":-32602,"message":"no"}"#, Lasting),
            ("invalid, for a login",   r#"{"code":-32602,"message":"no","data":{"status":401}}"#, Auth),
            ("a status in data",       r#"{"code":-32603,"message":"no","data":{"status":401}}"#, Auth),
            ("as text",                r#"{"code":-32603,"message":"no","data":{"statusCode":"403"}}"#, Auth),
            ("deep",                   r#"{"code":-32603,"message":"no","data":{"cause":{"response":{"status":400}}}}"#, Lasting),
            ("in a list",              r#"{"code":-32603,"message":"no","data":{"errors":[{"code":401}]}}"#, Auth),
            ("a client's name for all", r#"{"code":-32603,"message":"no","data":{"name":"APIError","data":{"statusCode":401}}}"#, Auth),
            ("a provider's type",      r#"{"code":-32603,"message":"no","data":{"error":{"type":"authentication_error"}}}"#, Auth),
            ("a status word",          r#"{"code":-32603,"message":"no","data":{"status":"UNAUTHENTICATED"}}"#, Auth),
            ("unknown model",          r#"{"code":-32603,"message":"no","data":{"code":"model_not_found"}}"#, Lasting),
            ("unknown model",          r#"{"code":-32603,"message":"no","data":{"errorName":"ProviderModelNotFoundError","message":"Model not found: x/y"}}"#, Lasting),
            ("full context",           r#"{"code":-32603,"message":"no","data":{"error":{"code":"context_length_exceeded"}}}"#, Lasting),
            ("full context",           r#"{"code":-32603,"message":"no","data":{"codexErrorInfo":"contextWindowExceeded"}}"#, Lasting),
            ("full context in words",  r#"{"code":-32603,"message":"prompt is too long: 210000 tokens > 200000 maximum"}"#, Lasting),
            ("JSON in a text",         r#"{"code":-32603,"message":"no","data":{"details":"API Error: {\"error\":{\"type\":\"authentication_error\"}}"}}"#, Auth),
            ("a status in a text",     r#"{"code":-32603,"message":"API Error: 401 x"}"#, Auth),
            ("a status in a text",     r#"{"code":-32603,"message":"no","data":"403 Forbidden"}"#, Auth),
            ("nothing known",          r#"{"code":-32603,"message":"Internal error"}"#, Passing),
            ("resource not found",     r#"{"code":-32002,"message":"no"}"#, Passing),
            ("not found",              r#"{"code":-32603,"message":"no","data":{"status":404}}"#, Passing),
            ("rate limit",             r#"{"code":429,"message":"no"}"#, Passing),
            ("overloaded",             r#"{"code":-32603,"message":"no","data":{"status":529}}"#, Passing),
            ("a contradiction",        r#"{"code":-32603,"message":"no","data":{"status":500,"cause":{"status":401}}}"#, Passing),
            ("a contradiction",        r#"{"code":-32603,"message":"no","data":{"type":"api_error","code":400,"status":"INTERNAL"}}"#, Passing),
            ("another number",         r#"{"code":-32603,"message":"401 tokens were used","data":{"tokens":401}}"#, Passing),
            ("an exit code",           r#"{"code":-32603,"message":"no","data":{"code":1}}"#, Passing),
            ("no code",                r#"{"message":"Unauthorized"}"#, Auth),
        ];
        for (name, error, expected) in cases {
            let line = format!(r#"{{"jsonrpc":"2.0","id":1,"error":{error}}}"#);
            let Ok(Message::Response { outcome: Err(error), .. }) = parse(&line) else {
                panic!("{name}: {line}")
            };
            assert_eq!(error.kind, expected, "{name}: {line}");
        }
    }
}
