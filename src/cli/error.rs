//! Why a command failed, and the exit code of the process. Knows no command.

use std::{
    error::Error,
    io::{self, ErrorKind},
};

use crate::{client::ClientError, config::ConfigError, demo::DemoError, serve::Refusal};

/// The help text about exit codes.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    success; a task: completed, or a compaction that was not needed
  1    failure
  2    invalid usage or configuration, or a machine or database that the server cannot use
  3    the task was cancelled
  4    the task was interrupted: it stopped after the agent may have acted
  5    the server is unreachable, or it refused the request
  130  Ctrl-C; a submitted task keeps running";

/// The exit code of the process. Scripts rely on the numbers: [`EXIT_CODES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Cancelled = 3,
    Interrupted = 4,
    Unreachable = 5,
}

/// Exit code after Ctrl-C, as shells use it.
pub const INTERRUPT_EXIT: i32 = 130;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Storage(String),
    #[error("{0}")]
    Serve(Box<dyn Error>),
}

impl CliError {
    /// Returns the exit code for this error.
    pub fn exit(&self) -> Exit {
        match self {
            CliError::Client(ClientError::BadUrl { .. })
            | CliError::Config(_)
            | CliError::Usage(_) => Exit::Usage,
            CliError::Client(_) => Exit::Unreachable,
            // The reader of the output closed it early, as `head` does.
            CliError::Io(error) if error.kind() == ErrorKind::BrokenPipe => Exit::Done,
            CliError::Io(_) | CliError::Storage(_) => Exit::Failed,
            CliError::Serve(error) if error.is::<Refusal>() => Exit::Usage,
            CliError::Serve(error) if is_about_address(error.as_ref()) => Exit::Usage,
            CliError::Serve(_) => Exit::Failed,
        }
    }
}

impl From<DemoError> for CliError {
    fn from(error: DemoError) -> Self {
        match error {
            DemoError::Client(error) => CliError::Client(error),
            DemoError::Io(error) => CliError::Io(error),
            DemoError::DirectoryName => CliError::Usage(error.to_string()),
        }
    }
}

/// Whether a server failed to start because of its configured address (F32).
fn is_about_address(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source()).any(|error| {
        error.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable)
        })
    })
}
