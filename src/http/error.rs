//! Errors: the one place where an error becomes a status and a problem document (RFC 9457).

use actix::MailboxError;
use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use greenroom_actors::{
    clock,
    group::GroupError,
    quota::Full,
    storage::{Fault, LockError, StoreError, chain},
};
use greenroom_core::{
    Rejected,
    lock::{Holder, InvalidLease},
};
use serde::Serialize;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The API has no such path.
    #[error("there is nothing at this path")]
    NoSuchPath,
    /// The path has other methods.
    #[error("this path has no such method")]
    WrongMethod,
    /// The group id breaks the rule.
    #[error(
        "a group id has 1 to 128 characters of A-Z a-z 0-9 . _ : @ - and begins with a letter or a \
         digit"
    )]
    InvalidGroup,
    /// No such group.
    #[error("there is no such group")]
    NoSuchGroup,
    /// No such task.
    #[error("there is no such task")]
    NoSuchTask,
    /// No such run.
    #[error("there is no such run")]
    NoSuchRun,
    /// The digest is missing, and its group could not rebuild it; the log names the group.
    #[error("the digest could not be rebuilt from the transcript")]
    NoDigest,
    /// No such permission.
    #[error("there is no such permission")]
    NoSuchPermission,
    /// The turn or the run that the permission belongs to has ended.
    #[error("the turn or the run has ended; no answer can reach the agent")]
    VoidPermission,
    /// The lock is free.
    #[error("this lock is free")]
    NoSuchLock,
    /// The key of a lock breaks a rule.
    #[error("{0}, percent-encoded UTF-8")]
    InvalidKey(InvalidLease),
    /// The query string breaks a rule.
    #[error("{0}")]
    InvalidQuery(String),
    /// A header breaks a rule.
    #[error("{0}")]
    InvalidHeader(&'static str),
    /// The body is not valid for the path.
    #[error("{detail}")]
    InvalidBody {
        /// The path of the invalid field, separated by dots.
        field: Option<String>,
        /// What is wrong.
        detail: String,
    },
    /// The body's content type is not JSON.
    #[error("the body must be sent as application/json")]
    NotJson,
    /// The body exceeds the limit.
    #[error("the body is larger than {0} bytes")]
    BodyTooLarge(usize),
    /// The body could not be read to its end.
    #[error("the body could not be read: {0}")]
    BodyBroken(String),
    /// The body did not arrive in time.
    #[error("the body did not arrive in time")]
    BodyTooSlow,
    /// The server does not serve this `Host` (C5).
    #[error("this server does not serve that host")]
    ForeignHost,
    /// The `Host` is missing, repeated or malformed.
    #[error("a request needs exactly one valid Host")]
    BadHost,
    /// The `Origin` is another site's (C6).
    #[error("this server accepts no requests from that origin")]
    ForeignOrigin,
    /// The server shuts down.
    #[error("the server is shutting down; nothing was accepted")]
    Draining,
    /// The group's error.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The lock's error.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The database's error.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A write does not return, and the request may be in it.
    #[error(
        "the database does not answer; this request may still take effect: repeat it with its \
         idempotency key, or read first what was stored"
    )]
    Unanswered,
    /// The server as a whole has no room for it.
    #[error(transparent)]
    Full(#[from] Full),
    /// The actor has died, and is being rebuilt.
    #[error("the group is being rebuilt from the database")]
    Gone(#[from] MailboxError),
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<&'a Holder>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block: Option<Block>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Limit>,
}

/// A limit of the server that is reached.
#[derive(Serialize)]
struct Limit {
    name: &'static str,
    count: u64,
    max: u64,
}

/// A block of a prompt.
#[derive(Serialize)]
struct Block {
    index: usize,
    r#type: &'static str,
}

impl ApiError {
    /// Returns the last part of the problem's type, and its title.
    fn slug(&self) -> (&'static str, &'static str) {
        match self {
            Self::NoSuchPath => ("not-found", "Not found"),
            Self::NoSuchGroup | Self::Group(GroupError::Unknown) => {
                ("group-not-found", "No such group")
            }
            Self::NoSuchTask => ("task-not-found", "No such task"),
            Self::NoSuchRun => ("run-not-found", "No such run"),
            Self::NoDigest => ("digest-missing", "Digest missing"),
            Self::NoSuchPermission => ("permission-not-found", "No such permission"),
            Self::VoidPermission => ("void", "Permission void"),
            Self::NoSuchLock => ("lock-not-found", "No such lock"),
            Self::InvalidKey(_) => ("invalid-key", "Invalid key"),
            Self::WrongMethod => ("method-not-allowed", "Method not allowed"),
            Self::InvalidGroup => ("invalid-group", "Invalid group id"),
            Self::InvalidQuery(_) => ("invalid-query", "Invalid query"),
            Self::InvalidHeader(_) => ("invalid-header", "Invalid header"),
            Self::InvalidBody { .. } | Self::BodyBroken(_) => ("invalid-body", "Invalid body"),
            Self::BodyTooSlow => ("request-timeout", "Request timeout"),
            Self::NotJson => ("unsupported-media-type", "Unsupported media type"),
            Self::BodyTooLarge(_) => ("body-too-large", "Body too large"),
            Self::Group(GroupError::InvalidCwd(_)) => ("invalid-cwd", "Invalid working directory"),
            Self::ForeignHost => ("foreign-host", "Foreign host"),
            Self::BadHost => ("bad-host", "Bad host"),
            Self::ForeignOrigin => ("foreign-origin", "Foreign origin"),
            Self::Draining | Self::Group(GroupError::Draining) => ("draining", "Shutting down"),
            Self::Group(GroupError::UnknownAgent(_)) => ("unknown-agent", "Unknown agent"),
            Self::Group(GroupError::Rejected(rejected)) => match rejected {
                Rejected::QueueFull => ("queue-full", "Queue full"),
                Rejected::Archived | Rejected::Purging => ("group-archived", "Group deleted"),
                Rejected::AlreadyTerminal => ("already-terminal", "Already ended"),
                Rejected::NotRetryable => ("not-retryable", "Not retryable"),
                Rejected::AlreadyCompacting(_) => ("already-compacting", "Already compacting"),
                Rejected::PromptNotSupported(_) => ("prompt-not-supported", "Prompt not supported"),
                Rejected::NotPending => ("already-resolved", "Already resolved"),
                Rejected::NoSuchOption => ("invalid-body", "Invalid body"),
            },
            Self::Full(_) | Self::Group(GroupError::Full(_)) => ("limit-reached", "Limit reached"),
            Self::Group(GroupError::KeyConflict) => {
                ("idempotency-conflict", "Idempotency key reused")
            }
            Self::Group(GroupError::CompactionUnsupported) => {
                ("compaction-unsupported", "Compaction unsupported")
            }
            Self::Group(GroupError::Rebuilding) | Self::Gone(_) => {
                ("group-rebuilding", "Group is being rebuilt")
            }
            Self::Group(GroupError::Broken(_) | GroupError::Storage(StoreError::Unreadable(_)))
            | Self::Store(StoreError::Unreadable(_)) => ("group-broken", "Group broken"),
            Self::Group(GroupError::Exhausted | GroupError::Storage(StoreError::Exhausted(_))) => {
                ("numbers-exhausted", "Numbers exhausted")
            }
            Self::Unanswered => ("outcome-unknown", "Outcome unknown"),
            Self::Lock(LockError::Conflict { .. }) => ("lock-held", "Lock held"),
            Self::Lock(LockError::Lost) => ("lock-lost", "Lock lost"),
            Self::Lock(LockError::Absent) => ("locks-absent", "No locks"),
            Self::Store(_)
            | Self::Group(GroupError::Storage(_))
            | Self::Lock(LockError::Store(_)) => ("storage-unavailable", "Storage unavailable"),
        }
    }

    /// Whether a row of one group cannot be read.
    pub fn is_broken_group(&self) -> bool {
        matches!(
            self,
            Self::Store(StoreError::Unreadable(_))
                | Self::Group(
                    GroupError::Broken(_) | GroupError::Storage(StoreError::Unreadable(_))
                )
        )
    }

    /// Returns the seconds after which to retry, where that may help.
    fn retry_after(&self) -> Option<u32> {
        match self.status_code() {
            // Without an idempotency key, a retry could be a second task.
            _ if matches!(self, Self::Unanswered) => None,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Some(1),
            _ => None,
        }
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::NoSuchPath
            | Self::NoSuchGroup
            | Self::NoSuchTask
            | Self::NoSuchLock
            | Self::NoSuchRun
            | Self::NoSuchPermission
            | Self::Group(GroupError::Unknown) => StatusCode::NOT_FOUND,
            // Not an outage: it lasts until a repair, and affects no other group.
            Self::NoDigest
            | Self::Store(StoreError::Unreadable(_))
            | Self::Group(GroupError::Broken(_))
            | Self::Group(GroupError::Storage(StoreError::Unreadable(_))) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::Group(GroupError::Exhausted | GroupError::Storage(StoreError::Exhausted(_))) => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            Self::VoidPermission => StatusCode::GONE,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ForeignHost | Self::ForeignOrigin => StatusCode::FORBIDDEN,
            Self::InvalidGroup
            | Self::InvalidKey(_)
            | Self::InvalidQuery(_)
            | Self::InvalidHeader(_)
            | Self::InvalidBody { .. }
            | Self::BodyBroken(_)
            | Self::BadHost
            | Self::Group(
                GroupError::UnknownAgent(_)
                | GroupError::InvalidCwd(_)
                | GroupError::Rejected(Rejected::NoSuchOption),
            ) => StatusCode::BAD_REQUEST,
            Self::Group(GroupError::Rejected(Rejected::QueueFull) | GroupError::Full(_)) => {
                StatusCode::TOO_MANY_REQUESTS
            }
            // What others hold only for a while is no fault of this caller.
            Self::Full(full) if ["waits", "streams", "unread_bytes"].contains(&full.name) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Full(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Group(
                GroupError::KeyConflict | GroupError::Rejected(Rejected::PromptNotSupported(_)),
            ) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Group(GroupError::Rejected(_) | GroupError::CompactionUnsupported)
            | Self::Lock(LockError::Conflict { .. } | LockError::Lost) => StatusCode::CONFLICT,
            Self::Draining
            | Self::Unanswered
            | Self::Group(GroupError::Draining | GroupError::Storage(_) | GroupError::Rebuilding)
            | Self::Lock(LockError::Absent | LockError::Store(_))
            | Self::Store(_)
            | Self::Gone(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn error_response(&self) -> HttpResponse {
        // The database's message may contain paths and SQL: it goes to the log (C21).
        let detail = match self {
            Self::Store(StoreError::Unreadable(row))
            | Self::Group(GroupError::Storage(StoreError::Unreadable(row))) => {
                GroupError::Broken(row.clone()).to_string()
            }
            Self::Group(GroupError::Storage(err @ StoreError::Exhausted(_))) => err.to_string(),
            Self::Store(err)
            | Self::Group(GroupError::Storage(err))
            | Self::Lock(LockError::Store(err)) => {
                log::log!(err.level(), err:% = chain(err); "request failed");
                let is_stalled = err.fault() == Some(Fault::Stalled);
                let what = if is_stalled { "does not answer" } else { "failed" };
                format!("the database {what}; nothing was accepted")
            }
            err => err.to_string(),
        };
        let (slug, title) = self.slug();
        let field = match self {
            Self::InvalidBody { field, .. } => field.as_deref(),
            Self::Group(GroupError::Rejected(Rejected::NoSuchOption)) => Some("option_id"),
            _ => None,
        };
        let (holder, expires_at) = match self {
            Self::Lock(LockError::Conflict { holder, expires_at }) => {
                (Some(holder), Some(clock::rfc3339(*expires_at)))
            }
            _ => (None, None),
        };
        let block = match self {
            Self::Group(GroupError::Rejected(Rejected::PromptNotSupported(block))) => {
                Some(Block { index: block.index, r#type: block.kind.name() })
            }
            _ => None,
        };
        let limit = match self {
            Self::Full(full) | Self::Group(GroupError::Full(full)) => {
                Some(Limit { name: full.name, count: full.count, max: full.max })
            }
            _ => None,
        };
        let code = self.status_code();
        let (r#type, status) = (format!("/problems/{slug}"), code.as_u16());
        let problem =
            Problem { r#type, title, status, detail, field, holder, expires_at, block, limit };
        let mut response = HttpResponse::build(code);
        response.content_type("application/problem+json");
        if let Some(seconds) = self.retry_after() {
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        response.body(serde_json::to_string(&problem).unwrap_or_default())
    }
}
